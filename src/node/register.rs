//! The start of a node, as the contract orders it: register → fetch the configuration → start the
//! Worker API → start the model server → acknowledge.
//!
//! [`Node::run_startup_steps`] is that list. Each step is logged with its duration; one that fails is named, with
//! its cause. Every step can be done again: when the token has ended, the node walks the list once
//! more, and what is in place already stays, running jobs included. It doesn't ask whether the
//! orchestrator still knows it: an answer that says so may have been lost. From the registration on the orchestrator hears that the node lives, however long an image takes.

use super::{
    NodeError, Settings,
    address::AdvertisedUrl,
    capability::{Machine, initial_inference},
    config::{build_ack, policy_from, validate},
    gpu,
    inference::{self, ModelServerManager, Plan},
    orchestrator_client::{OrchestratorClient, retry_backoff, retry_transient},
    state_files::StateFiles,
};
use crate::{
    api::nodes::{Inference, NodeConfig, REPORT_INTERVAL_SECONDS},
    background,
    data_dir::DataDir,
    http::client::CallError,
    worker::{self, AccessGrant, PreparedWorker, Worker},
};
use http::StatusCode;
use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{net::TcpSocket, sync::watch, task::JoinHandle, time::timeout};

/// How long we try to tell the orchestrator why we can't serve, before we end.
const FAILED_ACK_TIMEOUT: Duration = Duration::from_secs(15);
/// A machine on its way to being a node, and what it is made of once it is one.
pub(super) struct Node {
    settings: Settings,
    data_dir: DataDir,
    orchestrator: OrchestratorClient,
    machine: Machine,
    model_server: ModelServerManager,
    /// The address is known before anybody may call it; taken when the Worker API opens.
    reserved: Option<(PreparedWorker, TcpSocket)>,
    address: SocketAddr,
    worker: Option<Worker>,
    inference: watch::Sender<Inference>,
    /// As the configuration says.
    report_interval: Duration,
    monitor: Option<ServerMonitor>,
    /// Whether the list was walked to its end since the last registration.
    startup_complete: bool,
}

/// A model server that is looked after while this lives.
struct ServerMonitor {
    plan: Plan,
    task: JoinHandle<()>,
}

impl ServerMonitor {
    /// It should go on for ever.
    fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for ServerMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    /// Finds out what this machine can do; nobody hears of it yet.
    pub(super) async fn prepare(
        data_dir: &DataDir,
        settings: Settings,
        closing: watch::Receiver<bool>,
    ) -> Result<Self, NodeError> {
        let prepared = step("prepare", async {
            Ok::<_, NodeError>(PreparedWorker::prepare(data_dir, settings.sandbox.clone()).await?)
        })
        .await?;
        data_dir.update_addresses(|addresses| addresses.worker = None);
        let (socket, address) = worker::reserve(settings.worker_listen)?;
        let advertised = match &settings.advertise_url {
            Some(url) => AdvertisedUrl::Configured(url.clone()),
            None => AdvertisedUrl::Detected {
                bound: address,
                orchestrator: settings.orchestrator.clone(),
            },
        };
        let (inference, told) = watch::channel(initial_inference(settings.inference.mode));
        let devices = gpu::detect().await;
        for device in &devices {
            let [vendor, model] =
                [&device.vendor, &device.model].map(|text| text.as_deref().unwrap_or_default());
            tracing::info!(
                vendor,
                model,
                vram_mb = device.vram_mb,
                "a graphics processor was found"
            );
        }
        let machine = Machine::inspect(
            data_dir,
            &settings,
            prepared.engine(),
            advertised,
            devices,
            (told, closing),
        );
        Ok(Self {
            orchestrator: OrchestratorClient::new(
                &settings.orchestrator,
                settings.orchestrator_timeout,
                settings.psk.clone(),
                StateFiles::open(data_dir)?,
            ),
            model_server: ModelServerManager::new(
                prepared.engine(),
                prepared.node_uuid(),
                &settings.slug,
                &settings.inference,
                &settings.sandbox.allowed_images,
            ),
            data_dir: data_dir.clone(),
            machine,
            reserved: Some((prepared, socket)),
            address,
            worker: None,
            inference,
            report_interval: Duration::from_secs(REPORT_INTERVAL_SECONDS),
            monitor: None,
            startup_complete: false,
            settings,
        })
    }

    /// Walks the list, and again from its beginning where the token ends on the way, which may happen
    /// while an image is fetched for hours.
    pub(super) async fn run_startup(&mut self) -> Result<(SocketAddr, Worker), NodeError> {
        let mut backoff = retry_backoff();
        loop {
            match self.run_startup_steps().await {
                Err(NodeError::Call(error)) if is_unauthorized(&error) => {
                    tracing::warn!(%error, "the token ended during the start; registering again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// The list. An error after the configuration was fetched is acknowledged as `failed`.
    async fn run_startup_steps(&mut self) -> Result<(SocketAddr, Worker), NodeError> {
        self.startup_complete = false;
        step("register", async {
            retry_transient!("register", self.orchestrator.register(&self.machine))
        })
        .await?;
        let config = step("fetch the configuration", async {
            retry_transient!("fetch the configuration", self.orchestrator.fetch_config())
        })
        .await?;
        self.report_interval = config.report_interval();
        let applied = async {
            validate(&config)?;
            let worker = step("start the Worker API", self.start_worker_api(&config)).await?;
            self.apply_inference(&config).await?;
            Ok(worker)
        };
        match applied.await {
            Ok(worker) => {
                step("acknowledge", self.acknowledge(&config)).await?;
                self.startup_complete = true;
                Ok((self.address, worker))
            }
            Err(error) => {
                self.acknowledge_failure(&config, &error).await;
                Err(error)
            }
        }
    }

    /// Opens the Worker API for whoever shows the delivered token; one that is open goes over to it.
    async fn start_worker_api(&mut self, config: &NodeConfig) -> Result<Worker, NodeError> {
        let access = AccessGrant {
            token: config.worker_api.orchestrator_bearer_token.clone().into(),
            orchestrator: config.orchestrator_id.clone(),
            policy: policy_from(config),
        };
        if let Some((prepared, socket)) = self.reserved.take() {
            let public_url = self.settings.advertise_url.as_deref();
            let worker = prepared.serve(socket.listen(1024)?, access, public_url);
            self.machine.set_worker(&worker);
            let address = self.address;
            self.data_dir
                .update_addresses(|addresses| addresses.worker = Some(address));
            self.worker = Some(worker);
        } else if let Some(worker) = &self.worker {
            worker.set_access(access);
        }
        self.worker.clone().ok_or(NodeError::Stopped)
    }

    /// Brings the model server up where one is wanted, and takes away what is not wanted any more.
    async fn apply_inference(&mut self, config: &NodeConfig) -> Result<(), NodeError> {
        let backend = config.inference_backend.as_ref();
        let usable = gpu::usable_vendors(self.machine.gpus());
        let Some(plan) = inference::plan(&self.settings.inference, backend, &usable).transpose()
        else {
            self.stop_model_server().await;
            return Ok(());
        };
        step("start the model server", async {
            self.start_model_server(plan?).await
        })
        .await
    }

    /// Takes away a model server that was wanted before.
    async fn stop_model_server(&mut self) {
        self.monitor = None;
        self.inference.send_replace(Inference {
            supported: false,
            ..initial_inference(self.settings.inference.mode)
        });
        if let Err(error) = self.model_server.remove_all_except(None).await {
            tracing::warn!(%error, "a model server of before may be left; see podman ps --all");
        }
    }

    async fn start_model_server(&mut self, plan: Plan) -> Result<(), NodeError> {
        if self.monitor.as_ref().map(|monitor| &monitor.plan) == Some(&plan) {
            // It is looked after already.
            return Ok(());
        }
        self.monitor = None;
        self.inference.send_replace(Inference {
            supported: true,
            ..initial_inference(self.settings.inference.mode)
        });
        let source = self
            .with_heartbeat(self.model_server.ensure_running(&plan))
            .await?;
        let models = self.model_server.models(&plan).await;
        let task = inference::run_monitor(
            self.model_server.clone(),
            plan.clone(),
            source,
            self.inference.clone(),
        );
        self.inference.send_modify(|inference| {
            inference.running = Some(true);
            inference.models = models;
            inference.existing_service = Some(source == inference::Source::External);
        });
        let task = background::spawn("monitor_model_server", task);
        self.monitor = Some(ServerMonitor { plan, task });
        Ok(())
    }

    /// Says that all of the configuration is in force; how the machine is now comes before it.
    async fn acknowledge(&mut self, config: &NodeConfig) -> Result<(), NodeError> {
        let ack = build_ack(&self.settings.slug, config, None);
        retry_transient!("acknowledge", self.orchestrator.send_report(&self.machine))?;
        retry_transient!("acknowledge", self.orchestrator.acknowledge(&ack))
    }

    /// Says that it is not, and why; we can't wait for ever for somebody to hear it.
    async fn acknowledge_failure(&self, config: &NodeConfig, error: &NodeError) {
        let ack = build_ack(&self.settings.slug, config, Some(error));
        let told = timeout(FAILED_ACK_TIMEOUT, async {
            retry_transient!("acknowledge", self.orchestrator.acknowledge(&ack))
        });
        match told.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the orchestrator did not take our refusal"),
            Err(_) => tracing::warn!("the orchestrator could not be told why this node ends"),
        }
    }

    /// Does `work`, however long it takes, while the orchestrator goes on hearing of us.
    async fn with_heartbeat<T>(&self, work: impl Future<Output = T>) -> T {
        let heartbeat = async {
            loop {
                tokio::time::sleep(self.report_interval).await;
                if let Err(error) = self.orchestrator.send_report(&self.machine).await {
                    tracing::debug!(%error, "a report was not taken");
                }
            }
        };
        tokio::select! {
            done = work => done,
            () = heartbeat => unreachable!("reports go on until the work is done"),
        }
    }

    /// Tells the orchestrator how this machine is; walks the list again where it isn't known any more.
    pub(super) async fn heartbeat(&mut self) -> Result<(), NodeError> {
        let refused = match self.orchestrator.send_report(&self.machine).await {
            Err(NodeError::Call(error)) if is_unauthorized(&error) => true,
            outcome => outcome.map(|()| false)?,
        };
        if self.monitor.as_ref().is_some_and(ServerMonitor::has_ended) {
            tracing::error!(
                "looking after the model server has ended by itself; the lines above say where"
            );
            self.monitor = None;
            self.startup_complete = false;
        }
        if self.startup_complete && !refused && !self.orchestrator.is_token_expired() {
            return Ok(());
        }
        if refused || self.orchestrator.is_token_expired() {
            tracing::info!("the node's token is not accepted any more; registering again");
        }
        self.run_startup().await.map(drop)
    }

    /// How often the orchestrator wants to hear of this node.
    pub(super) const fn report_interval(&self) -> Duration {
        self.report_interval
    }

    pub(super) fn slug(&self) -> &str {
        &self.settings.slug
    }

    pub(super) fn model_server(&self) -> ModelServerManager {
        self.model_server.clone()
    }

    /// Hears when a report about the worker would say something else.
    pub(super) fn worker_changes(&self) -> watch::Receiver<()> {
        let worker = self.worker.as_ref();
        worker.map_or_else(|| watch::channel(()).1, Worker::subscribe_changes)
    }

    /// Hears when the model server changes.
    pub(super) fn inference_changes(&self) -> watch::Receiver<Inference> {
        self.inference.subscribe()
    }
}

fn is_unauthorized(error: &CallError) -> bool {
    error.status() == Some(StatusCode::UNAUTHORIZED)
}

/// Runs one step of the start and logs how long it took. A failure names the step only: its cause is
/// reported once, by the caller that ends or retries.
async fn step<T>(
    name: &str,
    work: impl Future<Output = Result<T, NodeError>>,
) -> Result<T, NodeError> {
    let began = Instant::now();
    let outcome = work.await;
    let millis = began.elapsed().as_millis() as u64;
    match &outcome {
        Ok(_) => tracing::info!(step = name, millis, "done"),
        Err(_) => tracing::warn!(step = name, millis, "failed"),
    }
    outcome
}
