//! Client of the Node API: register, fetch the configuration, acknowledge it, report.

use super::{
    NodeError,
    capability::Machine,
    reach_notices::ReachNotices,
    state_files::{PinnedOrchestrator, StateFiles},
    trust::without_slash,
    tunnel::TunnelTarget,
};
use crate::{
    api::{
        UNREACHABLE_HEADER, check_version,
        nodes::{Bootstrap, ConfigAck, NodeConfig, Register},
        problem::ProblemKind,
    },
    backoff::Backoff,
    http::{
        client::{CallError, Client},
        tunnel::Dialer,
    },
    tls::{self, Cause, Pin, Trust},
    worker::OrchestratorModels,
};
use http::{Method, StatusCode};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

const INITIAL_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Client of one orchestrator.
pub(super) struct OrchestratorClient {
    client: Client,
    dialer: Dialer,
    /// Orchestrator and its pin, to be remembered once it has accepted this node.
    pinned: Option<PinnedOrchestrator>,
    register_url: String,
    psk: Zeroizing<String>,
    state: StateFiles,
    reach_notices: ReachNotices,
    /// The last registration; none before the first.
    registration: Option<Registration>,
}

/// Token and URLs that the orchestrator delivered.
pub(super) struct Registration {
    jwt: Zeroizing<String>,
    /// URL for the next registration, where it is not the one of this.
    register_url: Option<String>,
    report_url: String,
    config_url: String,
    /// URL for calls of models that jobs make.
    inference_url: Option<String>,
    /// URL of the tunnel.
    tunnel_url: Option<String>,
    /// End of the token, on the clock of this machine.
    expires_at: Option<Instant>,
}

impl OrchestratorClient {
    pub(super) fn new(
        orchestrator: &str,
        trust: Trust,
        answer_timeout: Duration,
        (psk, token_pin): (Zeroizing<String>, Option<Pin>),
        state: StateFiles,
    ) -> Self {
        let url = without_slash(orchestrator);
        let pinned = trust.pin().map(|pin| PinnedOrchestrator {
            url: url.to_owned(),
            pin: pin.clone(),
            token_pin,
        });
        Self {
            dialer: Dialer::new(trust.clone()),
            client: Client::with_trust(trust, answer_timeout),
            pinned,
            register_url: format!("{url}/v1/nodes/register"),
            psk,
            state,
            reach_notices: ReachNotices::default(),
            registration: None,
        }
    }

    /// Registers this node with the pre-shared key.
    pub(super) async fn register(&self, machine: &Machine) -> Result<Registration, NodeError> {
        let body = Register {
            psk: self.psk.to_string(),
            node_key: Some(self.state.node_key()?.to_string()),
            capability: machine.report().await?,
        };
        let answer = self
            .client
            .call(Method::POST, &self.register_url)
            // In the head, too: the orchestrator reads a long body only from callers with the key.
            .bearer(self.psk.as_str())
            .json(&body)
            .receive_payload::<Bootstrap>()
            .await;
        let bootstrap = answer.map_err(|error| match error.status() {
            Some(StatusCode::UNAUTHORIZED) => NodeError::WrongPsk,
            Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                NodeError::InvalidSetting(format!(
                    "nodes cannot register at {}; --orchestrator must be the URL of the control plane (port 12082 by default; 12080 is for users)",
                    self.register_url
                ))
            }
            _ if error.is_tls_only() => NodeError::TlsOnly {
                url: self.register_url.clone(),
            },
            _ => NodeError::Call(error),
        })?;
        check_version("", bootstrap.version)
            .and_then(|()| bootstrap.check())
            .map_err(|problem| NodeError::unusable_answer("registration", &problem))?;
        self.check_encrypted(&bootstrap)?;
        self.state.write_session(&bootstrap);
        match &self.pinned {
            Some(pinned) => self.state.write_pinned_orchestrator(pinned),
            // Authorities vouch for it now, by the operator's choice.
            None if tls::is_encrypted(&self.register_url) => {
                self.state.forget_pinned_orchestrator();
            }
            None => {}
        }
        let lifetime = bootstrap.token_lifetime();
        let endpoints = bootstrap.orchestrator.endpoints;
        Ok(Registration {
            jwt: Zeroizing::new(bootstrap.auth.node_jwt),
            register_url: endpoints.worker_registration_url,
            report_url: endpoints.node_report_url,
            config_url: endpoints.node_config_url,
            inference_url: endpoints.inference_url,
            tunnel_url: endpoints.node_tunnel_url,
            expires_at: lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime)),
        })
    }

    /// Refuses URLs without encryption from an orchestrator that is called with it: the node's token would be readable
    /// on the network.
    fn check_encrypted(&self, bootstrap: &Bootstrap) -> Result<(), NodeError> {
        if !tls::is_encrypted(&self.register_url) {
            return Ok(());
        }
        let urls = bootstrap.urls().into_iter();
        let plain = urls
            .filter_map(|(name, url)| Some((name, url?)))
            .find(|(_, url)| !tls::is_encrypted(url));
        plain.map_or(Ok(()), |(name, url)| {
            Err(NodeError::UnusableAnswer {
                what: "registration",
                detail: format!(
                    "{name} is {url:.255}, which is not encrypted, although this node registers over https://; start \
                     the orchestrator without --tls off, or with an https:// URL in --public-url"
                ),
            })
        })
    }

    /// Uses a registration for the calls from now on.
    pub(super) fn set_registration(&mut self, mut registration: Registration) {
        if let Some(url) = registration.register_url.take() {
            self.register_url = url;
        }
        self.registration = Some(registration);
    }

    /// Model API for jobs, where the orchestrator has one.
    pub(super) fn models(&self) -> Option<OrchestratorModels> {
        let registration = self.registration.as_ref()?;
        Some(OrchestratorModels {
            client: self.client.clone(),
            url: registration.inference_url.clone()?,
            token: registration.jwt.clone(),
        })
    }

    /// Client that opens tunnels.
    pub(super) fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }

    /// Whether the orchestrator offers a tunnel.
    pub(super) fn offers_tunnel(&self) -> bool {
        let registration = self.registration.as_ref();
        registration.is_some_and(|registration| registration.tunnel_url.is_some())
    }

    /// Target of this node's tunnel; `None` where the orchestrator offers none.
    pub(super) fn tunnel_target(&self, instance: Option<String>) -> Option<TunnelTarget> {
        let registration = self.registration.as_ref()?;
        Some(TunnelTarget {
            url: registration.tunnel_url.clone()?,
            token: registration.jwt.clone(),
            instance,
        })
    }

    /// Whether the token has expired.
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

    /// Acknowledges a configuration.
    pub(super) async fn acknowledge(&self, ack: &ConfigAck) -> Result<(), NodeError> {
        let registration = self.registration()?;
        let call = self.client.call(Method::POST, &registration.config_url);
        Ok(call
            .bearer(registration.jwt.as_str())
            .json(ack)
            .done()
            .await?)
    }

    /// Sends a capability report, which is also the heartbeat.
    pub(super) async fn send_report(&self, machine: &Machine) -> Result<(), NodeError> {
        let registration = self.registration()?;
        let report = machine.report().await?;
        let call = self.client.call(Method::POST, &registration.report_url);
        let call = call.bearer(registration.jwt.as_str()).json(&report);
        let unreachable = call.header(UNREACHABLE_HEADER).await?;
        self.reach_notices.record(unreachable);
        Ok(())
    }

    fn registration(&self) -> Result<&Registration, NodeError> {
        self.registration
            .as_ref()
            .ok_or_else(|| NodeError::InvalidSetting("the node is not registered".to_owned()))
    }
}

/// Whether a retry may succeed: the orchestrator is unreachable, overloaded or faulty.
pub(super) fn is_transient(error: &NodeError) -> bool {
    match error {
        NodeError::NoRoute { .. } | NodeError::Call(CallError::Transport { .. }) => true,
        // The clock is set, or the certificate renewed, without anybody at this machine.
        NodeError::Call(CallError::Untrusted { untrusted, .. }) => {
            matches!(untrusted.cause, Cause::Expired | Cause::NotYetValid)
        }
        NodeError::Call(error) => {
            let status = error.status();
            // Another machine that calls as this node may be stopped.
            error.is_problem(ProblemKind::DuplicateInstance)
                || status.is_some_and(|status| {
                    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
                })
        }
        _ => false,
    }
}

/// Backoff of one step.
pub(super) const fn retry_backoff() -> Backoff {
    Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Untrusted;

    #[test]
    fn only_dates_of_certificates_pass_by_themselves() {
        let found: Pin = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        for (cause, is_passing) in [
            (Cause::Expired, true),
            (Cause::NotYetValid, true),
            (Cause::UnknownIssuer, false),
            (Cause::OtherName, false),
            (Cause::OtherKey(found.clone()), false),
        ] {
            let untrusted = Untrusted {
                found: found.clone(),
                cause,
            };
            let error = NodeError::Call(CallError::Untrusted {
                url: "https://box".to_owned(),
                untrusted: Box::new(untrusted),
            });
            assert_eq!(is_transient(&error), is_passing, "{error}");
        }
    }
}
