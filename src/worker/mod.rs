//! Role `worker`: takes jobs over HTTP and runs each in a sandbox of its own.
//!
//! A worker starts in two steps, between which `node` registers at its orchestrator:
//!
//! 1. [`PreparedWorker::prepare`] locks and opens the data directory (`home`), finds a podman that works, recovers
//!    the jobs of an earlier process (`recovery`), and removes containers that belong to none (`orphans`).
//! 2. [`PreparedWorker::serve`] starts the background tasks (`background`), resumes the recovered jobs, and serves
//!    the Worker API (`api`).
//!
//! [`Worker::close`] ends it in the reverse order: no new jobs, time for those that run, then the API.
//!
//! A job walks from `api` through the `ledger` (is it known? is there a slot?) to `job` (its sandbox, its
//! result); `event_stream` reads what it printed. `egress` is the proxy through which it reaches hosts, and `edge` has
//! the secrets that enter its requests there. `gc` removes results that were never fetched, `trash` the
//! trees that jobs left, `image_gc` their images; `disk_guard`,
//! `workspace_guard` and `memory_guard` stop a job that takes too much.

mod access;
mod api;
mod api_files;
mod api_logs;
mod api_state;
pub(crate) mod artifacts;
mod background;
mod contents;
mod context;
mod disk;
mod disk_guard;
mod disk_probe;
mod edge;
mod egress;
mod event_stream;
mod features;
mod gc;
mod gpus;
mod home;
mod image_archive;
mod image_gc;
mod image_load;
mod inference;
mod init_copy;
mod job;
mod job_end;
mod job_files;
mod job_result;
pub(crate) mod job_shim;
mod job_start;
mod job_stop;
mod ledger;
mod listen;
mod log_part;
mod masking;
mod measure;
mod memory_guard;
mod metrics;
mod models;
mod notes;
mod orphans;
mod placement;
mod prepare;
mod prompt;
mod reconnect;
mod recovery;
mod sandbox_inference;
mod sandbox_listeners;
mod session;
mod sessions;
mod settings;
mod slots;
mod snapshots;
mod spool_sink;
mod stdin;
mod tombstones;
mod trash;
mod warm;
mod workspace_guard;

pub use access::{AccessGrant, JobPolicy};
pub use egress::EgressLimits;
pub(crate) use init_copy::InitCopy;
pub use listen::{DEFAULT_LISTEN, reserve};
pub use sandbox_inference::OrchestratorModels;
pub use settings::{DEFAULT_RESERVE_MEMORY, DEFAULT_WARM_MEMORY, Settings, StorageSettings};

use crate::{
    api::nodes::WarmCounts,
    background::BackgroundTasks,
    data_dir::{DataDir, RoleLock},
    engine::{
        Engine, EngineError, Images,
        gpus::{GpuCandidate, PassedGpu, probe_gpus},
        limits::LimitSupport,
    },
    http::router::Router,
};
use access::AccessPolicy;
use context::WorkerContext;
use gpus::{GpuPool, SharedGpus};
use home::WorkerHome;
use ledger::Ledger;
use parking_lot::Mutex;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};
use trash::Trash;

/// Time in which sandboxes have to end at shutdown, beyond the grace of their commands.
const SANDBOX_END_TIMEOUT: Duration = Duration::from_secs(30);
/// Time in which tunnels have to end at shutdown: more than they wait for calls under way.
const TUNNEL_END_TIMEOUT: Duration = Duration::from_secs(6);
/// Time for the trees of ended jobs to be removed at shutdown. The next start removes the rest.
const TRASH_TIMEOUT: Duration = Duration::from_secs(5);
/// Time in which background tasks have to end at shutdown. The next start resumes their work.
const BACKGROUND_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// A worker that has found a way to run sandboxes, and does not serve yet.
pub struct PreparedWorker {
    engine: Engine,
    limits: LimitSupport,
    gpus: Vec<PassedGpu>,
    home: WorkerHome,
    settings: Settings,
    recovered: recovery::Recovered,
    images: Arc<Images>,
    background: BackgroundTasks,
}

/// A worker that serves its API; cheap to clone.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    api: Arc<api::Api>,
    router: Router<api::Api>,
    settings: Settings,
    access: watch::Sender<AccessPolicy>,
    /// Ends the listener and tunnels. It goes last: until then the orchestrator can fetch results and cancel jobs.
    stop: watch::Sender<bool>,
    listener: Mutex<Option<JoinHandle<()>>>,
    background: BackgroundTasks,
    _lock: RoleLock,
}

impl PreparedWorker {
    /// Prepares a worker. Fails where another worker uses the data directory, or no podman works.
    pub async fn prepare(data_dir: &DataDir, settings: Settings) -> Result<Self, EngineError> {
        let home = WorkerHome::open(data_dir, &settings.storage).await?;
        let engine = home.probe_engine(&settings).await?;
        let jobs = async {
            let recovered = recovery::recover_jobs(&engine, &home).await?;
            orphans::remove_orphans_at_start(&engine, &home.node_uuid, &recovered).await?;
            background::warn_about_strays(&engine).await;
            Ok::<_, EngineError>(recovered)
        };
        let background = BackgroundTasks::default();
        let images = background::open_images(&background, &engine, &home.path, &settings);
        let (recovered, limits, _) = tokio::join!(
            jobs,
            features::find_limits(&engine, home.init.path(), &home.path),
            // The first report has them.
            images.local_names()
        );
        let recovered = recovered?;
        Ok(Self {
            engine,
            limits,
            gpus: Vec::new(),
            home,
            settings,
            recovered,
            images,
            background,
        })
    }

    /// Finds out which of these graphics processors podman can pass to jobs, which can ask for them from then on.
    pub async fn offer_gpus(&mut self, candidates: Vec<GpuCandidate>) {
        let (init, scratch) = (self.home.init.path(), &self.home.path);
        self.gpus = probe_gpus(&self.engine, init, scratch, candidates).await;
    }

    /// The engine, and what it can do.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Features of the sandboxes, by which an orchestrator chooses nodes.
    pub fn features(&self) -> Vec<String> {
        let has_snapshots = self.engine.has_uppers();
        features::names(&self.limits, !self.gpus.is_empty(), has_snapshots)
    }

    /// Label of the containers of this node.
    pub fn node_uuid(&self) -> &str {
        &self.home.node_uuid
    }

    /// Starts the worker for the orchestrator of `access`, until [`Worker::close`]. It serves its API where it
    /// [listens](Worker::listen), and on [tunnels](Worker::serve_tunnel). Jobs use models at `models`, where there are some.
    pub fn start(self, access: AccessGrant, models: Option<OrchestratorModels>) -> Worker {
        let Self {
            engine,
            limits,
            gpus,
            home,
            settings,
            recovered,
            images,
            background,
        } = self;
        let gpus = SharedGpus::new(GpuPool::new(gpus).into());
        let (access, access_policy) = watch::channel(AccessPolicy::new(access, &settings));
        let (trash, queue) = Trash::new(engine.clone(), home.init.path().to_owned());
        for path in recovered
            .unremovable
            .into_iter()
            .chain(home.left_loads.clone())
            .chain(home.left_snapshots.clone())
        {
            trash.add(path, None);
        }
        let ctx = WorkerContext::new(
            engine,
            (limits, Arc::clone(&gpus)),
            &home,
            images,
            trash,
            access_policy,
            &settings,
        );
        ctx.models.set(models);
        let ctx = Arc::new(ctx);
        let ledger = Arc::new(Ledger::new(
            settings.max_concurrency,
            home.jobs_dir,
            &recovered.jobs,
            home.tombstones,
            gpus,
        ));
        let api = Arc::new(api::Api::new(Arc::clone(&ledger), Arc::clone(&ctx)));
        for (job, start) in recovered.unfinished {
            api.start(&job, start);
        }
        background::spawn_all(&background, &ctx, ledger, queue, home.path, &settings);
        Worker(Arc::new(Inner {
            router: api::router(Arc::clone(&api)),
            api,
            settings,
            access,
            stop: watch::Sender::new(false),
            listener: Mutex::new(None),
            background,
            _lock: home.lock,
        }))
    }
}

impl Worker {
    /// Sets the address of the model server to which calls are passed on; `None` where there is none.
    pub fn set_model_server(&self, address: Option<SocketAddr>) {
        self.0.api.model_server.set_address(address);
    }

    /// Replaces the access of the orchestrator, and the model API that jobs use. Jobs that run keep their rules and
    /// their owner.
    pub fn set_access(&self, access: AccessGrant, models: Option<OrchestratorModels>) {
        self.0.api.ctx.models.set(models);
        let access = AccessPolicy::new(access, &self.0.settings);
        self.0.access.send_replace(access);
    }

    /// Reason for which this worker takes no jobs now; `None` while it does.
    pub async fn unavailable_reason(&self) -> Option<String> {
        let ready = self.0.api.ctx.ensure_ready().await;
        ready.err().map(|problem| problem.detail)
    }

    /// Time limit of a job that names none, and the longest that is allowed, in seconds.
    pub fn time_limits(&self) -> (u64, u64) {
        let access = self.0.access.borrow();
        let [default, most] = [None, Some(u64::MAX)];
        (
            access.effective_timeout_seconds(default),
            access.effective_timeout_seconds(most),
        )
    }

    /// Names of the images of `localhost/`, snapshots included; `None` where they are unknown, or too many.
    pub async fn local_images(&self) -> Option<Vec<String>> {
        let ctx = &self.0.api.ctx;
        let mut names = ctx.images.local_names().await?;
        // After the wait for podman, so that a report has what was made or removed meanwhile.
        names.extend(ctx.snapshots.names());
        Some(names)
    }

    /// Number of slots that are occupied by jobs of other orchestrators than the one that has access now.
    pub fn foreign_jobs(&self) -> usize {
        let owner = self.0.access.borrow().orchestrator.clone();
        self.0.api.ledger.foreign_slot_count(owner.as_ref())
    }

    /// Number of jobs of the orchestrator that has access now that wait for images and occupy no slot.
    pub fn pulling_jobs(&self) -> usize {
        let owner = self.0.access.borrow().orchestrator.clone();
        self.0.api.ledger.pulling_count(owner.as_ref())
    }

    /// Sandboxes that wait for jobs; `None` where none are kept.
    pub fn warm_counts(&self) -> Option<WarmCounts> {
        let (ready, max) = self.0.api.ctx.warm.counts();
        let [ready, max] = [ready, max].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        (max > 0).then_some(WarmCounts { ready, max })
    }

    /// Notifications that [`pulling_jobs`](Self::pulling_jobs) or [`warm_counts`](Self::warm_counts) changed, or that the data directory was moved or is
    /// back.
    pub fn subscribe_changes(&self) -> watch::Receiver<()> {
        self.0.api.ctx.changed.subscribe()
    }

    /// Graphics processors that jobs can have: position among the machine's devices, id, and whether a job has it.
    pub fn gpus(&self) -> Vec<(usize, String, bool)> {
        let gpus = self.0.api.ledger.gpus().into_iter();
        gpus.map(|(gpu, is_busy)| (gpu.device, gpu.id, is_busy))
            .collect()
    }

    /// Keeps the graphics processors of this vendor for the model server. Jobs that have some keep them.
    pub fn reserve_gpus(&self, vendor: Option<&'static str>) {
        self.0.api.ctx.gpus.lock().set_reserved(vendor);
    }

    /// Warnings for the operator of a worker that takes jobs.
    pub fn warnings(&self) -> Vec<String> {
        self.0.api.ctx.trash.warnings()
    }

    /// Takes no new jobs, and waits for those that run for `grace`. With `cancel` the rest is canceled, with as much time
    /// at most between TERM and KILL, and cleared away; without it, they go on under their shims, and the next start resumes them.
    pub async fn close(&self, grace: Duration, cancel: bool) {
        let Inner {
            api,
            stop,
            listener,
            background,
            ..
        } = &*self.0;
        api.close();
        let (mut left, ()) = tokio::join!(api.job_tasks.idle(grace), api.ctx.warm.close());
        if left > 0 && cancel {
            api.ledger.cancel_all(grace);
            left = api.job_tasks.idle(grace + SANDBOX_END_TIMEOUT).await;
        }
        if left > 0 {
            tracing::info!(
                jobs = left,
                "jobs go on without this process, and the next start resumes them; prompts among them end, and are tried again"
            );
            return;
        }
        stop.send_replace(true);
        let listener = listener.lock().take();
        if let Some(listener) = listener {
            // A panic is in the log.
            let _ = listener.await;
        }
        // Tunnels finish their answers, too, and let go of the signal then.
        let _ = tokio::time::timeout(TUNNEL_END_TIMEOUT, stop.closed()).await;
        // The upper directory of the last job was queued just now, and an ephemeral node has no next start.
        let trees = api.ctx.trash.idle(TRASH_TIMEOUT).await;
        if trees > 0 {
            tracing::warn!(
                trees,
                "directories of ended jobs not removed before the end"
            );
        }
        background.stop(BACKGROUND_STOP_TIMEOUT).await;
    }
}
