//! Role `serve-orchestrator`: users create tasks here, nodes register here, and jobs are
//! given to nodes from here.
//!
//! [`Orchestrator::start`] is the start-up order. A shut-down is the end of `shutdown`: the
//! listeners finish their answers, the scheduler stops, running jobs stay at their nodes and
//! are followed again after the next start ([`recovery`]).

mod avoided;
mod bootstrap;
mod cancel;
mod control_plane;
mod data;
mod dispatch;
mod followers;
mod gateway;
mod health;
mod leftovers;
mod live;
mod liveness;
mod metrics;
mod node_address;
mod node_client;
mod node_views;
mod node_words;
mod presence;
mod readiness;
mod recovery;
mod refusals;
pub mod scheduler;
mod slots;
mod summary;
mod task_log;
mod upkeep;

pub use bootstrap::Welcome;
use bootstrap::{FirstAdmin, Join};
pub use data::{Incomplete, check as check_state};

use crate::{
    api::{NodeId, TaskId, image::ImageRef, tasks::TaskStatus, time::Time},
    data_dir::{DataDir, Place, RoleLock},
    http::{
        gate::Gate,
        host::Hosts,
        server::{self, Shutdown},
    },
    identity::{Identity, Keys},
    instances::Instances,
    store::{QueueLimits, Retention, Store, StoreError, Trouble},
    tasks::Tasks,
};
use futures_util::future::select_all;
use ipnet::IpNet;
use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use zeroize::Zeroizing;

/// How long tasks that follow jobs may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Which flags let other names in on loopback.
const HOST_ADVICE: &str = ", or have the operator name the proxy that sends this with --trusted-proxy, or this name in --public-url";

/// What the operator says.
pub struct Settings {
    /// Where users reach us.
    pub gateway_listen: SocketAddr,
    /// Where nodes reach us.
    pub control_listen: SocketAddr,
    /// How nodes are to call us; as they did when `None`.
    pub public_url: Option<String>,
    /// The pre-shared key; ours from the data directory when `None`.
    pub psk: Option<Zeroizing<String>>,
    /// The first admin's password; a random one when `None`.
    pub admin_password: Option<Zeroizing<String>>,
    /// Where nodes are reached, by slug, whatever they say.
    pub worker_urls: HashMap<String, String>,
    /// Networks in which nodes may say that they are reached; any where there are none.
    pub worker_url_allow: Vec<IpNet>,
    /// The image of a task that names none.
    pub default_image: ImageRef,
    /// The model server that nodes are to run.
    pub inference_image: Option<ImageRef>,
    /// The models that it is to have; whatever it has when empty.
    pub inference_models: Vec<String>,
    /// Whether we are ready only with inference.
    pub require_inference: bool,
    /// Whether this process runs a node, too.
    pub has_node: bool,
    /// How many tasks may be queued, and how large.
    pub queue: QueueLimits,
    /// Room on the disk that new tasks may not use up, in bytes.
    pub reserve_disk: u64,
    /// How long a node may be silent before what it runs is offered to another one.
    pub lease: Duration,
    /// Whether an empty database may be made beside keys of before.
    pub init: bool,
    /// Whether keys may be made beside a database of before.
    pub new_keys: bool,
    /// Which finished tasks are kept.
    pub retention: Retention,
    /// Most jobs of one node at the same time.
    pub max_jobs_per_node: u32,
    /// Most nodes.
    pub max_nodes: u32,
    /// How many requests a second each user may make; any number when 0.
    pub user_rate: u32,
    /// Those who are believed where a request came from.
    pub trusted_proxies: Vec<IpNet>,
}

/// Why the orchestrator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files or sockets.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting.
    #[error("{0}")]
    Setting(String),
    /// A part of the state is missing.
    #[error("{0}; {fix}", fix = .0.fix())]
    Incomplete(#[from] Incomplete),
}

/// The state that all of the role shares.
pub struct Orchestrator {
    settings: Settings,
    store: Store,
    identity: Identity,
    clients: node_address::Clients,
    live: live::Live,
    log_readers: gateway::LogReaders,
    followers: followers::Followers,
    avoided: avoided::Avoided,
    leftovers: leftovers::Leftovers,
    slots: slots::Slots,
    liveness: liveness::Liveness,
    following: Tasks,
    /// This process; made at each start.
    instance: String,
    /// Processes that call as nodes.
    instances: Instances<NodeId>,
    metrics: metrics::Metrics,
    /// Wakes the scheduler.
    wake: Notify,
    shutdown: Shutdown,
    /// Paths under which the database and the lock have to stay.
    place: Place,
}

/// An orchestrator that serves.
pub struct Running {
    /// The shared state.
    orchestrator: Arc<Orchestrator>,
    /// Where users reach it.
    pub gateway: SocketAddr,
    /// Where nodes reach it.
    pub control: SocketAddr,
    /// Both listeners, the upkeep of the store and of nodes, and the scheduler.
    parts: Vec<JoinHandle<()>>,
    _lock: RoleLock,
}

impl Orchestrator {
    /// Brings everything up, in this order: state, keys, sockets, admin, the jobs that were under
    /// way, the scheduler and the upkeep of the store. `announce` tells the operator the password before it is stored, so that
    /// none is ever in force that nobody saw.
    pub async fn start(
        data_dir: &DataDir,
        settings: Settings,
        shutdown: Shutdown,
        announce: impl FnOnce(&Welcome) -> io::Result<()>,
    ) -> Result<Running, StartError> {
        let lock = data_dir.lock("orchestrator")?;
        data_dir
            .update_addresses(|addresses| (addresses.gateway, addresses.control) = (None, None));
        let store = data::open(data_dir.path(), &settings)?.reserving(settings.reserve_disk);
        let started = Self::start_on(store.clone(), lock, data_dir, settings, shutdown, announce);
        let started = started.await;
        if started.is_err() {
            data::close(&store).await;
        }
        started
    }

    async fn start_on(
        store: Store,
        lock: RoleLock,
        data_dir: &DataDir,
        mut settings: Settings,
        shutdown: Shutdown,
        announce: impl FnOnce(&Welcome) -> io::Result<()>,
    ) -> Result<Running, StartError> {
        let gateway = server::bind(settings.gateway_listen, "--gateway-listen").await?;
        let control = server::bind(settings.control_listen, "--control-listen").await?;
        let (gateway_address, control_address) = (gateway.local_addr()?, control.local_addr()?);
        let psk_file = settings.psk.is_none().then(|| data_dir.join("keys/psk"));
        let keys = Keys::open(data_dir, settings.psk.take())?;
        let admin = FirstAdmin::plan(&store, settings.admin_password.take()).await?;
        announce(&Welcome {
            admin_password: admin.as_ref().and_then(FirstAdmin::untold),
            psk: keys
                .psk_is_new
                .then(|| Zeroizing::new(keys.psk().to_owned())),
            psk_file,
            gateway: gateway_address,
            control: control_address,
            join: Join::find(settings.public_url.as_deref(), control_address),
            has_node: settings.has_node,
        })?;
        if let Some(admin) = admin {
            admin.make(&store).await?;
        }
        let clients = node_address::Clients::new(&settings);
        let orchestrator = Arc::new(Self {
            identity: Identity::new(store.clone(), keys, settings.user_rate),
            slots: slots::Slots::new(settings.max_jobs_per_node),
            settings,
            store,
            clients,
            live: live::Live::default(),
            log_readers: gateway::LogReaders::default(),
            followers: followers::Followers::default(),
            avoided: avoided::Avoided::default(),
            leftovers: leftovers::Leftovers::default(),
            liveness: liveness::Liveness::default(),
            following: Tasks::default(),
            instance: uuid::Uuid::new_v4().to_string(),
            instances: Instances::default(),
            metrics: metrics::Metrics::default(),
            wake: Notify::new(),
            shutdown: shutdown.clone(),
            place: Place::of([lock.path(), &data_dir.join("cynode.db")])?,
        });
        recovery::resume(&orchestrator).await?;
        let parts = orchestrator.serve(gateway, control, &shutdown);
        data_dir.update_addresses(|addresses| {
            (addresses.gateway, addresses.control) = (Some(gateway_address), Some(control_address));
        });
        tracing::info!(gateway = %gateway_address, control = %control_address, "the orchestrator listens");
        Ok(Running {
            orchestrator,
            gateway: gateway_address,
            control: control_address,
            parts,
            _lock: lock,
        })
    }

    /// Starts all that goes on until `shutdown`.
    fn serve(
        self: &Arc<Self>,
        gateway: TcpListener,
        control: TcpListener,
        shutdown: &Shutdown,
    ) -> Vec<JoinHandle<()>> {
        let public_url = self.settings.public_url.as_deref();
        let hosts = || Hosts::of_urls(public_url, HOST_ADVICE);
        let gate = || Gate::new(&self.settings.trusted_proxies, hosts());
        vec![
            tokio::spawn(server::serve(
                gateway,
                gateway::router(Arc::clone(self)),
                gate(),
                shutdown.clone(),
            )),
            tokio::spawn(server::serve(
                control,
                control_plane::router(Arc::clone(self)),
                gate(),
                shutdown.clone(),
            )),
            tokio::spawn(upkeep::run(Arc::clone(self), shutdown.clone())),
            tokio::spawn(leftovers::run(Arc::clone(self), shutdown.clone())),
            tokio::spawn(liveness::run(Arc::clone(self), shutdown.clone())),
            tokio::spawn(presence::run(Arc::clone(self), shutdown.clone())),
            tokio::spawn(refusals::run(Arc::clone(self), shutdown.clone())),
            tokio::spawn(scheduler::run(Arc::clone(self), shutdown.clone())),
        ]
    }

    /// What keeps new work from being taken: a data directory that is no more where it was, or the database.
    fn trouble(&self) -> Option<Trouble> {
        if self.place.check().is_err() {
            self.store.report(Trouble::Misplaced);
        }
        self.store.trouble()
    }

    /// What a task waits for, where that is more than a moment.
    async fn waits_for(&self, task: TaskId, status: TaskStatus) -> Option<String> {
        match status {
            TaskStatus::Queued => {
                if let Err(low) = self.store.start_space() {
                    return Some(low.to_string());
                }
                let demands = self.store.task_demands(task).await.ok()?;
                let nodes = self.node_views().await.ok()?;
                readiness::waits_for(&demands, &nodes).or_else(|| self.slots.full(&nodes))
            }
            TaskStatus::Running => {
                let moment = self.live.moment(task)?;
                let node = self.store.node_get(moment.source?.node).await.ok()??;
                if !moment.is_silent && node.capability.node.stopping_since.is_none() {
                    return None;
                }
                let prospects = self.store.job_prospects(task).await.ok()??;
                Some(readiness::silent(&node, prospects, Time::now()))
            }
            _ => None,
        }
    }
}

impl Running {
    /// Logs the admin in without a password: for the process that owns the data directory.
    pub async fn admin_session(&self) -> Result<crate::api::auth::Tokens, StartError> {
        let Orchestrator {
            store, identity, ..
        } = &*self.orchestrator;
        let admin = store.user_by_handle(bootstrap::ADMIN.to_owned()).await?;
        let admin = admin
            .ok_or_else(|| StartError::Setting("there is no user admin any more".to_owned()))?;
        identity
            .open_session(admin.user)
            .await
            .map_err(|problem| StartError::Setting(problem.detail))
    }

    /// The pre-shared key, for a node in the same process.
    pub fn psk(&self) -> Zeroizing<String> {
        self.orchestrator.identity.psk()
    }

    /// Resolves when a part that should run until shutdown has ended before it: a fault of ours.
    pub async fn broken(&mut self) {
        let (_, which, _) = select_all(&mut self.parts).await;
        // What has ended can't be waited for again.
        drop(self.parts.swap_remove(which));
    }

    /// Waits, at most for `limit`, until the ends of all jobs that are followed are stored.
    pub async fn settled(&self, limit: Duration) {
        self.orchestrator.following.idle(limit).await;
    }

    /// Waits until the listeners have finished their answers, and closes the database.
    pub async fn ended(self) {
        for part in self.parts {
            if part.await.is_err() {
                tracing::error!("a part of the orchestrator panicked; the lines above say where");
            }
        }
        // Running jobs stay at their nodes; the next start follows them again.
        self.orchestrator.following.stop(STOP_LIMIT).await;
        data::close(&self.orchestrator.store).await;
    }
}
