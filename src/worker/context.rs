//! State that all jobs of a worker share.

use super::{
    access::AccessPolicy, disk::Disk, disk_guard::LiveJobs, disk_probe::DiskProbes,
    init_copy::InitCopy, metrics::Metrics, trash::Trash,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    data_dir::{DataDirMoved, PathAnchors},
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
    pub(super) disk_probes: DiskProbes,
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
    /// Fails while this node can't run one more job, with the reason.
    pub(super) async fn ensure_ready(self: &Arc<Self>) -> Result<(), Problem> {
        let look = |ctx: &Self| (ctx.anchors.verify(), ctx.disk.ensure_space());
        let (in_place, has_space) = self.probe_disk(look).await?;
        in_place.map_err(moved)?;
        if let Some(reason) = self.engine.health_error() {
            let detail =
                format!("podman does not work on this node, so it takes no jobs: {reason}");
            let problem = Problem::new(ProblemKind::Unavailable, detail);
            return Err(problem.retry_after(RETRY_AFTER_SECONDS));
        }
        has_space
    }

    /// Fails while the data directory is not where it was at the start: files there are not ours.
    pub(super) async fn verify_data_dir(self: &Arc<Self>) -> Result<(), Problem> {
        let look = |ctx: &Self| ctx.anchors.verify();
        self.probe_disk(look).await?.map_err(moved)
    }

    /// Runs a short look at the disk, off the runtime's threads; fails when the disk hangs.
    pub(super) async fn probe_disk<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let ctx = Arc::clone(self);
        self.disk_probes.run(move || look(&ctx)).await
    }
}

fn moved(error: DataDirMoved) -> Problem {
    Problem::new(ProblemKind::Unavailable, error.to_string())
}
