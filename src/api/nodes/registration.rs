//! Registration of a node: a pre-shared key in exchange for URLs and a token (contract, section 3).

use super::{CapabilityReport, check_url};
use crate::api::{
    OrchestratorId,
    lenient::{empty_as_none, invalid_as_default},
    problem::Problem,
    time::Time,
};
use serde::{Deserialize, Serialize};
use std::{fmt, ops::RangeInclusive, time::Duration};

/// Length of a node's key, in bytes.
const NODE_KEY_BYTES: RangeInclusive<usize> = 16..=256;

/// Body of `POST /v1/nodes/register`.
#[derive(Serialize, Deserialize)]
pub struct Register {
    /// Pre-shared key of the orchestrator.
    pub psk: String,
    /// Random secret of the machine, which keeps its slug from being registered by another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_key: Option<String>,
    /// Capability report.
    pub capability: CapabilityReport,
}

impl Register {
    /// Checks every field but the pre-shared key.
    pub fn check(&self) -> Result<(), Problem> {
        if let Some(key) = &self.node_key
            && !NODE_KEY_BYTES.contains(&key.len())
        {
            return Err(Problem::field(
                "/node_key",
                format!(
                    "must be {} to {} bytes",
                    NODE_KEY_BYTES.start(),
                    NODE_KEY_BYTES.end()
                ),
            ));
        }
        self.capability.check("/capability")
    }
}

// Both keys are secrets.
impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Register")
            .field("capability", &self.capability)
            .finish_non_exhaustive()
    }
}

/// Answer to a registration. Required are the version, the token, and the URLs of reports and configuration.
#[derive(Serialize, Deserialize)]
pub struct Bootstrap {
    /// Payload version, 1.
    pub version: u64,
    /// Time of this answer.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub issued_at: Option<Time>,
    /// Identity of the orchestrator; other implementations may leave it out.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub orchestrator_id: Option<OrchestratorId>,
    /// URLs of the Node API.
    pub orchestrator: BootstrapOrchestrator,
    /// Credentials of the node.
    pub auth: BootstrapAuth,
}

impl Bootstrap {
    /// Names and URLs of the endpoints.
    pub fn urls(&self) -> [(&'static str, Option<&String>); 5] {
        let endpoints = &self.orchestrator.endpoints;
        [
            (
                "worker_registration_url",
                endpoints.worker_registration_url.as_ref(),
            ),
            ("node_report_url", Some(&endpoints.node_report_url)),
            ("node_config_url", Some(&endpoints.node_config_url)),
            ("inference_url", endpoints.inference_url.as_ref()),
            ("node_tunnel_url", endpoints.node_tunnel_url.as_ref()),
        ]
    }

    /// Checks the URLs.
    pub fn check(&self) -> Result<(), Problem> {
        for (name, url) in self.urls() {
            if let Some(url) = url {
                check_url(&format!("/orchestrator/endpoints/{name}"), url)?;
            }
        }
        Ok(())
    }

    /// Lifetime of the token from now on, where that is known.
    pub fn token_lifetime(&self) -> Option<Duration> {
        let life = self.auth.expires_at?.since(self.issued_at?);
        Some(life).filter(|life| !life.is_zero())
    }
}

/// Address of the Node API.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootstrapOrchestrator {
    /// Base URL.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub base_url: String,
    /// URLs; a node uses these and builds no paths itself.
    pub endpoints: BootstrapEndpoints,
}

/// URLs that a node uses.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootstrapEndpoints {
    /// URL for later registrations; where absent, that of the first one.
    #[serde(default, deserialize_with = "empty_as_none")]
    pub worker_registration_url: Option<String>,
    /// URL for capability reports.
    pub node_report_url: String,
    /// URL to fetch and acknowledge the configuration.
    pub node_config_url: String,
    /// URL before the paths of calls of models that jobs make; absent where the orchestrator passes none on.
    #[serde(
        default,
        deserialize_with = "empty_as_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub inference_url: Option<String>,
    /// URL at which a node opens its tunnel; absent where the orchestrator offers none.
    #[serde(
        default,
        deserialize_with = "empty_as_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub node_tunnel_url: Option<String>,
}

/// Credentials of a node.
#[derive(Serialize, Deserialize)]
pub struct BootstrapAuth {
    /// Bearer token for the Node API.
    pub node_jwt: String,
    /// Expiry of the token; where absent, a 401 shows it.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub expires_at: Option<Time>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_debug_hides_secrets() {
        let body = serde_json::json!({
            "psk": "the pre-shared key", "node_key": "a key of the machine",
            "capability": {
                "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": "box"},
                "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": 2, "ram_mb": 1},
            },
        });
        let shown = format!("{:?}", serde_json::from_value::<Register>(body).unwrap());
        assert!(shown.contains("box") && !shown.contains("key"), "{shown}");
    }
}
