//! What a worker tells a shim to do. The job's own words are not in it: they are in the spool.

use crate::{
    api::jobs::Effective,
    engine::{Engine, IndexStamp},
    spool::AcceptedJob,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that a shim needs, and that no job can choose.
#[derive(Serialize, Deserialize)]
pub struct ShimConfig {
    /// The directory of the attempt.
    pub spool: PathBuf,
    /// The podman that was found to work.
    pub engine: Engine,
    /// Our static binary, to be the sandbox's init.
    pub init: PathBuf,
    /// Whose container it is.
    pub node_uuid: String,
    /// What was accepted.
    pub accepted: AcceptedJob,
    /// What the container is to be called.
    pub container: String,
    /// The image index by which the image was looked at.
    #[serde(default)]
    pub image_index: Option<IndexStamp>,
    /// What is to be enforced.
    pub effective: Effective,
    /// How much of its log is kept.
    pub log_bytes: u64,
}
