//! State that all jobs of a worker share.

use super::{
    access::AccessPolicy, disk::Disk, disk_guard::LiveJobs, init_copy::InitCopy, metrics::Metrics,
    trash::Trash,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    data_dir::PathAnchors,
    engine::{Engine, Images},
};
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// Delay after which a job may be sent again that was refused because of podman.
const RETRY_AFTER_SECONDS: u64 = 1;

/// State that all jobs of a worker share.
pub(super) struct WorkerContext {
    pub(super) engine: Engine,
    pub(super) init: InitCopy,
    pub(super) images: Arc<Images>,
    pub(super) node_uuid: String,
    pub(super) log_bytes: u64,
    pub(super) disk: Disk,
    /// Where what ended jobs leave goes.
    pub(super) trash: Arc<Trash>,
    pub(super) access: watch::Receiver<AccessPolicy>,
    /// Sandboxes at the same time, counted until they are cleared away.
    pub(super) slots: Semaphore,
    pub(super) metrics: Metrics,
    /// Paths under which everything has to stay.
    pub(super) anchors: PathAnchors,
    /// Says that jobs began or ceased to wait for images, or that the place changed.
    pub(super) changed: watch::Sender<()>,
    /// Jobs that may have something on disk.
    pub(super) live: LiveJobs,
}

impl WorkerContext {
    /// Whether one more job can be run here.
    pub(super) fn ensure_ready(&self) -> Result<(), Problem> {
        if let Err(moved) = self.anchors.verify() {
            return Err(Problem::new(ProblemKind::Unavailable, moved.to_string()));
        }
        if let Some(reason) = self.engine.health_error() {
            let detail =
                format!("podman does not work on this node, and so it takes no job: {reason}");
            return Err(
                Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_AFTER_SECONDS)
            );
        }
        self.disk.ensure_space()
    }
}
