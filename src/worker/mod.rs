//! Role `worker`: takes jobs over HTTP and runs each in a sandbox of its own.
//!
//! [`Bench::prepare`] finds out what this machine can do and clears away what an earlier
//! process left; [`Bench::open`] then serves the Worker API for whoever shows the token.
//! `node` does the same in its own process, between the steps of its start.

mod api;
mod images;
mod init_copy;
mod job;
mod ledger;
mod output;
mod pipes;
mod remove;
mod sandbox;

pub(crate) use init_copy::install as install_init;
pub use job::Policy;
pub use remove::remove_tree;

use crate::{
    api::image::ImageRef,
    data_dir::{DataDir, RoleLock, make_private_dir},
    digest::sha256_hex,
    engine::{Engine, EngineError, probe},
    http::server,
    tasks::Tasks,
};
use std::{
    fs, io,
    net::SocketAddr,
    path::PathBuf,
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

/// The argument by which the binary knows that it is to remove a tree, inside podman's user namespace.
pub const REMOVE_ARGUMENT: &str = "__remove-tree";

const SWEEP_LIMIT: Duration = Duration::from_mins(1);
/// What is left to sandboxes that were told to end.
const END_LIMIT: Duration = Duration::from_secs(30);

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
}

/// A machine on which sandboxes work.
pub struct Bench {
    engine: Engine,
    init: PathBuf,
    node_uuid: String,
    jobs_dir: PathBuf,
    settings: Settings,
    lock: RoleLock,
}

/// A Worker API that serves.
pub struct Worker {
    api: Arc<api::Api>,
    /// Ends the listener, which is the last thing to go: until then the orchestrator can fetch
    /// results, and a job that is still running can be canceled.
    stop: watch::Sender<bool>,
    listening: tokio::task::JoinHandle<()>,
    /// No other process may sweep up while our jobs run.
    _lock: RoleLock,
}

impl Bench {
    /// Takes the data directory, finds a way to run containers, and sweeps up.
    pub async fn prepare(data_dir: &DataDir, settings: Settings) -> Result<Self, EngineError> {
        let lock = data_dir.lock("worker")?;
        let home = data_dir.subdir("worker")?;
        let jobs_dir = home.join("jobs");
        make_private_dir(&jobs_dir)?;
        let init = init_copy::install(&home.join("init"))?;
        let (node_uuid, _) = data_dir.secret("worker/node-uuid", || {
            Zeroizing::new(uuid::Uuid::new_v4().to_string())
        })?;
        let wanted = probe::Wanted {
            program: settings.engine.clone(),
            runtime: settings.engine_runtime.clone(),
        };
        let engine = probe::probe(wanted, &init, &home).await?;
        let bench = Self {
            engine,
            init,
            node_uuid: node_uuid.to_string(),
            jobs_dir,
            settings,
            lock,
        };
        bench.sweep().await?;
        Ok(bench)
    }

    /// The engine, and what it can do.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Removes containers that bear our label and workspaces without a job: a worker that was
    /// killed took its sandboxes with it, but podman may not have had the time to clear them away.
    async fn sweep(&self) -> Result<(), EngineError> {
        let filter = format!("--filter=label={}={}", job::LABEL_NODE, self.node_uuid);
        let left = self
            .engine
            .call(
                &["ps", "--all", "--quiet", "--no-trunc", &filter],
                SWEEP_LIMIT,
            )
            .await?;
        let ids: Vec<&str> = left.split_whitespace().collect();
        if !ids.is_empty() {
            tracing::warn!(
                count = ids.len(),
                "containers of an earlier process are removed"
            );
            let arguments: Vec<&str> = ["rm", "--force", "--ignore", "--time=0"]
                .into_iter()
                .chain(ids)
                .collect();
            if let Err(error) = self.engine.call(&arguments, SWEEP_LIMIT).await {
                tracing::warn!(%error, "some of them could not be removed; see podman ps --all");
            }
        }
        for entry in fs::read_dir(&self.jobs_dir)? {
            job::remove_left(&self.engine, &self.init, entry?.path()).await;
        }
        Ok(())
    }

    /// Serves the Worker API on `listener`, for whoever shows `token`, until [`Worker::close`].
    pub fn open(self, listener: TcpListener, token: &str, policy: Policy) -> Worker {
        let Self {
            engine,
            init,
            node_uuid,
            jobs_dir,
            settings,
            lock,
        } = self;
        let mut policy = policy;
        policy.allowed_images.push(settings.allowed_images);
        let images = Arc::new(images::Images::new(engine.clone()));
        if let Some(image) = settings.default_image {
            let images = Arc::clone(&images);
            tokio::spawn(async move {
                if let Err(error) = images.resolve(&image).await {
                    tracing::warn!(%image, error = error.message, "the default image is not here yet; the first job tries again");
                }
            });
        }
        let shop = job::Workshop {
            engine,
            init,
            images,
            node_uuid,
            jobs_dir,
            policy,
            slots: Semaphore::new(settings.max_concurrency),
        };
        let api = Arc::new(api::Api {
            token_sha256: Zeroizing::new(sha256_hex(token)),
            ledger: ledger::Ledger::new(settings.max_concurrency),
            shop: Arc::new(shop),
            running: Tasks::default(),
            closing: AtomicBool::new(false),
        });
        let (stop, stopped) = watch::channel(false);
        let listening = tokio::spawn(server::serve(
            listener,
            api::router(Arc::clone(&api)),
            stopped,
        ));
        Worker {
            api,
            stop,
            listening,
            _lock: lock,
        }
    }
}

impl Worker {
    /// Takes no new job and lets what runs go on for `grace`. With `cancel` the rest is canceled
    /// and cleared away; without, it ends with this process.
    pub async fn close(self, grace: Duration, cancel: bool) {
        self.api.closing.store(true, Ordering::SeqCst);
        let mut left = self.api.running.idle(grace).await;
        if left > 0 && cancel {
            self.api.ledger.cancel_all();
            left = self.api.running.idle(END_LIMIT).await;
        }
        if left > 0 {
            tracing::warn!(
                left,
                "some jobs end with this process; the next start clears away what they leave"
            );
            return;
        }
        self.stop.send_replace(true);
        if self.listening.await.is_err() {
            tracing::error!("the Worker API panicked; the lines above say where");
        }
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
