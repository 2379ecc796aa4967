//! Role `worker`: takes jobs over HTTP and runs each in a sandbox of its own.
//!
//! [`PreparedWorker::prepare`] finds out what this machine can do and clears away what an earlier
//! process left; [`PreparedWorker::serve`] then serves the Worker API for whoever shows the token.
//! `node` does the same in its own process, between the steps of its start.

mod access;
mod api;
mod background;
mod context;
mod disk;
mod disk_guard;
mod disk_probe;
mod event_stream;
mod gc;
mod image_gc;
mod init_copy;
mod job;
pub(crate) mod job_shim;
mod ledger;
mod metrics;
mod prepare;
mod recovery;
mod tombstones;
mod trash;

pub use access::{AccessGrant, JobPolicy};
pub use gc::StorageSettings;
pub(crate) use init_copy::InitCopy;

use access::AccessPolicy;

use crate::{
    api::image::ImageRef,
    background::BackgroundTasks,
    data_dir::{DataDir, PathAnchors, RoleLock, SecretFile, check_owner, make_private_dir},
    engine::{Engine, EngineError, Program, probe},
    http::{host::AllowedHosts, listener_policy::ListenerPolicy, server},
    instances::Instances,
};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, watch},
};
use zeroize::Zeroizing;

/// Where a Worker API listens unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 12090);

/// Which flags let other names in on loopback.
const HOST_ADVICE: &str = ", or have the node advertise this name (--advertise-url), or listen elsewhere (--worker-listen)";
/// What is left to sandboxes that were told to end.
const SANDBOX_END_TIMEOUT: Duration = Duration::from_secs(30);
/// What is left to background tasks, which the next start takes up where they were.
const BACKGROUND_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// What the operator says about sandboxes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Jobs at the same time.
    pub max_concurrency: usize,
    /// Image patterns; empty allows all.
    pub allowed_images: Vec<String>,
    /// An image to have before the first job asks for it.
    pub default_image: Option<ImageRef>,
    /// Name or path of podman.
    pub engine: PathBuf,
    /// The OCI runtime, when the operator insists on one.
    pub engine_runtime: Option<String>,
    /// Time limit of a job that names none; the contract's when `None`.
    pub default_timeout: Option<Duration>,
    /// Longest time limit of a job; the contract's when `None`.
    pub max_timeout: Option<Duration>,
    /// Longest body that the Worker API takes; the contract's when `None`.
    pub max_request_bytes: Option<usize>,
    /// Where jobs are kept, and for how long.
    pub storage: StorageSettings,
}

/// A machine on which sandboxes work.
pub struct PreparedWorker {
    engine: Engine,
    init: InitCopy,
    home: PathBuf,
    node_uuid: String,
    jobs_dir: PathBuf,
    anchors: PathAnchors,
    settings: Settings,
    recovered: recovery::Recovered,
    tombstones: (tombstones::TombstoneFile, tombstones::Tombstones),
    lock: RoleLock,
}

/// A Worker API that serves; cheap to clone.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    api: Arc<api::Api>,
    settings: Settings,
    set_access: watch::Sender<AccessPolicy>,
    /// Ends the listener, which is the last thing to go: until then the orchestrator can fetch
    /// results, and a job that is still running can be canceled.
    stop: watch::Sender<bool>,
    listening: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    background: BackgroundTasks,
    /// No other process may sweep up while our jobs run.
    _lock: RoleLock,
}

impl PreparedWorker {
    /// Takes the data directory, finds a way to run containers, finds the jobs of an earlier process,
    /// and sweeps up what belongs to none.
    pub async fn prepare(data_dir: &DataDir, settings: Settings) -> Result<Self, EngineError> {
        let lock = data_dir.lock("worker")?;
        // An OCI runtime takes no root that is reached by a link.
        let home = fs::canonicalize(data_dir.subdir("worker")?)?;
        let init = InitCopy::install(&home.join("init"))?;
        let node_uuid = node_uuid(data_dir)?;
        let jobs_dir = jobs_dir(&settings.storage, &home, &node_uuid)?;
        let anchors = PathAnchors::open([lock.path(), &home, &jobs_dir])?;
        let wanted = probe::ProbeRequest {
            program: Program::podman(&settings.engine, &home)?,
            runtime: settings.engine_runtime.clone(),
        };
        let probe_env = probe::ProbeEnv {
            init: init.path(),
            scratch: &home,
            node_uuid: Some(&node_uuid),
        };
        let mut engine = probe::probe(wanted, probe_env).await?;
        engine.enable_upper_detach(&node_uuid);
        let tombstones =
            tombstones::TombstoneFile::open(home.join("tombstones"), settings.storage.retain)?;
        let recovered =
            recovery::recover_jobs(&engine, init.path(), &jobs_dir, &tombstones.1).await?;
        recovered.remove_orphans(&engine, &node_uuid).await?;
        background::warn_about_strays(&engine).await;
        Ok(Self {
            engine,
            init,
            home,
            node_uuid,
            jobs_dir,
            anchors,
            settings,
            recovered,
            tombstones,
            lock,
        })
    }

    /// The engine, and what it can do.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// By what containers of this machine's node are known.
    pub fn node_uuid(&self) -> &str {
        &self.node_uuid
    }

    /// Serves the Worker API on `listener`, with the access that is granted, until [`Worker::close`]; on
    /// loopback also by the name of `public_url`.
    pub fn serve(
        self,
        listener: TcpListener,
        access: AccessGrant,
        public_url: Option<&str>,
    ) -> Worker {
        let Self {
            engine,
            init,
            home,
            node_uuid,
            jobs_dir,
            anchors,
            settings,
            recovered,
            tombstones,
            lock,
        } = self;
        let background = BackgroundTasks::default();
        let (set_access, access_policy) = watch::channel(AccessPolicy::new(access, &settings));
        let images = background::open_images(&background, &engine, &home, &settings);
        let slots = settings.max_concurrency;
        let graph_root = &engine.info().graph_root;
        let disk = disk::Disk::new(&jobs_dir, graph_root, &home, settings.storage.min_free);
        let (trash, queued) = trash::Trash::new(engine.clone(), init.clone());
        let trash = Arc::new(trash);
        for path in recovered.unremovable {
            trash.add(path, None);
        }
        let ctx = Arc::new(context::WorkerContext {
            engine,
            init,
            trash: Arc::clone(&trash),
            images,
            node_uuid,
            log_bytes: settings.storage.log_bytes,
            disk,
            disk_probes: disk_probe::DiskProbes::default(),
            access: access_policy,
            slots: Semaphore::new(slots),
            metrics: metrics::Metrics::default(),
            anchors,
            changed: watch::Sender::new(()),
            live: disk_guard::LiveJobs::default(),
        });
        let ledger = Arc::new(ledger::Ledger::new(
            slots,
            jobs_dir,
            &recovered.jobs,
            tombstones,
        ));
        let api = Arc::new(api::Api {
            ledger: Arc::clone(&ledger),
            ctx: Arc::clone(&ctx),
            job_tasks: BackgroundTasks::default(),
            instances: Instances::default(),
            closing: AtomicBool::new(false),
        });
        for (job, start) in recovered.unfinished {
            api.start(&job, start);
        }
        background.spawn("trash", async move { trash.run(queued).await });
        background::spawn_all(&background, &ctx, ledger, home, &settings.storage);
        let (stop, stopped) = watch::channel(false);
        let listening = crate::background::spawn(
            "worker_api",
            server::serve(
                listener,
                api::router(Arc::clone(&api)),
                ListenerPolicy::new(&[], AllowedHosts::from_urls(public_url, HOST_ADVICE)),
                stopped,
            ),
        );
        Worker(Arc::new(Inner {
            api,
            settings,
            set_access,
            stop,
            listening: Some(listening).into(),
            background,
            _lock: lock,
        }))
    }
}

/// By what containers of this machine's node are known; made the first time.
fn node_uuid(data_dir: &DataDir) -> io::Result<String> {
    let file = SecretFile {
        name: "worker/node-uuid",
        validate: |text| {
            let parsed = uuid::Uuid::try_parse(text);
            parsed.map(drop).map_err(|_| "is no UUID")
        },
        advice: "restore it from a backup, or delete it: containers that were left behind, and their directories in cynode/ below podman's graph root, then have to be removed by hand",
    };
    let fresh = || Zeroizing::new(uuid::Uuid::new_v4().to_string());
    let (uuid, _) = data_dir.secret(file, fresh)?;
    Ok(uuid.to_string())
}

/// Where jobs are kept. Below what the operator names there is room for others, and for other things.
fn jobs_dir(storage: &StorageSettings, home: &Path, node_uuid: &str) -> io::Result<PathBuf> {
    let jobs_dir = match &storage.jobs_dir {
        Some(place) => place.join(format!("cynode-{node_uuid}")),
        None => home.join("jobs"),
    };
    let is_elsewhere = storage.jobs_dir.is_some();
    // Elsewhere others may have been quicker.
    let checked = if is_elsewhere {
        check_owner(&jobs_dir)
    } else {
        Ok(())
    };
    checked
        .and_then(|()| make_private_dir(&jobs_dir))
        .and_then(|()| fs::canonicalize(&jobs_dir))
        .map_err(|error| {
            let path = jobs_dir.display();
            let advice = "choose another --jobs-dir";
            io::Error::new(
                error.kind(),
                format!("no jobs can be kept in {path}: {error}; {advice}"),
            )
        })
}

impl Worker {
    /// Replaces the access of the orchestrator; jobs that run already keep their rules and their owner.
    pub fn set_access(&self, access: AccessGrant) {
        self.0
            .set_access
            .send_replace(AccessPolicy::new(access, &self.0.settings));
    }

    /// Why this machine takes no job at present; nothing while it does.
    pub async fn unavailable_reason(&self) -> Option<String> {
        let ready = self.0.api.ctx.ensure_ready().await;
        ready.err().map(|problem| problem.detail)
    }

    /// Number of jobs that run for other orchestrators than the one that has access now.
    pub fn foreign_jobs(&self) -> usize {
        let owner = self.0.set_access.borrow().orchestrator.clone();
        self.0.api.ledger.foreign_slot_count(owner.as_ref())
    }

    /// Number of jobs of the orchestrator that has access now that wait for images and occupy no slot.
    pub fn pulling_jobs(&self) -> usize {
        let owner = self.0.set_access.borrow().orchestrator.clone();
        self.0.api.ledger.pulling_count(owner.as_ref())
    }

    /// Notifications that [`pulling_jobs`](Self::pulling_jobs) changed, or that the data directory was moved or is back.
    pub fn subscribe_changes(&self) -> watch::Receiver<()> {
        self.0.api.ctx.changed.subscribe()
    }

    /// What an operator should know of, though the worker takes jobs.
    pub fn warnings(&self) -> Vec<String> {
        self.0.api.ctx.trash.warnings()
    }

    /// Takes no new job and lets what runs go on for `grace`. With `cancel` the rest is canceled
    /// and cleared away; without, it goes on under its shims, and the next start finds it.
    pub async fn close(&self, grace: Duration, cancel: bool) {
        let Inner {
            api,
            stop,
            listening,
            background,
            ..
        } = &*self.0;
        api.closing.store(true, Ordering::SeqCst);
        let mut left = api.job_tasks.idle(grace).await;
        if left > 0 && cancel {
            api.ledger.cancel_all();
            left = api.job_tasks.idle(SANDBOX_END_TIMEOUT).await;
        }
        if left > 0 {
            tracing::info!(
                left,
                "some jobs go on without this process; the next start finds them"
            );
            return;
        }
        stop.send_replace(true);
        if let Some(listening) = listening.lock().await.take()
            && listening.await.is_err()
        {
            tracing::error!("the Worker API panicked; the lines above say where");
        }
        background.stop(BACKGROUND_STOP_TIMEOUT).await;
    }
}

/// Takes an address without listening yet: the port is known, and calls are refused until
/// [`TcpSocket::listen`].
pub fn reserve(address: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address).map_err(|error| {
        let advice = "choose another address with --worker-listen (port 0 takes a free one)";
        io::Error::new(
            error.kind(),
            format!("can't listen on {address}: {error}; {advice}"),
        )
    })?;
    let bound = socket.local_addr()?;
    Ok((socket, bound))
}
