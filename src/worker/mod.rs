//! Role `worker`: takes jobs over HTTP and runs each in a sandbox of its own.
//!
//! [`Bench::prepare`] finds out what this machine can do and clears away what an earlier
//! process left; [`Bench::open`] then serves the Worker API for whoever shows the token.
//! `node` does the same in its own process, between the steps of its start.

mod access;
mod api;
mod background;
mod disk;
mod disk_guard;
mod image_gc;
mod init_copy;
mod job;
mod ledger;
mod metrics;
mod prepare;
mod recovery;
mod storage;
mod told;
mod tombstones;
mod trash;

pub use access::{Access, Policy};
pub(crate) use init_copy::InitCopy;
pub use storage::Storage;

use access::Terms;

use crate::{
    api::image::ImageRef,
    data_dir::{DataDir, Place, RoleLock, SecretFile, check_owner, make_private_dir},
    engine::{Engine, EngineError, Program, probe},
    http::{gate::Gate, host::Hosts, server},
    instances::Instances,
    tasks::Tasks,
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
const END_LIMIT: Duration = Duration::from_secs(30);
/// What is left to background tasks, which the next start takes up where they were.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(1);

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
    pub storage: Storage,
}

/// A machine on which sandboxes work.
pub struct Bench {
    engine: Engine,
    init: InitCopy,
    home: PathBuf,
    node_uuid: String,
    jobs_dir: PathBuf,
    place: Place,
    settings: Settings,
    found: recovery::Found,
    tombstones: tombstones::Tombstones,
    lock: RoleLock,
}

/// A Worker API that serves; cheap to clone.
#[derive(Clone)]
pub struct Worker(Arc<Serving>);

struct Serving {
    api: Arc<api::Api>,
    settings: Settings,
    terms: watch::Sender<Terms>,
    /// Ends the listener, which is the last thing to go: until then the orchestrator can fetch
    /// results, and a job that is still running can be canceled.
    stop: watch::Sender<bool>,
    listening: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    background: Tasks,
    /// No other process may sweep up while our jobs run.
    _lock: RoleLock,
}

impl Bench {
    /// Takes the data directory, finds a way to run containers, finds the jobs of an earlier process,
    /// and sweeps up what belongs to none.
    pub async fn prepare(data_dir: &DataDir, settings: Settings) -> Result<Self, EngineError> {
        let lock = data_dir.lock("worker")?;
        // An OCI runtime takes no root that is reached by a link.
        let home = fs::canonicalize(data_dir.subdir("worker")?)?;
        let init = InitCopy::install(&home.join("init"))?;
        let node_uuid = node_uuid(data_dir)?;
        let jobs_dir = jobs_dir(&settings.storage, &home, &node_uuid)?;
        let place = Place::of([lock.path(), &home, &jobs_dir])?;
        let wanted = probe::Wanted {
            program: Program::podman(&settings.engine, &home)?,
            runtime: settings.engine_runtime.clone(),
        };
        let ground = probe::Ground {
            init: init.path(),
            scratch: &home,
            node_uuid: Some(&node_uuid),
        };
        let mut engine = probe::probe(wanted, ground).await?;
        engine.keep_uppers(&node_uuid);
        let tombstones =
            tombstones::Tombstones::open(home.join("tombstones"), settings.storage.retain)?;
        let found = recovery::find(&engine, init.path(), &jobs_dir, &tombstones).await?;
        found.sweep(&engine, &node_uuid).await?;
        background::warn_of_strays(&engine).await;
        Ok(Self {
            engine,
            init,
            home,
            node_uuid,
            jobs_dir,
            place,
            settings,
            found,
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
    pub fn open(self, listener: TcpListener, access: Access, public_url: Option<&str>) -> Worker {
        let Self {
            engine,
            init,
            home,
            node_uuid,
            jobs_dir,
            place,
            settings,
            found,
            tombstones,
            lock,
        } = self;
        let background = Tasks::default();
        let (terms, in_force) = watch::channel(Terms::new(access, &settings));
        let images = background::images(&background, &engine, &home, &settings);
        let slots = settings.max_concurrency;
        let graph_root = &engine.facts().graph_root;
        let disk = disk::Disk::new(&jobs_dir, graph_root, &home, settings.storage.min_free);
        let (trash, queued) = trash::Trash::new(engine.clone(), init.clone());
        let trash = Arc::new(trash);
        for path in found.stuck {
            trash.add(path, None);
        }
        let shop = Arc::new(job::Workshop {
            engine,
            init,
            trash: Arc::clone(&trash),
            images,
            node_uuid,
            log_bytes: settings.storage.log_bytes,
            disk,
            terms: in_force,
            slots: Semaphore::new(slots),
            metrics: metrics::Metrics::default(),
            place,
            changed: watch::Sender::new(()),
            live: disk_guard::LiveJobs::default(),
        });
        let ledger = Arc::new(ledger::Ledger::new(
            slots,
            jobs_dir,
            &found.jobs,
            tombstones,
        ));
        let api = Arc::new(api::Api {
            ledger: Arc::clone(&ledger),
            shop: Arc::clone(&shop),
            running: Tasks::default(),
            instances: Instances::default(),
            closing: AtomicBool::new(false),
        });
        for (job, entry) in found.open {
            api.start(&job, entry);
        }
        background.spawn(async move { trash.run(queued).await });
        background::start(&background, &shop, ledger, home, &settings.storage);
        let (stop, stopped) = watch::channel(false);
        let listening = tokio::spawn(server::serve(
            listener,
            api::router(Arc::clone(&api)),
            Gate::new(&[], Hosts::of_urls(public_url, HOST_ADVICE)),
            stopped,
        ));
        Worker(Arc::new(Serving {
            api,
            settings,
            terms,
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
        form: |text| {
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
fn jobs_dir(storage: &Storage, home: &Path, node_uuid: &str) -> io::Result<PathBuf> {
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
    pub fn renew(&self, access: Access) {
        self.0
            .terms
            .send_replace(Terms::new(access, &self.0.settings));
    }

    /// Why this machine takes no job at present; nothing while it does.
    pub fn refusal(&self) -> Option<String> {
        let refusal = self.0.api.shop.check().err();
        refusal.map(|problem| problem.detail)
    }

    /// Number of jobs that run for other orchestrators than the one that has access now.
    pub fn other_jobs(&self) -> usize {
        let owner = self.0.terms.borrow().orchestrator.clone();
        self.0.api.ledger.running_for_others(owner.as_ref())
    }

    /// Number of jobs of the orchestrator that has access now that wait for images and occupy no slot.
    pub fn pulling_jobs(&self) -> usize {
        let owner = self.0.terms.borrow().orchestrator.clone();
        self.0.api.ledger.pulling_for(owner.as_ref())
    }

    /// Why the data directory can't be relied on, if so.
    pub fn misplaced(&self) -> Option<String> {
        let found = self.0.api.shop.place.check();
        found.err().map(|misplaced| misplaced.to_string())
    }

    /// Hears when [`pulling_jobs`](Self::pulling_jobs) or [`misplaced`](Self::misplaced) changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.api.shop.changed.subscribe()
    }

    /// What an operator should know of, though the worker takes jobs.
    pub fn warnings(&self) -> Vec<String> {
        self.0.api.shop.trash.warnings()
    }

    /// Takes no new job and lets what runs go on for `grace`. With `cancel` the rest is canceled
    /// and cleared away; without, it goes on under its shims, and the next start finds it.
    pub async fn close(&self, grace: Duration, cancel: bool) {
        let Serving {
            api,
            stop,
            listening,
            background,
            ..
        } = &*self.0;
        api.closing.store(true, Ordering::SeqCst);
        let mut left = api.running.idle(grace).await;
        if left > 0 && cancel {
            api.ledger.cancel_all();
            left = api.running.idle(END_LIMIT).await;
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
        background.stop(BACKGROUND_LIMIT).await;
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
