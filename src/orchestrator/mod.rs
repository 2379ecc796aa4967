//! Role `serve-orchestrator`: users create tasks here, nodes register here, and jobs are
//! given to nodes from here.
//!
//! [`start`] is the start-up order. A shut-down is the end of `shutdown`: the
//! listeners finish their answers, the scheduler stops, running jobs stay at their nodes and
//! are followed again after the next start ([`recovery`]).

mod active_jobs;
mod bootstrap;
mod cancel;
mod control_plane;
mod database;
mod dispatch;
mod gateway;
mod health;
mod liveness;
mod logs;
mod maintenance;
mod metrics;
mod node_address;
mod node_backoff;
mod node_client;
mod node_config;
mod node_registration;
mod node_views;
mod nodes;
mod presence;
mod readiness;
mod reason;
mod reconciler;
mod recovery;
mod refusals;
pub mod scheduler;
mod settings;
mod slots;
mod state;
mod summary;
mod task_log;
mod task_watch;
mod tasks;

pub use bootstrap::Banner;
use bootstrap::{FirstAdmin, JoinUrl};
pub use database::{IncompleteState, check as check_state};
pub use settings::{Settings, StartError};
use state::AppState;

use crate::{
    background,
    data_dir::{DataDir, RoleLock},
    http::{
        host::AllowedHosts,
        listener_policy::ListenerPolicy,
        server::{self, Shutdown},
    },
    identity::{Identity, Keys},
    store::Store,
};
use futures_util::future::select_all;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinHandle};
use zeroize::Zeroizing;

/// How long tasks that follow jobs may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Which flags let other names in on loopback.
const UNKNOWN_HOST_ADVICE: &str = ", or have the operator name the proxy that sends this with --trusted-proxy, or this name in --public-url";

/// An orchestrator that serves.
pub struct RunningOrchestrator {
    /// Shared state.
    state: Arc<AppState>,
    /// Where users reach it.
    pub gateway: SocketAddr,
    /// Where nodes reach it.
    pub control: SocketAddr,
    /// Both listeners, the upkeep of the store and of nodes, and the scheduler.
    services: Vec<JoinHandle<()>>,
    _lock: RoleLock,
}

/// Brings everything up, in this order: database, sockets, keys, admin, the jobs that were under way, the
/// scheduler and the upkeep of the store. `announce` tells the operator the password before it is stored, so
/// that none is ever in force that nobody saw.
pub async fn start(
    data_dir: &DataDir,
    settings: Settings,
    shutdown: Shutdown,
    announce: impl FnOnce(&Banner) -> io::Result<()>,
) -> Result<RunningOrchestrator, StartError> {
    let lock = data_dir.lock("orchestrator")?;
    data_dir.update_addresses(|addresses| (addresses.gateway, addresses.control) = (None, None));
    let store =
        database::open(data_dir.path(), &settings)?.with_disk_reserve(settings.reserve_disk);
    let started = start_on(store.clone(), lock, data_dir, settings, shutdown, announce).await;
    if started.is_err() {
        database::close(&store).await;
    }
    started
}

async fn start_on(
    store: Store,
    lock: RoleLock,
    data_dir: &DataDir,
    mut settings: Settings,
    shutdown: Shutdown,
    announce: impl FnOnce(&Banner) -> io::Result<()>,
) -> Result<RunningOrchestrator, StartError> {
    let gateway = server::bind(settings.gateway_listen, "--gateway-listen").await?;
    let control = server::bind(settings.control_listen, "--control-listen").await?;
    let (gateway_address, control_address) = (gateway.local_addr()?, control.local_addr()?);
    let psk_file = settings.psk.is_none().then(|| data_dir.join("keys/psk"));
    let keys = Keys::open(data_dir, settings.psk.take())?;
    let admin = FirstAdmin::plan(&store, settings.admin_password.take()).await?;
    announce(&Banner {
        admin_password: admin.as_ref().and_then(FirstAdmin::generated_password),
        psk: keys
            .is_psk_generated
            .then(|| Zeroizing::new(keys.psk().to_owned())),
        psk_file,
        gateway: gateway_address,
        control: control_address,
        join: JoinUrl::detect(settings.public_url.as_deref(), control_address),
        has_node: settings.has_node,
    })?;
    if let Some(admin) = admin {
        admin.create(&store).await?;
    }
    let identity = Identity::new(store.clone(), keys, settings.user_rate);
    let database = data_dir.join("cynode.db");
    let data_paths = [lock.path(), &database];
    let state = AppState::new(settings, store, identity, data_paths, shutdown.clone())?;
    let state = Arc::new(state);
    recovery::resume_running_jobs(&state).await?;
    let services = serve(&state, gateway, control, &shutdown);
    data_dir.update_addresses(|addresses| {
        (addresses.gateway, addresses.control) = (Some(gateway_address), Some(control_address));
    });
    tracing::info!(gateway = %gateway_address, control = %control_address, "the orchestrator listens");
    Ok(RunningOrchestrator {
        state,
        gateway: gateway_address,
        control: control_address,
        services,
        _lock: lock,
    })
}

/// Starts all that goes on until `shutdown`.
fn serve(
    state: &Arc<AppState>,
    gateway: TcpListener,
    control: TcpListener,
    shutdown: &Shutdown,
) -> Vec<JoinHandle<()>> {
    let public_url = state.settings.public_url.as_deref();
    let hosts = || AllowedHosts::from_urls(public_url, UNKNOWN_HOST_ADVICE);
    let gate = || ListenerPolicy::new(&state.settings.trusted_proxies, hosts());
    vec![
        background::spawn(
            "gateway",
            server::serve(
                gateway,
                gateway::router(Arc::clone(state)),
                gate(),
                shutdown.clone(),
            ),
        ),
        background::spawn(
            "control_plane",
            server::serve(
                control,
                control_plane::router(Arc::clone(state)),
                gate(),
                shutdown.clone(),
            ),
        ),
        background::spawn(
            "maintenance",
            maintenance::run(Arc::clone(state), shutdown.clone()),
        ),
        background::spawn(
            "reconciler",
            reconciler::run(Arc::clone(state), shutdown.clone()),
        ),
        background::spawn(
            "liveness",
            liveness::run(Arc::clone(state), shutdown.clone()),
        ),
        background::spawn(
            "presence",
            presence::run(Arc::clone(state), shutdown.clone()),
        ),
        background::spawn(
            "refusals",
            refusals::run(Arc::clone(state), shutdown.clone()),
        ),
        background::spawn(
            "scheduler",
            scheduler::run(Arc::clone(state), shutdown.clone()),
        ),
    ]
}

impl RunningOrchestrator {
    /// Logs the admin in without a password: for the process that owns the data directory.
    pub async fn admin_session(&self) -> Result<crate::api::auth::Tokens, StartError> {
        let AppState {
            store, identity, ..
        } = &*self.state;
        let admin = store.user_by_handle(bootstrap::ADMIN.to_owned()).await?;
        let admin = admin
            .ok_or_else(|| StartError::Setting("there is no user admin any more".to_owned()))?;
        identity
            .open_session(admin.user)
            .await
            .map_err(|error| StartError::Setting(error.problem().detail.clone()))
    }

    /// The pre-shared key, for a node in the same process.
    pub fn psk(&self) -> Zeroizing<String> {
        self.state.identity.psk()
    }

    /// Resolves when a part that should run until shutdown has ended before it: a fault of ours.
    pub async fn wait_for_failure(&mut self) {
        let (_, which, _) = select_all(&mut self.services).await;
        // What has ended can't be waited for again.
        drop(self.services.swap_remove(which));
    }

    /// Waits, at most for `limit`, until the ends of all jobs that are followed are stored.
    pub async fn wait_idle(&self, limit: Duration) {
        self.state.jobs.background.idle(limit).await;
    }

    /// Waits until the listeners have finished their answers, and closes the database.
    pub async fn wait_stopped(self) {
        for part in self.services {
            if part.await.is_err() {
                tracing::error!("a part of the orchestrator panicked; the lines above say where");
            }
        }
        // RunningOrchestrator jobs stay at their nodes; the next start follows them again.
        self.state.jobs.background.stop(STOP_TIMEOUT).await;
        database::close(&self.state.store).await;
    }
}
