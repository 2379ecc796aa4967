//! The node's side of the Node API.

use super::{NodeError, capability::Machine};
use crate::{
    api::{
        check_version,
        nodes::{Bootstrap, BootstrapEndpoints, ConfigAck, NodeConfig, Register},
    },
    http::client::{CallError, Client},
    pause::Pauses,
};
use http::{Method, StatusCode};
use std::time::Duration;
use zeroize::Zeroizing;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A conversation with one orchestrator.
pub(super) struct Session {
    client: Client,
    register_url: String,
    psk: Zeroizing<String>,
    jwt: Zeroizing<String>,
    /// As the orchestrator delivered them; none before the registration.
    endpoints: Option<BootstrapEndpoints>,
}

impl Session {
    pub(super) fn new(orchestrator: &str, psk: Zeroizing<String>) -> Self {
        Self {
            client: Client::default(),
            register_url: format!("{}/v1/nodes/register", orchestrator.trim_end_matches('/')),
            psk,
            jwt: Zeroizing::default(),
            endpoints: None,
        }
    }

    /// Shows the pre-shared key and takes what is delivered for it.
    pub(super) async fn register(&mut self, machine: &Machine) -> Result<(), NodeError> {
        let body = Register {
            psk: self.psk.to_string(),
            node_key: None,
            capability: machine.report(),
        };
        let answer: Result<Bootstrap, _> = self
            .client
            .call(Method::POST, &self.register_url)
            .json(&body)
            .receive()
            .await;
        let bootstrap = answer.map_err(|error| match error.status() {
            Some(StatusCode::UNAUTHORIZED) => NodeError::WrongPsk,
            _ => NodeError::Call(error),
        })?;
        check_version(bootstrap.version).map_err(|problem| NodeError::Setting(problem.detail))?;
        self.jwt = Zeroizing::new(bootstrap.auth.node_jwt);
        self.register_url
            .clone_from(&bootstrap.orchestrator.endpoints.worker_registration_url);
        self.endpoints = Some(bootstrap.orchestrator.endpoints);
        Ok(())
    }

    /// Fetches the configuration.
    pub(super) async fn config(&mut self) -> Result<NodeConfig, NodeError> {
        let url = &self.endpoints()?.node_config_url;
        let config: NodeConfig = self
            .client
            .call(Method::GET, url)
            .bearer(&self.jwt)
            .receive()
            .await?;
        check_version(config.version).map_err(|problem| NodeError::Setting(problem.detail))?;
        Ok(config)
    }

    /// Says how the configuration was applied.
    pub(super) async fn acknowledge(&mut self, ack: &ConfigAck) -> Result<(), NodeError> {
        let url = &self.endpoints()?.node_config_url;
        Ok(self
            .client
            .call(Method::POST, url)
            .bearer(&self.jwt)
            .json(ack)
            .done()
            .await?)
    }

    /// Says what this machine is, and that it lives.
    pub(super) async fn report(&mut self, machine: &Machine) -> Result<(), NodeError> {
        let url = &self.endpoints()?.node_report_url;
        Ok(self
            .client
            .call(Method::POST, url)
            .bearer(&self.jwt)
            .json(&machine.report())
            .done()
            .await?)
    }

    fn endpoints(&self) -> Result<&BootstrapEndpoints, NodeError> {
        self.endpoints
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
                Err($crate::node::NodeError::Call(error))
                    if $crate::node::orchestrator_client::may_pass(&error) =>
                {
                    $crate::node::orchestrator_client::wait(&mut pauses, $what, &error).await;
                }
                outcome => break outcome,
            }
        }
    }};
}
pub(super) use patiently;

/// Whether waiting may help.
pub(super) fn may_pass(error: &CallError) -> bool {
    match error.status() {
        None => matches!(error, CallError::Transport { .. }),
        Some(status) => status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
    }
}

/// Waits before the next try; only the first wait is mentioned.
pub(super) async fn wait(pauses: &mut Pauses, what: &str, error: &CallError) {
    if pauses.is_fresh() {
        tracing::warn!(step = what, %error, "the orchestrator is not to be had; trying until it is");
    }
    tokio::time::sleep(pauses.take()).await;
}

/// The pauses of one step.
pub(super) const fn pauses() -> Pauses {
    Pauses::new(FIRST_PAUSE, LONGEST_PAUSE)
}
