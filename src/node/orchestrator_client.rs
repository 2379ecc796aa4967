//! The node's side of the Node API.

use super::{NodeError, capability::Machine, state::State};
use crate::{
    api::{
        check_version,
        nodes::{Bootstrap, ConfigAck, NodeConfig, Register},
        problem::Kind,
    },
    errors,
    http::client::{CallError, Client},
    pause::Pauses,
};
use http::{Method, StatusCode};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A conversation with one orchestrator.
pub(super) struct Session {
    client: Client,
    register_url: String,
    psk: Zeroizing<String>,
    state: State,
    /// As the orchestrator delivered it; none before the registration.
    delivered: Option<Delivered>,
}

struct Delivered {
    jwt: Zeroizing<String>,
    report_url: String,
    config_url: String,
    /// When the token ends.
    ends: Option<Instant>,
}

impl Session {
    pub(super) fn new(
        orchestrator: &str,
        answer_timeout: Duration,
        psk: Zeroizing<String>,
        state: State,
    ) -> Self {
        Self {
            client: Client::answering_within(answer_timeout),
            register_url: format!("{}/v1/nodes/register", orchestrator.trim_end_matches('/')),
            psk,
            state,
            delivered: None,
        }
    }

    /// Shows the pre-shared key and takes what is delivered for it.
    pub(super) async fn register(&mut self, machine: &Machine) -> Result<(), NodeError> {
        let body = Register {
            psk: self.psk.to_string(),
            node_key: Some(self.state.key()?.to_string()),
            capability: machine.report().await?,
        };
        let answer = self
            .client
            .call(Method::POST, &self.register_url)
            // In the head, too: a long report is read only from those who have the key.
            .bearer(self.psk.as_str())
            .json(&body)
            .payload::<Bootstrap>()
            .await;
        let bootstrap = answer.map_err(|error| match error.status() {
            Some(StatusCode::UNAUTHORIZED) => NodeError::WrongPsk,
            Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                NodeError::Setting(format!(
                    "no node can register at {}; name the orchestrator's control plane with --orchestrator (port 12082 by default; 12080 is for users)",
                    self.register_url
                ))
            }
            _ => NodeError::Call(error),
        })?;
        check_version("", bootstrap.version)
            .and_then(|()| bootstrap.check())
            .map_err(|problem| NodeError::refused("registration", &problem))?;
        self.state.keep_session(&bootstrap);
        let life = bootstrap.life();
        let endpoints = bootstrap.orchestrator.endpoints;
        if let Some(url) = endpoints.worker_registration_url {
            self.register_url = url;
        }
        self.delivered = Some(Delivered {
            jwt: Zeroizing::new(bootstrap.auth.node_jwt),
            report_url: endpoints.node_report_url,
            config_url: endpoints.node_config_url,
            // By our own clock's course, whatever time it shows.
            ends: life.and_then(|life| Instant::now().checked_add(life)),
        });
        Ok(())
    }

    /// Whether the token has run out.
    pub(super) fn has_ended(&self) -> bool {
        let ends = self.delivered.as_ref().and_then(|session| session.ends);
        ends.is_some_and(|ends| Instant::now() >= ends)
    }

    /// Fetches the configuration.
    pub(super) async fn config(&self) -> Result<NodeConfig, NodeError> {
        let session = self.delivered()?;
        let config: NodeConfig = self
            .client
            .call(Method::GET, &session.config_url)
            .bearer(session.jwt.as_str())
            .payload()
            .await?;
        check_version("", config.version)
            .map_err(|problem| NodeError::refused("configuration", &problem))?;
        self.state.keep_config(&config);
        Ok(config)
    }

    /// Says how the configuration was applied.
    pub(super) async fn acknowledge(&self, ack: &ConfigAck) -> Result<(), NodeError> {
        let session = self.delivered()?;
        let call = self.client.call(Method::POST, &session.config_url);
        Ok(call.bearer(session.jwt.as_str()).json(ack).done().await?)
    }

    /// Says what this machine is, and that it lives.
    pub(super) async fn report(&self, machine: &Machine) -> Result<(), NodeError> {
        let session = self.delivered()?;
        let report = machine.report().await?;
        let call = self.client.call(Method::POST, &session.report_url);
        Ok(call
            .bearer(session.jwt.as_str())
            .json(&report)
            .done()
            .await?)
    }

    fn delivered(&self) -> Result<&Delivered, NodeError> {
        self.delivered
            .as_ref()
            .ok_or_else(|| NodeError::Setting("the node is not registered".to_owned()))
    }
}

/// Tries again while the orchestrator is away or overloaded, with growing pauses; anything that
/// another try can't mend is returned at once. `$call` is evaluated anew for each try.
macro_rules! patiently {
    ($what:literal, $call:expr) => {{
        let mut pauses = $crate::node::orchestrator_client::pauses();
        loop {
            match $call.await {
                Err(error) if $crate::node::orchestrator_client::may_pass(&error) => {
                    $crate::node::orchestrator_client::wait(&mut pauses, $what, &error).await;
                }
                outcome => break outcome,
            }
        }
    }};
}
pub(super) use patiently;

/// Whether waiting may help.
pub(super) fn may_pass(error: &NodeError) -> bool {
    match error {
        NodeError::NoWay { .. } | NodeError::Call(CallError::Transport { .. }) => true,
        NodeError::Call(error) => {
            let status = error.status();
            // Another machine calls as this node, and may be stopped.
            error.is_problem(Kind::DuplicateInstance)
                || status.is_some_and(|status| {
                    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
                })
        }
        _ => false,
    }
}

/// Waits before the next try; only the first wait is mentioned.
pub(super) async fn wait(pauses: &mut Pauses, what: &str, error: &NodeError) {
    if pauses.is_fresh() {
        let error = errors::chain(error);
        tracing::warn!(
            step = what,
            error,
            "the orchestrator is not to be had; trying until it is"
        );
    }
    tokio::time::sleep(pauses.take()).await;
}

/// The pauses of one step.
pub(super) const fn pauses() -> Pauses {
    Pauses::new(FIRST_PAUSE, LONGEST_PAUSE)
}
