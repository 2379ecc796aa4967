//! Role `node`: joins this machine to an orchestrator, runs sandboxes for it and, where configured, a model server.
//!
//! [`register`] is the start, as the steps of the contract; [`heartbeat`] reports on each change and at an interval,
//! and registers again when the orchestrator does not know the node any more. The node calls the URLs that it was
//! given and no path of its own. By a [`tunnel`] it is called without an open port.

mod address;
mod capability;
mod config;
pub mod gpu;
mod heartbeat;
mod inference;
mod orchestrator_client;
mod reach_notices;
mod register;
mod state_files;
mod trust;
mod tunnel;

pub use inference::{
    InferenceError, MODEL_SERVER_PORT, Settings as InferenceSettings, container_name,
    container_owner,
};
pub use trust::default_pin;

use crate::{
    api::{
        nodes::{Connect, MAX_LABELS, check_label, check_slug, check_url, check_worker_url},
        problem::Problem,
    },
    background,
    data_dir::DataDir,
    engine::EngineError,
    http::{
        client::CallError,
        server::{Shutdown, shutdown_requested},
    },
    tls::{self, Pin, Trust},
    wait,
    worker::{self, Worker},
};
use inference::ModelServerManager;
use register::Node;
use std::{io, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use zeroize::Zeroizing;

/// Time limit for the last report, which says that the node stops.
const FINAL_REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of a node.
pub struct Settings {
    /// URL of the control plane.
    pub orchestrator: String,
    /// Time limit for an answer of the orchestrator.
    pub orchestrator_timeout: Duration,
    /// Pin of the orchestrator's key, for an `https://` URL; nothing else is trusted then.
    pub pin: Option<Pin>,
    /// Pin of the join token, which counts where neither a pin nor authorities are given, and where no later pin is
    /// remembered.
    pub token_pin: Option<Pin>,
    /// Authorities to trust besides the system's, where there is no pin.
    pub ca_file: Option<PathBuf>,
    /// Pre-shared key, or the secret of a join token.
    pub psk: Zeroizing<String>,
    /// Whether the secret is that of a join token.
    pub is_join_token: bool,
    /// Name of this node in commands.
    pub slug: String,
    /// Display name of this node.
    pub name: Option<String>,
    /// Labels that tasks can select this node by.
    pub labels: Vec<String>,
    /// Who connects to whom.
    pub connect: Connect,
    /// Address for the Worker API; `None` where the operator gives none, so that it listens only without a tunnel.
    pub worker_listen: Option<SocketAddr>,
    /// URL of the Worker API for the orchestrator. `None`: detected.
    pub advertise_url: Option<String>,
    /// Settings of the model server.
    pub inference: InferenceSettings,
    /// Settings of sandboxes.
    pub sandbox: worker::Settings,
    /// Whether the end of the node cancels its jobs and removes the model server. Otherwise both stay for the next
    /// start.
    pub ephemeral: bool,
}

/// Reason for which a node did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Wrong pre-shared key.
    #[error(
        "the orchestrator refuses this node's pre-shared key, which may be an old one; copy the current one from keys/psk in the orchestrator's data directory, or from its --psk-file, to this node's --psk-file and start it again"
    )]
    WrongPsk,
    /// Join token that the orchestrator does not know.
    #[error(
        "the orchestrator does not know this node's join token: it was removed long ago, or is another orchestrator's; ask an admin for a new one (cynode nodes token create) and start this node with it"
    )]
    WrongJoinToken,
    /// Orchestrator that speaks TLS, called without it. Not an invalid setting, after which nothing starts the node again: the
    /// operator may still choose plain HTTP at the orchestrator.
    #[error(
        "{url} speaks TLS only; write https:// in the URL of --orchestrator, and give the --pin that the orchestrator prints at its start, or join with a new token (cynode nodes token create); if others can read the network in between, change the pre-shared key, which was sent in the clear"
    )]
    TlsOnly {
        /// URL of the orchestrator.
        url: String,
    },
    /// Same with a join token, which holds that URL.
    #[error(
        "{url} speaks TLS only, and this node's join token was made for plain HTTP: ask an admin for a new one (cynode nodes token create), start this node with it, and have the old one removed (cynode nodes token rm), since others may have read it on the network"
    )]
    PlainJoinToken {
        /// URL of the orchestrator.
        url: String,
    },
    /// Invalid setting.
    #[error("{0}")]
    InvalidSetting(String),
    /// Valid answer of the orchestrator that this node cannot follow.
    #[error("the orchestrator's {what}: {detail}")]
    UnusableAnswer {
        /// The kind of answer.
        what: &'static str,
        /// Field at fault, and the fix.
        detail: String,
    },
    /// Podman that cannot run sandboxes.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Failure of a file or socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Failed call to the orchestrator.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Unknown address of the orchestrator, or no route to it.
    #[error(
        "no route to {orchestrator}; check its name and this machine's network, or set this node's own address with --advertise-url"
    )]
    NoRoute {
        /// URL of the orchestrator.
        orchestrator: String,
        /// Cause.
        source: io::Error,
    },
    /// Model server that does not run.
    #[error(transparent)]
    Inference(#[from] InferenceError),
    /// Shutdown during the start.
    #[error("stopped before the node was ready")]
    Stopped,
}

impl NodeError {
    fn unusable_answer(what: &'static str, problem: &Problem) -> Self {
        Self::UnusableAnswer {
            what,
            detail: problem.detail.clone(),
        }
    }
}

/// A node that takes jobs.
pub struct RunningNode {
    /// Address of the Worker API; `None` where it does not listen.
    pub worker_address: Option<SocketAddr>,
    worker: Worker,
    model_server: ModelServerManager,
    ephemeral: bool,
    closing: watch::Sender<bool>,
    /// True after the attempt to send the last report.
    final_report_sent: watch::Receiver<bool>,
    heartbeat: JoinHandle<()>,
}

impl Settings {
    /// Checks the values, which come from flags, variables and node.yaml.
    pub(crate) fn check(&self) -> Result<(), NodeError> {
        let flag = |flag: &str, checked: Result<(), Problem>| {
            checked
                .map_err(|problem| NodeError::InvalidSetting(format!("{flag} {}", problem.detail)))
        };
        flag("--slug", check_slug("", &self.slug))?;
        flag("--orchestrator", check_url("", &self.orchestrator))?;
        if self.trust().pin().is_some() && !tls::is_encrypted(&self.orchestrator) {
            return Err(NodeError::InvalidSetting(
                "--pin needs an encrypted connection; write https:// in the URL of --orchestrator"
                    .to_owned(),
            ));
        }
        if self.labels.len() > MAX_LABELS {
            return Err(NodeError::InvalidSetting(format!(
                "a node has at most {MAX_LABELS} labels; remove some --label"
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

    /// Rule by which the orchestrator is trusted, by what the operator gives.
    fn trust(&self) -> Trust {
        let token_pin = self.token_pin.clone().filter(|_| self.ca_file.is_none());
        Trust::new(self.pin.clone().or(token_pin), self.ca_file.clone())
    }
}

/// Starts a node. Returns when the orchestrator can schedule jobs on it. Calls `on_prepared` before the registration:
/// the machine is fit then, and the rest depends on the orchestrator and on images.
pub async fn start(
    data_dir: &DataDir,
    settings: Settings,
    shutdown: Shutdown,
    on_prepared: impl FnOnce(),
) -> Result<RunningNode, NodeError> {
    settings.check()?;
    if tls::is_exposed(&settings.orchestrator) {
        tracing::warn!(
            orchestrator = %settings.orchestrator,
            "calls of the orchestrator are not encrypted: the pre-shared key and output can be read on the network; \
             start the orchestrator without --tls off, and this node with https:// in the URL and the --pin that the \
             orchestrator prints"
        );
    }
    let ephemeral = settings.ephemeral;
    let (closing, is_closing) = watch::channel(false);
    let mut node = tokio::select! {
        node = Node::prepare(data_dir, settings, is_closing.clone()) => node?,
        () = shutdown_requested(shutdown.clone()) => return Err(NodeError::Stopped),
    };
    on_prepared();
    let started = tokio::select! {
        started = node.start() => started,
        () = shutdown_requested(shutdown) => Err(NodeError::Stopped),
    };
    let (worker_address, worker) = match started {
        Err(error) if ephemeral => {
            node.end_model_server_monitor().await;
            remove_model_server(&node.model_server_manager()).await;
            return Err(error);
        }
        outcome => outcome?,
    };
    let address = worker_address.map(|address| address.to_string());
    match worker.unavailable_reason().await {
        None => tracing::info!(slug = node.slug(), worker = address, "the node takes jobs"),
        Some(reason) => {
            tracing::warn!(
                slug = node.slug(),
                worker = address,
                reason,
                "the node takes no jobs yet"
            );
        }
    }
    let (mark_sent, final_report_sent) = watch::channel(false);
    Ok(RunningNode {
        worker_address,
        worker,
        model_server: node.model_server_manager(),
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
    /// Resolves when the heartbeat has ended by itself, which only a panic can cause.
    pub async fn wait_for_failure(&mut self) {
        if (&mut self.heartbeat).await.is_err() {
            tracing::error!("heartbeat of the node failed");
        }
    }

    /// Takes no new job, reports that to the orchestrator, and waits up to `grace` for running jobs.
    pub async fn close(mut self, grace: Duration) {
        self.closing.send_replace(true);
        let final_report = timeout(
            FINAL_REPORT_TIMEOUT,
            wait::until(&mut self.final_report_sent, |sent| *sent),
        );
        let (_, ()) = tokio::join!(final_report, self.worker.close(grace, self.ephemeral));
        // It owns the monitor of the model server, which ends with it.
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
        tracing::warn!(%error, "model server could not be removed; see podman ps --all");
    }
}
