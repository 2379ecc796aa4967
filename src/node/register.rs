//! Start of a node, as the contract orders it: register → fetch the configuration → start the Worker API →
//! start the model server → acknowledge.
//!
//! [`Node::run_steps`] is that list. Each step is logged with its duration and can be repeated: when the token
//! expires, the node runs all steps again, and what is in place stays, running jobs included. It does not
//! rely on the orchestrator's memory, because an answer may have been lost. From the registration on, the
//! orchestrator receives heartbeats, however long an image takes to pull.

mod ways;

use super::{
    NodeError, Settings,
    address::AdvertisedUrl,
    capability::{Machine, initial_inference},
    config::{build_ack, policy_from, validate},
    gpu,
    heartbeat::report_while,
    inference::{self, LocalModelServer, ModelServerManager, Plan},
    orchestrator_client::{OrchestratorClient, is_transient, retry_backoff},
    state_files::StateFiles,
    trust::trust,
    tunnel::{Tunnel, TunnelState},
};
use crate::{
    api::nodes::{ConfigAck, GpuDevice, GpuShare, Inference, NodeConfig, REPORT_INTERVAL_SECONDS},
    data_dir::DataDir,
    http::client::CallError,
    retry::retry_if,
    worker::{self, AccessGrant, PreparedWorker, Worker},
};
use http::StatusCode;
use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{net::TcpSocket, sync::watch, time::timeout};

/// Time limit for reporting a failed start to the orchestrator, before the node ends.
const FAILED_ACK_TIMEOUT: Duration = Duration::from_secs(15);
/// Age from which on a token that only the tunnel does not accept is replaced: something in between may answer 401.
const MIN_REGISTRATION_AGE: Duration = Duration::from_secs(30);
/// Connections that may wait to be accepted by the Worker API.
const LISTEN_BACKLOG: u32 = 1024;

/// A node that starts, and the parts of a node that has started.
pub(super) struct Node {
    settings: Settings,
    data_dir: DataDir,
    orchestrator: OrchestratorClient,
    machine: Machine,
    model_server: LocalModelServer,
    /// Worker, until it starts.
    prepared: Option<PreparedWorker>,
    /// Socket of the Worker API, bound, until it listens. The address is reported before that.
    socket: Option<TcpSocket>,
    address: SocketAddr,
    is_listening: bool,
    worker: Option<Worker>,
    tunnel: Option<Tunnel>,
    /// State of all tunnels of this process, one after the other.
    tunnel_state: watch::Sender<TunnelState>,
    /// Time at which nothing opened the tunnel that the orchestrator offers; `None` where something does.
    tunnel_missed_at: Option<Instant>,
    report_interval: Duration,
    registered_at: Instant,
    /// Whether all steps succeeded since the last registration.
    is_started: bool,
}

impl Node {
    /// Prepares the machine and finds its capabilities. The orchestrator is not called yet.
    pub(super) async fn prepare(
        data_dir: &DataDir,
        settings: Settings,
        closing: watch::Receiver<bool>,
    ) -> Result<Self, NodeError> {
        let mut prepared = step("prepare", async {
            Ok::<_, NodeError>(PreparedWorker::prepare(data_dir, settings.sandbox.clone()).await?)
        })
        .await?;
        data_dir.update_addresses(|addresses| addresses.worker = None);
        let state = StateFiles::open(data_dir)?;
        let (socket, address) = reserve(&settings, &state)?;
        let advertised = match &settings.advertise_url {
            Some(url) => AdvertisedUrl::Configured(url.clone()),
            None => AdvertisedUrl::Detected {
                bound: address,
                orchestrator: settings.orchestrator.clone(),
            },
        };
        let manager = ModelServerManager::new(
            prepared.engine(),
            prepared.node_uuid(),
            &settings.slug,
            &settings.inference,
            &settings.sandbox.allowed_images,
        );
        let devices = gpu::detect().await;
        let initial = initial_inference(settings.inference.mode, !devices.is_empty());
        let model_server = LocalModelServer::new(manager, initial);
        if let Some(address) = inference::existing_address(&settings.inference) {
            model_server.look_for_existing(address).await;
        }
        devices.iter().for_each(log_device);
        prepared.offer_gpus(gpu::candidates(&devices)).await;
        let machine = Machine::inspect(
            data_dir,
            &settings,
            &prepared,
            (advertised, socket.is_some()),
            devices,
            (model_server.subscribe(), closing),
        );
        Ok(Self {
            orchestrator: OrchestratorClient::new(
                &settings.orchestrator,
                trust(&settings, &state)?,
                settings.orchestrator_timeout,
                (settings.psk.clone(), settings.token_pin.clone()),
                state,
            ),
            model_server,
            data_dir: data_dir.clone(),
            machine,
            prepared: Some(prepared),
            socket,
            address,
            is_listening: false,
            worker: None,
            tunnel: None,
            tunnel_state: watch::Sender::new(TunnelState::Connecting),
            tunnel_missed_at: None,
            report_interval: Duration::from_secs(REPORT_INTERVAL_SECONDS),
            registered_at: Instant::now(),
            is_started: false,
            settings,
        })
    }

    /// Runs the steps, and again from the first where the token expires meanwhile, as it may while an image is
    /// pulled for hours.
    pub(super) async fn start(&mut self) -> Result<(Option<SocketAddr>, Worker), NodeError> {
        let mut backoff = retry_backoff();
        loop {
            match self.run_steps().await {
                Err(NodeError::Call(error)) if is_unauthorized(&error) => {
                    tracing::warn!(%error, "token expired during the start; registering again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// The steps. A failure after the configuration was fetched is acknowledged as `failed`.
    async fn run_steps(&mut self) -> Result<(Option<SocketAddr>, Worker), NodeError> {
        self.is_started = false;
        step("register", self.register()).await?;
        self.check_offer()?;
        let config = step("fetch the configuration", self.fetch_config()).await?;
        match self.apply(&config).await {
            Ok(worker) => {
                step("acknowledge", self.acknowledge(&config)).await?;
                self.is_started = true;
                let address = self.is_listening.then_some(self.address);
                Ok((address, worker))
            }
            Err(error) => {
                self.acknowledge_failure(&config, &error).await;
                Err(error)
            }
        }
    }

    async fn register(&mut self) -> Result<(), NodeError> {
        let register = || self.orchestrator.register(&self.machine);
        let registered = retry_if(retry_backoff(), "register", is_transient, register).await;
        let registration = registered.map_err(|error| match error {
            NodeError::WrongPsk if self.settings.is_join_token => NodeError::WrongJoinToken,
            NodeError::TlsOnly { url } if self.settings.is_join_token => {
                NodeError::PlainJoinToken { url }
            }
            error => error,
        })?;
        self.orchestrator.set_registration(registration);
        self.registered_at = Instant::now();
        Ok(())
    }

    async fn fetch_config(&mut self) -> Result<NodeConfig, NodeError> {
        let fetch = || self.orchestrator.fetch_config();
        let what = "fetch the configuration";
        let config = retry_if(retry_backoff(), what, is_transient, fetch).await?;
        self.report_interval = config.report_interval();
        Ok(config)
    }

    /// Applies a configuration: the Worker API first, then the model server.
    async fn apply(&mut self, config: &NodeConfig) -> Result<Worker, NodeError> {
        validate(config)?;
        let worker = step("start the Worker API", self.start_worker_api(config)).await?;
        let plan = self.plan_model_server(config);
        worker.reserve_gpus(self.reserved_vendor(plan.as_ref().ok().and_then(Option::as_ref)));
        match plan.transpose() {
            None => match inference::existing_address(&self.settings.inference) {
                None => self.model_server.stop(&worker).await,
                Some(address) => self.model_server.use_existing(address, &worker).await,
            },
            Some(plan) => {
                step("start the model server", async {
                    self.start_model_server(plan?, &worker).await
                })
                .await?;
            }
        }
        Ok(worker)
    }

    /// Starts the Worker API for callers with the delivered token, and opens the ways to it. A running one switches to that
    /// token.
    async fn start_worker_api(&mut self, config: &NodeConfig) -> Result<Worker, NodeError> {
        let access = AccessGrant {
            token: config.worker_api.orchestrator_bearer_token.clone().into(),
            orchestrator: config.orchestrator_id.clone(),
            policy: policy_from(config),
        };
        if let Some(prepared) = self.prepared.take() {
            let worker = prepared.start(access, self.orchestrator.models());
            self.machine.set_worker(&worker);
            self.worker = Some(worker);
        } else if let Some(worker) = &self.worker {
            worker.set_access(access, self.orchestrator.models());
        }
        let worker = self.worker.clone().ok_or(NodeError::Stopped)?;
        self.open_ways(&worker).await?;
        Ok(worker)
    }

    /// The model server that this node has to run, if any.
    fn plan_model_server(&self, config: &NodeConfig) -> Result<Option<Plan>, NodeError> {
        let devices = self.machine.gpus();
        let usable = gpu::usable_vendors(devices);
        let backend = config.inference_backend.as_ref();
        let settings = &self.settings.inference;
        Ok(inference::plan(settings, backend, devices, &usable)?)
    }

    /// Vendor whose GPUs are the model server's alone.
    fn reserved_vendor(&self, plan: Option<&Plan>) -> Option<&'static str> {
        let is_exclusive = self.settings.inference.gpu_share == GpuShare::Exclusive;
        let vendor = plan.filter(|_| is_exclusive)?.accelerator();
        vendor.map(gpu::Vendor::as_str)
    }

    async fn start_model_server(&mut self, plan: Plan, worker: &Worker) -> Result<(), NodeError> {
        let start = self.model_server.start(plan, worker);
        let (orchestrator, machine) = (&self.orchestrator, &self.machine);
        Ok(report_while(orchestrator, machine, self.report_interval, start).await?)
    }

    /// Acknowledges the configuration as applied. The current report goes first.
    async fn acknowledge(&self, config: &NodeConfig) -> Result<(), NodeError> {
        let report = || self.orchestrator.send_report(&self.machine);
        retry_if(retry_backoff(), "report", is_transient, report).await?;
        self.send_ack(&build_ack(&self.settings.slug, config, None))
            .await
    }

    /// Acknowledges the configuration as failed, with the reason, unless the orchestrator is unreachable.
    async fn acknowledge_failure(&self, config: &NodeConfig, error: &NodeError) {
        let ack = build_ack(&self.settings.slug, config, Some(error));
        match timeout(FAILED_ACK_TIMEOUT, self.send_ack(&ack)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "orchestrator rejected the report of the failed start");
            }
            Err(_) => tracing::warn!("failed start could not be reported to the orchestrator"),
        }
    }

    async fn send_ack(&self, ack: &ConfigAck) -> Result<(), NodeError> {
        let acknowledge = || self.orchestrator.acknowledge(ack);
        retry_if(retry_backoff(), "acknowledge", is_transient, acknowledge).await
    }

    /// Sends a report; starts again where the orchestrator does not accept the token, or the monitor of the model
    /// server has failed.
    pub(super) async fn heartbeat(&mut self) -> Result<(), NodeError> {
        let is_refused = match self.orchestrator.send_report(&self.machine).await {
            Err(NodeError::Call(error)) if is_unauthorized(&error) => true,
            outcome => outcome.map(|()| false)?,
        };
        if self.model_server.take_failed_monitor() {
            self.is_started = false;
        }
        let tunnel = self.tunnel_state.borrow().clone();
        if matches!(tunnel, TunnelState::Unsupported(_)) || self.is_tunnel_back().await {
            // It may offer none now, or one again.
            self.is_started = false;
        }
        let is_settled = self.registered_at.elapsed() >= MIN_REGISTRATION_AGE;
        let is_refused = is_refused || (is_settled && tunnel == TunnelState::Unauthorized);
        let has_token = !is_refused && !self.orchestrator.is_token_expired();
        if self.is_started && has_token {
            return Ok(());
        }
        if !has_token {
            tracing::info!("token of this node is not valid any more; registering again");
        }
        self.start().await.map(drop)
    }

    /// Interval of heartbeats, from the configuration.
    pub(super) const fn report_interval(&self) -> Duration {
        self.report_interval
    }

    pub(super) fn slug(&self) -> &str {
        &self.settings.slug
    }

    /// Ends the monitor of the model server, so that none is started any more.
    pub(super) async fn end_model_server_monitor(&mut self) {
        self.model_server.end_monitor().await;
    }

    pub(super) fn model_server_manager(&self) -> ModelServerManager {
        self.model_server.manager()
    }

    /// Changes of the worker that belong into a report.
    pub(super) fn worker_changes(&self) -> watch::Receiver<()> {
        let worker = self.worker.as_ref();
        worker.map_or_else(|| watch::channel(()).1, Worker::subscribe_changes)
    }

    /// Changes of the tunnel.
    pub(super) fn tunnel_changes(&self) -> watch::Receiver<TunnelState> {
        self.tunnel_state.subscribe()
    }

    /// Changes of the model server.
    pub(super) fn inference_changes(&self) -> watch::Receiver<Inference> {
        self.model_server.subscribe()
    }
}

/// Socket of the Worker API, bound but not listening, where this node will probably listen; and its address.
fn reserve(
    settings: &Settings,
    state: &StateFiles,
) -> Result<(Option<TcpSocket>, SocketAddr), NodeError> {
    let address = settings.listen_address();
    if settings.always_listens() {
        let (socket, bound) = worker::reserve(address)?;
        return Ok((Some(socket), bound));
    }
    // Its first report has the address, so that running jobs are followed without a gap. Whether the port is needed shows
    // later.
    let reserved = state.lacked_tunnel().then(|| worker::reserve(address).ok());
    Ok(match reserved.flatten() {
        Some((socket, bound)) => (Some(socket), bound),
        None => (None, address),
    })
}

fn is_unauthorized(error: &CallError) -> bool {
    error.status() == Some(StatusCode::UNAUTHORIZED)
}

/// Runs one step of the start and logs its duration. A failure names the step only: its cause is logged once,
/// by the caller that ends or retries.
async fn step<T>(
    name: &str,
    work: impl Future<Output = Result<T, NodeError>>,
) -> Result<T, NodeError> {
    let started = Instant::now();
    let outcome = work.await;
    let millis = started.elapsed().as_millis() as u64;
    match &outcome {
        Ok(_) => tracing::info!(step = name, millis, "startup step done"),
        Err(_) => tracing::warn!(step = name, millis, "startup step failed"),
    }
    outcome
}

fn log_device(device: &GpuDevice) {
    let [vendor, model] =
        [&device.vendor, &device.model].map(|text| text.as_deref().unwrap_or_default());
    tracing::info!(vendor, model, vram_mb = device.vram_mb, "GPU found");
}
