//! The start of a node, as the contract orders it: register → fetch the configuration → start the
//! Worker API → start the model server → acknowledge.
//!
//! [`Node::walk`] is that list. Each step is logged with its duration; one that fails is named, with
//! its cause. Every step can be done again: when the token has ended, the node walks the list once
//! more, and what is in place already stays, running jobs included. It doesn't ask whether the
//! orchestrator still knows it: an answer that says so may have been lost. From the registration on the orchestrator hears that the node lives, however long an image takes.

use super::{
    NodeError, Settings,
    address::Advertised,
    capability::{Machine, no_inference},
    config::{acknowledgement, check, policy},
    gpu,
    inference::{self, Keeper, Plan},
    orchestrator_client::{Session, patiently, pauses},
    state::State,
};
use crate::{
    api::nodes::{Inference, NodeConfig, REPORT_INTERVAL_SECONDS},
    data_dir::DataDir,
    http::client::CallError,
    worker::{self, Access, Bench, Worker},
};
use http::StatusCode;
use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{net::TcpSocket, sync::watch, task::JoinHandle, time::timeout};

/// How long we try to tell the orchestrator why we can't serve, before we end.
const REFUSAL: Duration = Duration::from_secs(15);
/// A machine on its way to being a node, and what it is made of once it is one.
pub(super) struct Node {
    settings: Settings,
    data_dir: DataDir,
    session: Session,
    machine: Machine,
    keeper: Keeper,
    /// The address is known before anybody may call it; taken when the Worker API opens.
    reserved: Option<(Bench, TcpSocket)>,
    address: SocketAddr,
    worker: Option<Worker>,
    inference: watch::Sender<Inference>,
    /// As the configuration says.
    report_interval: Duration,
    watched: Option<Watched>,
    /// Whether the list was walked to its end since the last registration.
    joined: bool,
}

/// A model server that is looked after while this lives.
struct Watched {
    plan: Plan,
    task: JoinHandle<()>,
}

impl Watched {
    /// It should go on for ever.
    fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Watched {
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
        let bench = step("prepare", async {
            Ok::<_, NodeError>(Bench::prepare(data_dir, settings.sandbox.clone()).await?)
        })
        .await?;
        data_dir.update_addresses(|addresses| addresses.worker = None);
        let (socket, address) = worker::reserve(settings.worker_listen)?;
        let advertised = match &settings.advertise_url {
            Some(url) => Advertised::Said(url.clone()),
            None => Advertised::Found {
                bound: address,
                orchestrator: settings.orchestrator.clone(),
            },
        };
        let (inference, told) = watch::channel(no_inference(settings.inference.mode));
        let devices = gpu::look().await;
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
        let machine = Machine::look(
            data_dir,
            &settings,
            bench.engine(),
            advertised,
            devices,
            (told, closing),
        );
        Ok(Self {
            session: Session::new(
                &settings.orchestrator,
                settings.orchestrator_timeout,
                settings.psk.clone(),
                State::open(data_dir)?,
            ),
            keeper: Keeper::new(
                bench.engine(),
                bench.node_uuid(),
                &settings.slug,
                &settings.inference,
                &settings.sandbox.allowed_images,
            ),
            data_dir: data_dir.clone(),
            machine,
            reserved: Some((bench, socket)),
            address,
            worker: None,
            inference,
            report_interval: Duration::from_secs(REPORT_INTERVAL_SECONDS),
            watched: None,
            joined: false,
            settings,
        })
    }

    /// Walks the list, and again from its beginning where the token ends on the way, which may happen
    /// while an image is fetched for hours.
    pub(super) async fn join(&mut self) -> Result<(SocketAddr, Worker), NodeError> {
        let mut pauses = pauses();
        loop {
            match self.walk().await {
                Err(NodeError::Call(error)) if is_unauthorized(&error) => {
                    tracing::warn!(%error, "the token ended during the start; registering again");
                    tokio::time::sleep(pauses.take()).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// The list. An error after the configuration was fetched is acknowledged as `failed`.
    async fn walk(&mut self) -> Result<(SocketAddr, Worker), NodeError> {
        self.joined = false;
        step("register", async {
            patiently!("register", self.session.register(&self.machine))
        })
        .await?;
        let config = step("fetch the configuration", async {
            patiently!("fetch the configuration", self.session.config())
        })
        .await?;
        self.report_interval = config.report_interval();
        let applied = async {
            check(&config)?;
            let worker = step("start the Worker API", self.serve(&config)).await?;
            self.infer(&config).await?;
            Ok(worker)
        };
        match applied.await {
            Ok(worker) => {
                step("acknowledge", self.acknowledge(&config)).await?;
                self.joined = true;
                Ok((self.address, worker))
            }
            Err(error) => {
                self.refuse(&config, &error).await;
                Err(error)
            }
        }
    }

    /// Opens the Worker API for whoever shows the delivered token; one that is open goes over to it.
    async fn serve(&mut self, config: &NodeConfig) -> Result<Worker, NodeError> {
        let access = Access {
            token: config.worker_api.orchestrator_bearer_token.clone().into(),
            orchestrator: config.orchestrator_id.clone(),
            policy: policy(config),
        };
        if let Some((bench, socket)) = self.reserved.take() {
            let public_url = self.settings.advertise_url.as_deref();
            let worker = bench.open(socket.listen(1024)?, access, public_url);
            self.machine.set_worker(&worker);
            let address = self.address;
            self.data_dir
                .update_addresses(|addresses| addresses.worker = Some(address));
            self.worker = Some(worker);
        } else if let Some(worker) = &self.worker {
            worker.renew(access);
        }
        self.worker.clone().ok_or(NodeError::Stopped)
    }

    /// Brings the model server up where one is wanted, and takes away what is not wanted any more.
    async fn infer(&mut self, config: &NodeConfig) -> Result<(), NodeError> {
        let backend = config.inference_backend.as_ref();
        let usable = gpu::usable(self.machine.gpus());
        let Some(plan) = inference::plan(&self.settings.inference, backend, &usable).transpose()
        else {
            self.stop_server().await;
            return Ok(());
        };
        step("start the model server", async {
            self.start_server(plan?).await
        })
        .await
    }

    /// Takes away a model server that was wanted before.
    async fn stop_server(&mut self) {
        self.watched = None;
        self.inference.send_replace(Inference {
            supported: false,
            ..no_inference(self.settings.inference.mode)
        });
        if let Err(error) = self.keeper.remove_all_but(None).await {
            tracing::warn!(%error, "a model server of before may be left; see podman ps --all");
        }
    }

    async fn start_server(&mut self, plan: Plan) -> Result<(), NodeError> {
        if self.watched.as_ref().map(|watched| &watched.plan) == Some(&plan) {
            // It is looked after already.
            return Ok(());
        }
        self.watched = None;
        self.inference.send_replace(Inference {
            supported: true,
            ..no_inference(self.settings.inference.mode)
        });
        let origin = self.while_reporting(self.keeper.bring_up(&plan)).await?;
        let models = self.keeper.models(&plan).await;
        let task = inference::watch(
            self.keeper.clone(),
            plan.clone(),
            origin,
            self.inference.clone(),
        );
        self.inference.send_modify(|inference| {
            inference.running = Some(true);
            inference.models = models;
            inference.existing_service = Some(origin == inference::Origin::Existing);
        });
        let task = tokio::spawn(task);
        self.watched = Some(Watched { plan, task });
        Ok(())
    }

    /// Says that all of the configuration is in force; how the machine is now comes before it.
    async fn acknowledge(&mut self, config: &NodeConfig) -> Result<(), NodeError> {
        let ack = acknowledgement(&self.settings.slug, config, None);
        patiently!("acknowledge", self.session.report(&self.machine))?;
        patiently!("acknowledge", self.session.acknowledge(&ack))
    }

    /// Says that it is not, and why; we can't wait for ever for somebody to hear it.
    async fn refuse(&self, config: &NodeConfig, error: &NodeError) {
        let ack = acknowledgement(&self.settings.slug, config, Some(error));
        let told = timeout(REFUSAL, async {
            patiently!("acknowledge", self.session.acknowledge(&ack))
        });
        match told.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the orchestrator did not take our refusal"),
            Err(_) => tracing::warn!("the orchestrator could not be told why this node ends"),
        }
    }

    /// Does `work`, however long it takes, while the orchestrator goes on hearing of us.
    async fn while_reporting<T>(&self, work: impl Future<Output = T>) -> T {
        let beat = async {
            loop {
                tokio::time::sleep(self.report_interval).await;
                if let Err(error) = self.session.report(&self.machine).await {
                    tracing::debug!(%error, "a report was not taken");
                }
            }
        };
        tokio::select! {
            done = work => done,
            () = beat => unreachable!("reports go on until the work is done"),
        }
    }

    /// Tells the orchestrator how this machine is; walks the list again where it isn't known any more.
    pub(super) async fn report(&mut self) -> Result<(), NodeError> {
        let refused = match self.session.report(&self.machine).await {
            Err(NodeError::Call(error)) if is_unauthorized(&error) => true,
            outcome => outcome.map(|()| false)?,
        };
        if self.watched.as_ref().is_some_and(Watched::is_over) {
            tracing::error!(
                "looking after the model server has ended by itself; the lines above say where"
            );
            self.watched = None;
            self.joined = false;
        }
        if self.joined && !refused && !self.session.has_ended() {
            return Ok(());
        }
        if refused || self.session.has_ended() {
            tracing::info!("the node's token is not accepted any more; registering again");
        }
        self.join().await.map(drop)
    }

    /// How often the orchestrator wants to hear of this node.
    pub(super) const fn report_interval(&self) -> Duration {
        self.report_interval
    }

    pub(super) fn slug(&self) -> &str {
        &self.settings.slug
    }

    pub(super) fn keeper(&self) -> Keeper {
        self.keeper.clone()
    }

    /// Hears when a report about the worker would say something else.
    pub(super) fn worker_changes(&self) -> watch::Receiver<()> {
        let worker = self.worker.as_ref();
        worker.map_or_else(|| watch::channel(()).1, Worker::changes)
    }

    /// Hears when the model server changes.
    pub(super) fn changes(&self) -> watch::Receiver<Inference> {
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
