//! Model API: calls of users reach the model server of the node that suits best.
//!
//! ```text
//! body ── model known ──▶ queue ── permit of a node ──▶ attempt ── first byte ──▶ answer ──▶ record
//!                           ▲                              │
//!                           └──── another node instead ────┘
//! ```
//!
//! | step | file |
//! |---|---|
//! | body of the request, read while it passes and kept for another attempt | [`body`] |
//! | models of the nodes that can serve now | [`registry`] |
//! | choice of a node, turns of users | [`choice`], [`turns`], [`queue`] |
//! | one try at one node, up to the first byte of the answer | [`attempt`] |
//! | tries until one node answers; comments to the client meanwhile | [`call`] |
//! | answer as it comes, its cuts, its record and metrics | [`answer`], [`record`], [`metrics`] |
//! | lists of models, which no single node can answer, shared by their callers | [`lists`], [`model_list`], [`shared_answer`] |
//!
//! Nothing is decided after the first byte: from there on bytes pass until either side ends. Every resource of a call
//! belongs to its future or to the body of its answer, so that a client that leaves ends all of it at once.

mod answer;
mod attempt;
mod body;
mod bounded_json;
mod call;
mod choice;
mod lists;
mod metrics;
mod model_list;
mod queue;
mod record;
mod registry;
mod shared_answer;
mod turns;

pub(super) use call::{call, call_of_job};
pub(super) use lists::{ModelLists, list, model};
pub(super) use metrics::ModelMetrics;
pub(super) use queue::ModelQueue;

use std::time::Duration;

/// Settings of the model API.
#[derive(Clone, Copy, Debug)]
pub struct ModelSettings {
    /// Requests of one node at a time.
    pub concurrency: u32,
    /// Requests that wait for a node.
    pub queue: u32,
    /// Time for the first byte of an answer to arrive, and between two bytes.
    pub timeout: Duration,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            concurrency: 4,
            queue: 256,
            timeout: Duration::from_mins(10),
        }
    }
}
