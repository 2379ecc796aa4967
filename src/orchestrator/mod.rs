//! Role `serve-orchestrator`: users create tasks here, nodes register here, and jobs are scheduled on nodes
//! from here.
//!
//! | to find | look at |
//! |---|---|
//! | start-up order and shutdown | [`start`], [`RunningOrchestrator`] |
//! | shared state | [`state`] |
//! | TLS of the listeners | [`encryption`] |
//! | use cases of users | [`tasks`], [`artifacts`], [`cancel`], [`logs`], [`nodes`], [`usage`], and [`identity`](crate::identity) |
//! | use cases of nodes | [`node_registration`], [`node_config`] |
//! | HTTP | [`gateway`] for users, [`control_plane`] for nodes, [`health`] for both |
//! | scheduling policy | [`scheduler`], [`slots`], [`gpu_pool`], [`readiness`], [`waiting`], [`node_backoff`], [`no_room`] |
//! | life of an attempt, retries | [`dispatch`], [`active_jobs`], [`refusals`], [`recovery`] |
//! | calls of models | [`inference`] |
//! | network of jobs | [`egress`] |
//! | exercises with a backup | [`drill`] |
//! | join tokens | [`join_tokens`] |
//! | secrets of jobs | [`secrets`], and [`identity`](crate::identity) |
//! | calls to nodes | [`node_client`], [`node_address`], [`tunnels`], [`sends`], [`reachability`], [`liveness`], [`reconciler`] |
//!
//! At a shutdown the listeners finish their answers and the scheduler stops. Running jobs stay on their
//! nodes and are followed again after the next start ([`recovery`]).

mod active_jobs;
mod artifacts;
mod bootstrap;
mod cancel;
mod contents_gc;
mod control_plane;
mod database;
mod dispatch;
mod drill;
mod egress;
mod encryption;
mod gateway;
mod gpu_pool;
mod health;
mod images;
mod inference;
mod join_tokens;
mod liveness;
mod logs;
mod maintenance;
mod metrics;
mod model_server;
mod no_room;
mod node_address;
mod node_backoff;
mod node_client;
mod node_config;
mod node_models;
mod node_registration;
mod node_views;
mod nodes;
mod presence;
mod reachability;
mod readiness;
mod reason;
mod reconciler;
mod recovery;
mod refusals;
mod sandboxes;
pub mod scheduler;
mod secrets;
mod sends;
mod settings;
mod slots;
mod state;
mod stdin;
mod summary;
mod task_log;
mod task_watch;
mod tasks;
mod tunnels;
mod usage;
mod waiting;

pub use bootstrap::Banner;
use bootstrap::{FirstAdmin, JoinUrl};
pub use database::{IncompleteState, check as check_state};
pub use dispatch::LeaseTerms;
pub use egress::EgressPolicy;
pub use encryption::TlsSettings;
use encryption::{CertificateUpkeep, Encryption};
pub use inference::ModelSettings;
use logs::archive::LogArchive;
pub use settings::{LogRetention, RequireInference, Settings, StartError, WantedModel};
use state::AppState;

use crate::{
    api::auth::Tokens,
    background::spawn,
    contents::{ContentStore, StoreLimits},
    data_dir::{DataDir, RoleLock},
    http::{
        host::AllowedHosts,
        listener_policy::ListenerPolicy,
        server::{self, Shutdown},
    },
    identity::{Identity, Keys},
    store::Store,
    tls::{Pin, ServerTls},
};
use futures_util::future::select_all;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::Signal,
    task::{JoinHandle, spawn_blocking},
};
use zeroize::Zeroizing;

/// Longest wait at a shutdown for the tasks that follow jobs.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Flags that allow further host names on loopback.
const UNKNOWN_HOST_ADVICE: &str = ", or ask the operator to allow the proxy that sends this with --trusted-proxy, or this name with --public-url";

/// Running orchestrator.
pub struct RunningOrchestrator {
    state: Arc<AppState>,
    /// Address of the gateway, for users.
    pub gateway: SocketAddr,
    /// Address of the control plane, for nodes.
    pub control: SocketAddr,
    /// Background tasks that run until shutdown: listeners, scheduler, maintenance of store and nodes.
    services: Vec<JoinHandle<()>>,
    _lock: RoleLock,
}

/// Starts an orchestrator, in this order: lock, database, sockets, keys, first admin, jobs that were under
/// way, services.
///
/// `announce` shows the banner to the operator before a generated password is stored, so that no password is
/// in force that nobody has seen.
pub async fn start(
    data_dir: &DataDir,
    settings: Settings,
    shutdown: Shutdown,
    announce: impl FnOnce(&Banner) -> io::Result<()>,
) -> Result<RunningOrchestrator, StartError> {
    let lock = data_dir.lock("orchestrator", &["keys"])?;
    if settings.drill {
        // Before anything is created.
        drill::check_restored(data_dir.path(), settings.psk.is_some())?;
    }
    data_dir.update_addresses(|addresses| (addresses.gateway, addresses.control) = (None, None));
    let store =
        database::open(data_dir.path(), &settings)?.with_disk_reserve(settings.reserve_disk);
    let started = start_on(store.clone(), lock, data_dir, settings, shutdown, announce).await;
    if started.is_err() {
        database::close(&store).await;
    }
    started
}

/// Part of the start that needs the database closed if it fails.
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
    let addresses = (gateway.local_addr()?, control.local_addr()?);
    // The ports that were found, from here on.
    (settings.gateway_listen, settings.control_listen) = addresses;
    let reloads = encryption::reload_requests(&settings);
    let encryption = encryption::open(data_dir, &settings).await?;
    let keys = create_secrets(&store, data_dir, &mut settings, &encryption, announce).await?;
    let identity = Identity::new(store.clone(), keys, settings.user_rate);
    let database = data_dir.join("cynode.db");
    let data_paths = [lock.path(), &database];
    let contents = open_contents(data_dir, &settings).await?;
    let logs = LogArchive::open(data_dir.join("logs"), settings.logs, settings.reserve_disk)?;
    let state = AppState::new(
        settings,
        store,
        identity,
        (contents, logs),
        encryption,
        data_paths,
        shutdown.clone(),
    )?;
    let state = Arc::new(state);
    secrets::warn_of_lost_keys(&state).await;
    if state.settings.drill {
        tracing::warn!(
            "runs as a drill: users log in and read; no node is called, and nothing else changes"
        );
    } else {
        recovery::resume_running_jobs(&state).await?;
    }
    let services = spawn_services(&state, [gateway, control], reloads, &shutdown);
    let (gateway, control) = addresses;
    encryption::log_start(&state.encryption, [gateway, control]);
    data_dir.update_addresses(|addresses| {
        (addresses.gateway, addresses.control) = (Some(gateway), Some(control));
    });
    tracing::info!(%gateway, %control, "orchestrator listens");
    Ok(RunningOrchestrator {
        state,
        gateway,
        control,
        services,
        _lock: lock,
    })
}

/// Opens the store of contents, which may be many files to count.
async fn open_contents(data_dir: &DataDir, settings: &Settings) -> io::Result<ContentStore> {
    let directory = data_dir.join("contents");
    let limits = StoreLimits {
        quota: settings.artifact_quota,
        min_free: settings.reserve_disk,
    };
    let is_drill = settings.drill;
    let opened = spawn_blocking(move || {
        let contents = ContentStore::open(&directory, limits)?;
        if !is_drill {
            contents.cut_unsynced(dispatch::ARTIFACTS_PREFIX)?;
        }
        Ok(contents)
    });
    opened.await.map_err(io::Error::other)?
}

/// Opens or creates the keys, and creates the first admin once the banner has shown the password.
async fn create_secrets(
    store: &Store,
    data_dir: &DataDir,
    settings: &mut Settings,
    encryption: &Encryption,
    announce: impl FnOnce(&Banner) -> io::Result<()>,
) -> Result<Keys, StartError> {
    let psk_file = settings.psk.is_none().then(|| data_dir.join("keys/psk"));
    let keys = Keys::open(data_dir, settings.psk.take())?;
    if settings.drill {
        // No admin, since there are users. No banner: nodes that join a drill would be refused.
        return Ok(keys);
    }
    let admin = FirstAdmin::plan(store, settings.admin_password.take()).await?;
    let (gateway, control) = (settings.gateway_listen, settings.control_listen);
    announce(&Banner {
        admin_password: admin.as_ref().and_then(FirstAdmin::generated_password),
        psk: keys
            .is_psk_generated
            .then(|| Zeroizing::new(keys.psk().to_owned())),
        psk_file,
        gateway,
        control,
        join: JoinUrl::detect(
            settings.public_url.as_deref(),
            control,
            scheme(encryption.control.is_some()),
        ),
        gateway_pin: encryption.gateway_pin(),
        control_pin: encryption.control_pin(),
        has_node: settings.has_node,
    })?;
    if let Some(admin) = admin {
        admin.create(store).await?;
    }
    Ok(keys)
}

/// Spawns the background tasks that run until `shutdown`.
fn spawn_services(
    state: &Arc<AppState>,
    [gateway, control]: [TcpListener; 2],
    reloads: Option<Signal>,
    shutdown: &Shutdown,
) -> Vec<JoinHandle<()>> {
    let policy = || {
        let hosts =
            AllowedHosts::from_urls(state.settings.public_url.as_deref(), UNKNOWN_HOST_ADVICE);
        ListenerPolicy::new(&state.settings.trusted_proxies, hosts)
    };
    let Encryption {
        gateway: gateway_tls,
        control: control_tls,
    } = &state.encryption;
    let certificate = state.encryption.certificate().cloned();
    let serve = |listener, router, tls: Option<&ServerTls>| {
        server::serve(listener, router, policy(), tls.cloned(), shutdown.clone())
    };
    let is_drill = state.settings.drill;
    let (state, shutdown) = (|| Arc::clone(state), || shutdown.clone());
    let mut services = vec![
        spawn(
            "gateway",
            serve(gateway, gateway::router(state()), gateway_tls.as_ref()),
        ),
        spawn(
            "control_plane",
            serve(
                control,
                control_plane::router(state()),
                control_tls.as_ref(),
            ),
        ),
        spawn("maintenance", maintenance::run(state(), shutdown())),
    ];
    if let Some(tls) = certificate {
        let upkeep = CertificateUpkeep::new(tls, reloads);
        services.push(spawn("certificate", upkeep.run(shutdown())));
    }
    if is_drill {
        return services;
    }
    services.extend([
        spawn("contents_gc", contents_gc::run(state(), shutdown())),
        spawn("reconciler", reconciler::run(state(), shutdown())),
        spawn("liveness", liveness::run(state(), shutdown())),
        spawn("presence", presence::run(state(), shutdown())),
        spawn("reachability", reachability::run(state(), shutdown())),
        spawn("refusals", refusals::run(state(), shutdown())),
        spawn("scheduler", scheduler::run(state(), shutdown())),
        spawn("usage", usage::run(state(), shutdown())),
    ]);
    services
}

/// Scheme of the URLs of a listener.
const fn scheme(is_tls: bool) -> &'static str {
    if is_tls { "https" } else { "http" }
}

impl RunningOrchestrator {
    /// Opens a session of the admin without a password: for the process that owns the data directory.
    pub async fn admin_session(&self) -> Result<Tokens, StartError> {
        let AppState {
            store, identity, ..
        } = &*self.state;
        let admin = store.user_by_handle(bootstrap::ADMIN.to_owned()).await?;
        let admin = admin.ok_or_else(|| {
            StartError::Setting(format!("there is no user {} any more", bootstrap::ADMIN))
        })?;
        let session = identity.open_session(admin.user).await;
        session.map_err(|error| StartError::Setting(error.problem().detail.clone()))
    }

    /// URL of the gateway, and its pin where it is encrypted.
    pub fn gateway_url(&self) -> (String, Option<Pin>) {
        let pin = self.state.encryption.gateway_pin();
        let url = format!("{}://{}", scheme(pin.is_some()), self.gateway);
        (url, pin)
    }

    /// URL of the control plane, and its pin where it is encrypted.
    pub fn control_url(&self) -> (String, Option<Pin>) {
        let pin = self.state.encryption.control_pin();
        let url = format!("{}://{}", scheme(pin.is_some()), self.control);
        (url, pin)
    }

    /// Pre-shared key, for a node in the same process.
    pub fn psk(&self) -> Zeroizing<String> {
        self.state.identity.psk()
    }

    /// Waits until a service ends that should run until shutdown, which is an internal error.
    pub async fn wait_for_failure(&mut self) {
        let (_, index, _) = select_all(&mut self.services).await;
        // A handle that has completed must not be awaited again.
        drop(self.services.swap_remove(index));
    }

    /// Waits until the ends of all followed jobs are stored, at most for `limit`.
    pub async fn wait_idle(&self, limit: Duration) {
        self.state.jobs.background.idle(limit).await;
    }

    /// Waits until the listeners have finished their answers, and closes the database. Running jobs stay on
    /// their nodes; the next start follows them again.
    pub async fn wait_stopped(self) {
        for service in self.services {
            // A panic is logged where it happened.
            let _ = service.await;
        }
        self.state.jobs.background.stop(STOP_TIMEOUT).await;
        usage::write_rest(&self.state).await;
        database::close(&self.state.store).await;
    }
}
