//! The node's side of the Node API.

use super::{NodeError, capability::Machine, state_files::StateFiles};
use crate::{
    api::{
        check_version,
        nodes::{Bootstrap, ConfigAck, NodeConfig, Register},
        problem::ProblemKind,
    },
    backoff::Backoff,
    errors,
    http::client::{CallError, Client},
};
use http::{Method, StatusCode};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

const INITIAL_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// A conversation with one orchestrator.
pub(super) struct OrchestratorClient {
    client: Client,
    register_url: String,
    psk: Zeroizing<String>,
    state: StateFiles,
    /// As the orchestrator delivered it; none before the registration.
    registration: Option<Registration>,
}

struct Registration {
    jwt: Zeroizing<String>,
    report_url: String,
    config_url: String,
    /// When the token ends.
    expires_at: Option<Instant>,
}

impl OrchestratorClient {
    pub(super) fn new(
        orchestrator: &str,
        answer_timeout: Duration,
        psk: Zeroizing<String>,
        state: StateFiles,
    ) -> Self {
        Self {
            client: Client::with_answer_timeout(answer_timeout),
            register_url: format!("{}/v1/nodes/register", orchestrator.trim_end_matches('/')),
            psk,
            state,
            registration: None,
        }
    }

    /// Shows the pre-shared key and takes what is delivered for it.
    pub(super) async fn register(&mut self, machine: &Machine) -> Result<(), NodeError> {
        let body = Register {
            psk: self.psk.to_string(),
            node_key: Some(self.state.node_key()?.to_string()),
            capability: machine.report().await?,
        };
        let answer = self
            .client
            .call(Method::POST, &self.register_url)
            // In the head, too: a long report is read only from those who have the key.
            .bearer(self.psk.as_str())
            .json(&body)
            .receive_payload::<Bootstrap>()
            .await;
        let bootstrap = answer.map_err(|error| match error.status() {
            Some(StatusCode::UNAUTHORIZED) => NodeError::WrongPsk,
            Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                NodeError::InvalidSetting(format!(
                    "no node can register at {}; name the orchestrator's control plane with --orchestrator (port 12082 by default; 12080 is for users)",
                    self.register_url
                ))
            }
            _ => NodeError::Call(error),
        })?;
        check_version("", bootstrap.version)
            .and_then(|()| bootstrap.check())
            .map_err(|problem| NodeError::unusable_answer("registration", &problem))?;
        self.state.write_session(&bootstrap);
        let lifetime = bootstrap.token_lifetime();
        let endpoints = bootstrap.orchestrator.endpoints;
        if let Some(url) = endpoints.worker_registration_url {
            self.register_url = url;
        }
        self.registration = Some(Registration {
            jwt: Zeroizing::new(bootstrap.auth.node_jwt),
            report_url: endpoints.node_report_url,
            config_url: endpoints.node_config_url,
            // By our own clock's course, whatever time it shows.
            expires_at: lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime)),
        });
        Ok(())
    }

    /// Whether the token has run out.
    pub(super) fn is_token_expired(&self) -> bool {
        let expires_at = self
            .registration
            .as_ref()
            .and_then(|registration| registration.expires_at);
        expires_at.is_some_and(|expires_at| Instant::now() >= expires_at)
    }

    /// Fetches the configuration.
    pub(super) async fn fetch_config(&self) -> Result<NodeConfig, NodeError> {
        let registration = self.registration()?;
        let config: NodeConfig = self
            .client
            .call(Method::GET, &registration.config_url)
            .bearer(registration.jwt.as_str())
            .receive_payload()
            .await?;
        check_version("", config.version)
            .map_err(|problem| NodeError::unusable_answer("configuration", &problem))?;
        self.state.write_config(&config);
        Ok(config)
    }

    /// Says how the configuration was applied.
    pub(super) async fn acknowledge(&self, ack: &ConfigAck) -> Result<(), NodeError> {
        let registration = self.registration()?;
        let call = self.client.call(Method::POST, &registration.config_url);
        Ok(call
            .bearer(registration.jwt.as_str())
            .json(ack)
            .done()
            .await?)
    }

    /// Says what this machine is, and that it lives.
    pub(super) async fn send_report(&self, machine: &Machine) -> Result<(), NodeError> {
        let registration = self.registration()?;
        let report = machine.report().await?;
        let call = self.client.call(Method::POST, &registration.report_url);
        Ok(call
            .bearer(registration.jwt.as_str())
            .json(&report)
            .done()
            .await?)
    }

    fn registration(&self) -> Result<&Registration, NodeError> {
        self.registration
            .as_ref()
            .ok_or_else(|| NodeError::InvalidSetting("the node is not registered".to_owned()))
    }
}

/// Tries again while the orchestrator is away or overloaded, with growing pauses; anything that
/// another try can't mend is returned at once. `$call` is evaluated anew for each try.
macro_rules! retry_transient {
    ($what:literal, $call:expr) => {{
        let mut backoff = $crate::node::orchestrator_client::retry_backoff();
        loop {
            match $call.await {
                Err(error) if $crate::node::orchestrator_client::is_transient(&error) => {
                    $crate::node::orchestrator_client::wait_before_retry(
                        &mut backoff,
                        $what,
                        &error,
                    )
                    .await;
                }
                outcome => break outcome,
            }
        }
    }};
}
pub(super) use retry_transient;

/// Whether waiting may help.
pub(super) fn is_transient(error: &NodeError) -> bool {
    match error {
        NodeError::NoRoute { .. } | NodeError::Call(CallError::Transport { .. }) => true,
        NodeError::Call(error) => {
            let status = error.status();
            // Another machine calls as this node, and may be stopped.
            error.is_problem(ProblemKind::DuplicateInstance)
                || status.is_some_and(|status| {
                    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
                })
        }
        _ => false,
    }
}

/// Waits before the next try; only the first wait is mentioned.
pub(super) async fn wait_before_retry(backoff: &mut Backoff, what: &str, error: &NodeError) {
    if backoff.is_fresh() {
        let error = errors::chain(error);
        tracing::warn!(
            step = what,
            error,
            "the orchestrator is not to be had; trying until it is"
        );
    }
    tokio::time::sleep(backoff.next_delay()).await;
}

/// The pauses of one step.
pub(super) const fn retry_backoff() -> Backoff {
    Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF)
}
