//! Sums of what a job did on its network.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Requests and bytes of a job through the proxy of its node.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EgressTotals {
    /// Requests that were let through.
    pub requests: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Bytes that the job sent.
    pub bytes_sent: u64,
    /// Bytes that the job received.
    pub bytes_received: u64,
}
