//! Nodes in answers of the User API.

use super::{AckStatus, Gpu, Inference, WarmCounts};
use crate::api::string_form::named_enum;
use crate::api::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

named_enum! {
    /// Status of a node.
    pub enum NodeStatus {
        /// Accepts jobs.
        Ready,
        /// Online, but accepts no jobs; the reason says why.
        NotReady,
        /// Finishes its jobs and gets no new ones.
        Draining,
        /// Silent for 30 seconds, or stopped.
        Offline,
    }
}

/// Node in answers of the User API.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// Slug, the name of the node in commands.
    pub node_slug: String,
    /// Display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Status.
    pub status: NodeStatus,
    /// Reason why the node is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Warnings for the operator; the node may accept jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Labels, which tasks can require.
    pub labels: Vec<String>,
    /// URL at which the orchestrator calls the node. Only admins see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api_target_url: Option<String>,
    /// Whether the orchestrator calls the node on the tunnel that the node opens, in place of a URL.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub via_tunnel: bool,
    /// Version of the configuration that the node last fetched.
    pub config_version: String,
    /// Whether the node runs with an older configuration than the current one, which it fetches at its next
    /// registration.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub config_stale: bool,
    /// Version of the configuration that the node last acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_config_version: Option<String>,
    /// Status of that acknowledgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_status: Option<AckStatus>,
    /// Time of the last report.
    pub last_seen_at: Time,
    /// Number of running jobs.
    pub running_jobs: u32,
    /// Number of job slots.
    pub max_concurrency: u32,
    /// Graphics processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Numbers of graphics processors that jobs can have; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<GpuCounts>,
    /// Sandboxes that wait for jobs; absent where the node keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<WarmCounts>,
    /// Longest time limit that the node allows to a job, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_timeout_seconds: Option<u64>,
    /// Model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<Inference>,
}

/// Graphics processors of a node that jobs can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GpuCounts {
    /// All of them.
    pub total: u32,
    /// Those that no job has.
    pub free: u32,
    /// Those that jobs have.
    pub busy: u32,
}

/// Answer of `GET /v1/nodes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeList {
    /// Nodes, sorted by slug.
    pub nodes: Vec<NodeView>,
    /// Always empty: the list contains all nodes.
    #[serde(default)]
    pub next_cursor: String,
}
