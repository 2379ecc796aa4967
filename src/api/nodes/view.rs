//! Nodes as users see them.

use super::{AckStatus, Gpu, Inference};
use crate::api::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

/// Where a node stands, as users see it.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Serialize,
    JsonSchema,
    EnumString,
    IntoStaticStr,
    VariantArray,
    VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum NodeStatus {
    /// Takes jobs.
    Ready,
    /// Heard, but takes none; the reason says why.
    NotReady,
    /// Finishes what it has.
    Draining,
    /// Not heard for 30 seconds, or stopped.
    Offline,
}

impl NodeStatus {
    /// Every status.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A node as users see it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// Its name in commands.
    pub node_slug: String,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it stands.
    pub status: NodeStatus,
    /// Why it isn't ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What its operator should know of, though it may take jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What tasks may ask for.
    pub labels: Vec<String>,
    /// Where dispatch reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api_target_url: Option<String>,
    /// The configuration it was last served.
    pub config_version: String,
    /// Whether it would be served another one now; it keeps to the old one until it fetches.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub config_stale: bool,
    /// The one that it last acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_config_version: Option<String>,
    /// How that went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_status: Option<AckStatus>,
    /// When it was last heard.
    pub last_seen_at: Time,
    /// Jobs it has now.
    pub running_jobs: u32,
    /// Jobs it takes at the same time.
    pub max_concurrency: u32,
    /// Its graphics processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Its model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<Inference>,
}

/// Answer of `GET /v1/nodes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeList {
    /// By slug.
    pub nodes: Vec<NodeView>,
    /// Always empty: the list has all nodes.
    #[serde(default)]
    pub next_cursor: String,
}

crate::api::string_form::deserialize_by_name!(NodeStatus);
