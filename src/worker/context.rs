//! State that the API, the jobs and the background tasks of a worker share.
//!
//! Invariants:
//! - It is made once, at the start; only what has a lock or a channel of its own changes.
//! - No lock in it is held across an await point or a file operation. Looks at the disk go through
//!   [`probe_disk`](WorkerContext::probe_disk), so that a disk that hangs stops no call that does not need it.
//! - A job in [`live`](WorkerContext::live) may have files on disk, or a container; one of the
//!   [`slots`](WorkerContext::slots) is held until its processes are dead. The [ledger](super::ledger) admits at most
//!   as many jobs as there are slots, so that none waits long for one.

use super::{
    Settings, access::AccessPolicy, contents::ContentCache, disk::Disk, disk_guard::LiveJobs,
    disk_probe::DiskProbes, egress::EgressGateway, gpus::SharedGpus, home::WorkerHome,
    inference::ModelServer, init_copy::InitCopy, metrics::Metrics, sandbox_inference::ModelGateway,
    slots::Slots, snapshots::Snapshots, trash::Trash, warm::WarmPool,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    data_dir::{DataDirMoved, PathAnchors},
    engine::{Engine, Images, limits::LimitSupport},
};
use std::{path::PathBuf, sync::Arc};
use tokio::sync::{Semaphore, watch};

/// Delay after which a job may be sent again that was refused because of podman.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Jobs whose files are placed at the same time.
const MAX_PLACEMENTS: usize = 2;

/// State of a worker.
pub(super) struct WorkerContext {
    pub(super) engine: Engine,
    pub(super) init: InitCopy,
    pub(super) images: Arc<Images>,
    /// Label of the containers of this node.
    pub(super) node_uuid: String,
    /// Bytes of each job's log that are kept.
    pub(super) log_bytes: u64,
    /// Limits that this host can enforce.
    pub(super) limits: LimitSupport,
    /// Most bytes that a job may have on disk.
    pub(super) workspace_limit: Option<u64>,
    /// Graphics processors that jobs can have.
    pub(super) gpus: SharedGpus,
    pub(super) disk: Disk,
    disk_probes: DiskProbes,
    /// Trees of ended jobs, which are removed in the background.
    pub(super) trash: Arc<Trash>,
    /// Access of the orchestrator, which may change while jobs run.
    pub(super) access: watch::Receiver<AccessPolicy>,
    /// Sandboxes at the same time.
    pub(super) slots: Slots,
    pub(super) metrics: Metrics,
    anchors: Arc<PathAnchors>,
    /// Contents that jobs need.
    pub(super) contents: ContentCache,
    /// Directory with one for each load of an image.
    pub(super) loads_dir: PathBuf,
    /// Snapshots of sandboxes.
    pub(super) snapshots: Arc<Snapshots>,
    /// Permits to place files: each may take tens of MiB of memory, and more at a time make no disk faster.
    pub(super) placements: Semaphore,
    /// Most bytes of artifacts of a job.
    pub(super) artifact_limit: u64,
    /// Notifies that jobs began or ceased to wait for images, or that the data directory was moved or is back.
    pub(super) changed: watch::Sender<()>,
    /// Jobs that may have something on disk.
    pub(super) live: LiveJobs,
    /// Sandboxes that wait for jobs.
    pub(super) warm: WarmPool,
    /// Model server of this machine, which answers prompts.
    pub(super) model_server: ModelServer,
    /// Way from sandboxes to models.
    pub(super) models: ModelGateway,
    /// Way from sandboxes to hosts.
    pub(super) egress: EgressGateway,
}

impl WorkerContext {
    pub(super) fn new(
        engine: Engine,
        (limits, gpus): (LimitSupport, SharedGpus),
        home: &WorkerHome,
        images: Arc<Images>,
        trash: Trash,
        access: watch::Receiver<AccessPolicy>,
        settings: &Settings,
    ) -> Self {
        let graph_root = &engine.info().graph_root;
        let metrics = Metrics::default();
        let starts = metrics.starts.clone();
        let min_free = settings.storage.min_free;
        let place = (home.path.as_path(), min_free);
        let egress = EgressGateway::new(settings.egress.clone(), place, &metrics.egress);
        Self {
            warm: WarmPool::new(settings.most_warm(), &settings.prefetch_images, starts),
            disk: Disk::new(&home.jobs_dir, graph_root, &home.path, min_free),
            disk_probes: DiskProbes::default(),
            engine,
            init: home.init.clone(),
            images,
            node_uuid: home.node_uuid.clone(),
            log_bytes: settings.storage.log_bytes,
            limits,
            workspace_limit: settings.storage.workspace_limit,
            gpus,
            trash: Arc::new(trash),
            access,
            slots: Slots::new(settings.max_concurrency),
            metrics,
            anchors: Arc::clone(&home.anchors),
            contents: home.contents.clone(),
            loads_dir: home.loads_dir.clone(),
            snapshots: Arc::clone(&home.snapshots),
            placements: Semaphore::new(MAX_PLACEMENTS),
            artifact_limit: settings.storage.artifact_limit,
            changed: watch::Sender::new(()),
            live: LiveJobs::default(),
            model_server: ModelServer::default(),
            models: ModelGateway::default(),
            egress,
        }
    }

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

    /// Fails while the data directory is not where it was at the start: files at its path are of another.
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
