//! Role `node`: joins this machine to an orchestrator, and serves it sandboxes and, where wanted, a
//! model server.
//!
//! [`register`] is the start as the contract orders it, a list of steps; [`heartbeat`] is what comes after:
//! a report on change and as often as the configuration says, and joining again when the orchestrator doesn't know
//! the node any more. The node uses the URLs that it was given and no path of its own.

mod address;
mod capability;
mod config;
pub mod gpu;
mod heartbeat;
mod inference;
mod orchestrator_client;
mod register;
mod state_files;

pub use inference::{
    InferenceError, MODEL_SERVER_PORT, Settings as InferenceSettings, container_name,
    container_owner,
};

use crate::{
    api::{
        nodes::{MAX_LABELS, check_label, check_slug, check_url, check_worker_url},
        problem::Problem,
    },
    background,
    data_dir::DataDir,
    engine::EngineError,
    http::{
        client::CallError,
        server::{Shutdown, shutdown_requested},
    },
    wait,
    worker::{self, Worker},
};
use inference::ModelServerManager;
use register::Node;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use zeroize::Zeroizing;

/// How long the orchestrator is told that we leave.
const FINAL_REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the operator says.
pub struct Settings {
    /// The control plane.
    pub orchestrator: String,
    /// How long an answer of it may take.
    pub orchestrator_timeout: Duration,
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
    /// What is said about the model server.
    pub inference: InferenceSettings,
    /// What is said about sandboxes.
    pub sandbox: worker::Settings,
    /// Whether nothing is to be left at its end: what still runs is canceled and the model server
    /// removed. Else it ends with this process, and the model server stays for the next one.
    pub ephemeral: bool,
}

/// Why a node did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The orchestrator doesn't know the pre-shared key.
    #[error(
        "the orchestrator refuses this node's pre-shared key, which may be an old one; copy the present one, from keys/psk of the orchestrator's data directory or from its --psk-file, to this node's --psk-file and start it again"
    )]
    WrongPsk,
    /// A setting is wrong.
    #[error("{0}")]
    InvalidSetting(String),
    /// The orchestrator answered what this node can't act on.
    #[error("the orchestrator's {what}: {detail}")]
    UnusableAnswer {
        /// Which answer of it.
        what: &'static str,
        /// The field at fault, and what to do.
        detail: String,
    },
    /// podman can't run sandboxes.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Files or sockets.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The orchestrator refused, or answered what isn't in the contract.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Where the orchestrator is, or which address of ours leads to it, isn't known at present.
    #[error(
        "no way leads to {orchestrator}; see that its name is right and that this machine has a network, or say where this node is reached with --advertise-url"
    )]
    NoRoute {
        /// As the operator named it.
        orchestrator: String,
        /// Why not.
        source: io::Error,
    },
    /// A model server is wanted, and doesn't run.
    #[error(transparent)]
    Inference(#[from] InferenceError),
    /// The node was told to end before its start was through.
    #[error("stopped before the node was ready")]
    Stopped,
}

impl NodeError {
    /// The orchestrator's answer is well-formed, and wrong.
    fn unusable_answer(what: &'static str, problem: &Problem) -> Self {
        Self::UnusableAnswer {
            what,
            detail: problem.detail.clone(),
        }
    }
}

/// A node that serves.
pub struct RunningNode {
    /// Where its Worker API listens.
    pub worker_address: SocketAddr,
    worker: Worker,
    model_server: ModelServerManager,
    ephemeral: bool,
    closing: watch::Sender<bool>,
    /// True once the orchestrator was told that we leave, or could not be.
    final_report_sent: watch::Receiver<bool>,
    heartbeat: JoinHandle<()>,
}

impl Settings {
    /// What is wrong with them, if anything.
    pub(crate) fn check(&self) -> Result<(), NodeError> {
        let flag = |flag: &str, checked: Result<(), Problem>| {
            checked
                .map_err(|problem| NodeError::InvalidSetting(format!("{flag} {}", problem.detail)))
        };
        flag("--slug", check_slug("", &self.slug))?;
        flag("--orchestrator", check_url("", &self.orchestrator))?;
        if self.labels.len() > MAX_LABELS {
            return Err(NodeError::InvalidSetting(format!(
                "a node has at most {MAX_LABELS} labels; give fewer --label"
            )));
        }
        for label in &self.labels {
            flag(&format!("--label {label:?}"), check_label("", label))?;
        }
        if let Some(url) = &self.advertise_url {
            flag("--advertise-url", check_worker_url("", url))?;
        }
        Ok(())
    }
}

/// Starts a node; returns once the orchestrator may give it jobs. `on_prepared` is called before anybody
/// hears of it: this machine can serve, and what is left is up to the orchestrator and to images.
pub async fn start(
    data_dir: &DataDir,
    settings: Settings,
    shutdown: Shutdown,
    on_prepared: impl FnOnce(),
) -> Result<RunningNode, NodeError> {
    settings.check()?;
    let ephemeral = settings.ephemeral;
    let (closing, is_closing) = watch::channel(false);
    let mut node = tokio::select! {
        node = Node::prepare(data_dir, settings, is_closing.clone()) => node?,
        () = shutdown_requested(shutdown.clone()) => return Err(NodeError::Stopped),
    };
    on_prepared();
    let joined = tokio::select! {
        joined = node.run_startup() => joined,
        () = shutdown_requested(shutdown) => Err(NodeError::Stopped),
    };
    let (worker_address, worker) = match joined {
        Err(error) if ephemeral => {
            remove_model_server(&node.model_server()).await;
            return Err(error);
        }
        outcome => outcome?,
    };
    match worker.unavailable_reason().await {
        None => tracing::info!(slug = node.slug(), worker = %worker_address, "the node takes jobs"),
        Some(reason) => {
            tracing::warn!(slug = node.slug(), worker = %worker_address, reason, "the node takes no jobs yet");
        }
    }
    let (mark_sent, final_report_sent) = watch::channel(false);
    Ok(RunningNode {
        worker_address,
        worker,
        model_server: node.model_server(),
        ephemeral,
        closing,
        final_report_sent,
        heartbeat: background::spawn(
            "heartbeat",
            heartbeat::run_heartbeat(node, is_closing, mark_sent),
        ),
    })
}

impl RunningNode {
    /// Resolves when reporting has ended by itself, which only a fault of ours can bring about.
    pub async fn wait_for_failure(&mut self) {
        if (&mut self.heartbeat).await.is_err() {
            tracing::error!("what keeps the node known panicked; the lines above say where");
        }
    }

    /// Takes no new job, says so to the orchestrator, and waits up to `grace` for those that run.
    pub async fn close(mut self, grace: Duration) {
        self.closing.send_replace(true);
        let final_report = timeout(
            FINAL_REPORT_TIMEOUT,
            wait::until(&mut self.final_report_sent, |sent| *sent),
        );
        let (_, ()) = tokio::join!(final_report, self.worker.close(grace, self.ephemeral));
        // Nobody looks after the model server any more once that has ended.
        if !self.heartbeat.is_finished() {
            self.heartbeat.abort();
            let _ = self.heartbeat.await;
        }
        if self.ephemeral {
            remove_model_server(&self.model_server).await;
        }
    }
}

async fn remove_model_server(model_server: &ModelServerManager) {
    if let Err(error) = model_server.remove_all_except(None).await {
        tracing::warn!(%error, "the model server could not be removed; see podman ps --all");
    }
}
