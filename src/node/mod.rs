//! Role `node`: joins this machine to an orchestrator, and serves it sandboxes.
//!
//! [`run`] is the start as the contract orders it: look at the machine, register, fetch the
//! configuration, open the Worker API with the delivered token, acknowledge; then a report
//! every ten seconds. The node uses the URLs that it was given and no path of its own.

mod capability;
pub mod gpu;
mod orchestrator_client;

use crate::{
    api::{
        PAYLOAD_VERSION,
        nodes::{AckError, AckStatus, ConfigAck, NodeConfig, check_label, check_slug, check_url},
        problem::Problem,
        time::Time,
    },
    data_dir::DataDir,
    digest::sha256_hex,
    engine::EngineError,
    http::{
        client::CallError,
        resolve,
        server::{Shutdown, ended},
    },
    worker::{self, Bench, Policy, Worker},
};
use capability::Machine;
use orchestrator_client::{Session, patiently};
use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

const HEARTBEAT: Duration = Duration::from_secs(10);

/// Whether this node runs a model server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum InferenceMode {
    /// As the orchestrator's configuration says.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What the operator says.
pub struct Settings {
    /// The control plane.
    pub orchestrator: String,
    /// The pre-shared key.
    pub psk: Zeroizing<String>,
    /// This machine's name in commands.
    pub slug: String,
    /// Its name for people.
    pub name: Option<String>,
    /// What tasks may ask for.
    pub labels: Vec<String>,
    /// Where the Worker API listens.
    pub worker_listen: SocketAddr,
    /// Where the orchestrator is to call it; found out when `None`.
    pub advertise_url: Option<String>,
    /// Whether to run a model server.
    pub inference: InferenceMode,
    /// What the operator says about sandboxes.
    pub sandbox: worker::Settings,
}

/// Why a node did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The orchestrator doesn't know the pre-shared key.
    #[error(
        "the orchestrator refuses the pre-shared key; it is in keys/psk of the orchestrator's data directory"
    )]
    WrongPsk,
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// podman can't run sandboxes.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Files or sockets.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The orchestrator refused, or answered what isn't in the contract.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Inference is wanted, and can't be.
    #[error(
        "inference is wanted, and this release can't run it; start the node with --inference off, or the orchestrator without --inference-image"
    )]
    NoInference,
    /// The node was told to end before its start was through.
    #[error("stopped before the node was ready")]
    Stopped,
}

/// A node that serves.
pub struct Running {
    /// Where its Worker API listens.
    pub worker_address: SocketAddr,
    worker: Worker,
    heart: tokio::task::JoinHandle<()>,
}

impl Settings {
    fn check(&self) -> Result<(), NodeError> {
        let flag = |flag: &str, checked: Result<(), Problem>| {
            checked.map_err(|problem| NodeError::Setting(format!("{flag} {}", problem.detail)))
        };
        flag("--slug", check_slug("", &self.slug))?;
        flag("--orchestrator", check_url("", &self.orchestrator))?;
        for label in &self.labels {
            flag(&format!("--label {label:?}"), check_label("", label))?;
        }
        if let Some(url) = &self.advertise_url {
            flag("--advertise-url", check_url("", url))?;
        }
        if self.inference == InferenceMode::On {
            return Err(NodeError::NoInference);
        }
        Ok(())
    }
}

/// Starts a node, step by step; returns once the orchestrator may give it jobs.
pub async fn start(
    data_dir: &DataDir,
    settings: Settings,
    shutdown: Shutdown,
) -> Result<Running, NodeError> {
    settings.check()?;
    let bench = step(
        "look at the engine",
        Bench::prepare(data_dir, settings.sandbox.clone()),
    )
    .await?;
    data_dir.update_addresses(|addresses| addresses.worker = None)?;
    let (socket, bound) = worker::reserve(settings.worker_listen)?;
    let base_url = match &settings.advertise_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!(
            "http://{}",
            SocketAddr::new(
                own_address(bound, &settings.orchestrator).await?,
                bound.port()
            )
        ),
    };
    let devices = gpu::look().await;
    let machine = Machine::look(data_dir, &settings, bench.engine(), base_url, devices);

    let mut session = Session::new(&settings.orchestrator, settings.psk.clone());
    let started = async {
        step("register", async {
            patiently!("register", session.register(&machine))
        })
        .await?;
        let config = step("fetch the configuration", async {
            patiently!("fetch the configuration", session.config())
        })
        .await?;
        let listener = socket.listen(1024)?;
        let worker = bench.open(
            listener,
            &config.worker_api.orchestrator_bearer_token,
            policy(&config),
        );
        data_dir.update_addresses(|addresses| addresses.worker = Some(bound))?;
        if wants_inference(settings.inference, &config) {
            let refusal = acknowledgement(
                &settings.slug,
                &config,
                Some(NodeError::NoInference.to_string()),
            );
            patiently!("acknowledge", session.acknowledge(&refusal))?;
            return Err(NodeError::NoInference);
        }
        let applied = acknowledgement(&settings.slug, &config, None);
        step("acknowledge", async {
            patiently!("acknowledge", session.acknowledge(&applied))
        })
        .await?;
        Ok(worker)
    };
    let worker = tokio::select! {
        worker = started => worker?,
        () = ended(shutdown.clone()) => return Err(NodeError::Stopped),
    };
    tracing::info!(slug = settings.slug, worker = %bound, "the node takes jobs");
    let heart = tokio::spawn(beat(session, machine, shutdown));
    Ok(Running {
        worker_address: bound,
        worker,
        heart,
    })
}

impl Running {
    /// Takes no new job and waits up to `grace` for those that run. With `cancel` the rest is
    /// canceled; without, it ends with this process, and the orchestrator hears of it at the next start.
    pub async fn close(self, grace: Duration, cancel: bool) {
        self.worker.close(grace, cancel).await;
        self.heart.abort();
    }
}

/// Runs one step of the start and logs how long it took; a failure names the step.
async fn step<T, E: std::fmt::Display>(
    name: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let began = Instant::now();
    let outcome = work.await;
    let millis = began.elapsed().as_millis() as u64;
    match &outcome {
        Ok(_) => tracing::info!(step = name, millis, "done"),
        Err(error) => tracing::error!(step = name, millis, %error, "failed"),
    }
    outcome
}

/// The address of ours that the orchestrator can call: the one we listen on, or, where that is all
/// of them, the one that leads to the orchestrator.
async fn own_address(bound: SocketAddr, orchestrator: &str) -> Result<IpAddr, NodeError> {
    if !bound.ip().is_unspecified() {
        return Ok(bound.ip());
    }
    let uri: http::Uri = orchestrator
        .parse()
        .map_err(|_| NodeError::Setting("--orchestrator is no URL".to_owned()))?;
    let found = resolve::addresses(uri.host().unwrap_or_default()).await?;
    let advice = "say where the orchestrator reaches this node with --advertise-url";
    found
        .into_iter()
        .find_map(|target| {
            let from: SocketAddr = if target.is_ipv4() {
                ([0, 0, 0, 0], 0).into()
            } else {
                ([0_u16; 8], 0).into()
            };
            let socket = UdpSocket::bind(from).ok()?;
            // Asks the routing table; nothing is sent.
            socket
                .connect((target, uri.port_u16().unwrap_or(80)))
                .ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
        .ok_or_else(|| NodeError::Setting(format!("there is no route to {orchestrator}; {advice}")))
}

fn policy(config: &NodeConfig) -> Policy {
    let limit = config
        .constraints
        .as_ref()
        .map_or(u64::MAX, |constraints| constraints.max_job_timeout_seconds);
    Policy {
        allowed_images: config
            .policy
            .sandbox
            .allowed_images
            .iter()
            .cloned()
            .collect(),
        max_timeout_seconds: limit.min(crate::api::jobs::MAX_TIMEOUT_SECONDS),
    }
}

fn wants_inference(mode: InferenceMode, config: &NodeConfig) -> bool {
    mode == InferenceMode::Auto
        && config
            .inference_backend
            .as_ref()
            .is_some_and(|backend| backend.enabled)
}

fn acknowledgement(slug: &str, config: &NodeConfig, failure: Option<String>) -> ConfigAck {
    let hash = sha256_hex(serde_json::to_vec(config).unwrap_or_default());
    ConfigAck {
        version: PAYLOAD_VERSION,
        node_slug: slug.to_owned(),
        config_version: config.config_version.clone(),
        ack_at: Time::now(),
        status: if failure.is_some() {
            AckStatus::Failed
        } else {
            AckStatus::Applied
        },
        error: failure.map(|message| AckError {
            kind: "inference".to_owned(),
            message,
            details: None,
        }),
        effective_config_hash: Some(format!("sha256:{hash}")),
    }
}

/// Reports until shutdown. An orchestrator that is away is mentioned once, not every time.
async fn beat(mut session: Session, machine: Machine, shutdown: Shutdown) {
    let mut away = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(HEARTBEAT) => {}
            () = ended(shutdown.clone()) => return,
        }
        let mut outcome = session.report(&machine).await;
        if matches!(&outcome, Err(NodeError::Call(error)) if error.status() == Some(http::StatusCode::UNAUTHORIZED))
        {
            tracing::info!("the node's token is not accepted any more; registering again");
            outcome = session.register(&machine).await;
        }
        match outcome {
            Ok(()) if away => {
                tracing::info!("the orchestrator is back");
                away = false;
            }
            Err(error) if !away => {
                tracing::warn!(%error, "the orchestrator does not take our report; trying on");
                away = true;
            }
            _ => {}
        }
    }
}
