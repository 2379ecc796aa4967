//! Nodes: the last report, the configuration that was served, and the results of writes about them.

use super::JoinRefusal;
use crate::api::{
    NodeId,
    nodes::{AckStatus, CapabilityReport, NodeConfig},
    time::Time,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Registered node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Id of the node; stays the same when everything else changes.
    pub id: NodeId,
    /// Unique name of the node in commands.
    pub slug: String,
    /// Last capability report.
    pub capability: Arc<CapabilityReport>,
    /// Time of the last call from the node.
    pub last_seen_at: Time,
    /// Whether the node is drained: it is assigned no more jobs.
    pub draining: bool,
    /// URL of the Worker API, as the node reported it.
    pub worker_url: Option<String>,
    /// Configuration that the node was served last.
    pub config: StoredConfig,
    /// Version of that configuration; 0 before the first one.
    pub config_version: i64,
    /// Version that the node acknowledged last.
    pub ack_version: Option<i64>,
    /// Whether the node could apply that version.
    pub ack_status: Option<AckStatus>,
    /// Reason for which it could not.
    pub ack_error: Option<String>,
    /// Number of jobs that run on the node or are offered to it.
    pub running_jobs: u32,
    /// Random number of the last registration; tokens of earlier ones are no longer valid.
    pub registration: i64,
}

impl Node {
    /// Configuration that the node was served last; `None` before the first one, and where it can't be read.
    pub fn served_config(&self) -> Option<ServedConfig> {
        self.config.parse()
    }
}

/// Served configuration of a node as it is stored. Parsed only when asked for: the scheduler reads
/// thousands of nodes at a time and needs none of it.
#[derive(Clone, Debug, Default)]
pub struct StoredConfig(Option<Arc<str>>);

impl StoredConfig {
    pub(in crate::store) fn new(document: Option<Arc<str>>) -> Self {
        Self(document)
    }

    /// Whether the node was never served a configuration.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    fn parse(&self) -> Option<ServedConfig> {
        ServedConfig::parse(self.0.as_deref()?).ok()
    }
}

/// Configuration that a node was served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServedConfig {
    /// Content without version and dates. The SHA-256 of the token stands for the token.
    pub content: NodeConfig,
    /// Registration whose token the configuration carries.
    pub registration: i64,
    /// First version that carried this token.
    pub token_since: i64,
    /// Registration whose token the node applied last, where that is an older one.
    pub applied: Option<i64>,
}

impl ServedConfig {
    /// Parses a stored document. An older release stored the content alone, and knew no registrations.
    pub(in crate::store) fn parse(document: &str) -> Result<Self, serde_json::Error> {
        if let Ok(served) = serde_json::from_str(document) {
            return Ok(served);
        }
        Ok(Self {
            content: serde_json::from_str(document)?,
            registration: 0,
            token_since: 1,
            applied: None,
        })
    }

    pub(in crate::store) fn token_sha256(&self) -> &str {
        &self.content.worker_api.orchestrator_bearer_token
    }
}

/// Result of a registration.
pub enum RegisterOutcome {
    /// The slug is new: id of the node, and number of this registration.
    Created(NodeId, i64),
    /// The slug belongs to this machine already: id of the node, and number of this registration.
    Known(NodeId, i64),
    /// The slug belongs to another machine; nothing was stored.
    Taken,
    /// The maximum number of nodes is reached; nothing was stored.
    Full,
    /// The join token does not let this node in; nothing was stored.
    NotAdmitted(JoinRefusal),
}

/// Result of forgetting a node.
#[derive(Debug, PartialEq, Eq)]
pub enum ForgetOutcome {
    /// The node was deleted.
    Forgotten(NodeId),
    /// The node stays: it has this many jobs.
    Busy(u32),
    /// No node has this slug.
    Unknown,
}

/// Result of storing an acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckOutcome {
    /// The acknowledgement was stored.
    Stored {
        /// Whether it is the first one of its version.
        is_first: bool,
    },
    /// The node was never served that version.
    NeverServed,
    /// That version carried a token that was replaced since.
    Replaced,
    /// No such node, or it has registered again.
    Unregistered,
}
