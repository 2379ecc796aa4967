//! Registration: a pre-shared key for URLs and a token.

use super::{CapabilityReport, check_url};
use crate::api::{
    OrchestratorId,
    lenient::{empty_as_none, invalid_as_default},
    problem::Problem,
    time::Time,
};
use serde::{Deserialize, Serialize};
use std::{fmt, ops::RangeInclusive, time::Duration};

/// How long a node's key may be, in bytes: too long to be guessed, and no burden.
const NODE_KEY_BYTES: RangeInclusive<usize> = 16..=256;

/// Body of `POST /v1/nodes/register`.
#[derive(Serialize, Deserialize)]
pub struct Register {
    /// The pre-shared key.
    pub psk: String,
    /// A random secret of the machine, by which its slug stays its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_key: Option<String>,
    /// What the machine is.
    pub capability: CapabilityReport,
}

impl Register {
    /// Bounds and checks every field but the pre-shared key.
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

/// Answer to a registration. Needed of it are the version, the token, and where to report and to fetch the
/// configuration.
#[derive(Serialize, Deserialize)]
pub struct Bootstrap {
    /// Payload version, 1.
    pub version: u64,
    /// When this was made.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub issued_at: Option<Time>,
    /// Identity of the orchestrator; a peer may send none.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub orchestrator_id: Option<OrchestratorId>,
    /// Where to go from here.
    pub orchestrator: BootstrapOrchestrator,
    /// The node's credentials.
    pub auth: BootstrapAuth,
}

impl Bootstrap {
    /// Checks that a node can call the URLs.
    pub fn check(&self) -> Result<(), Problem> {
        let endpoints = &self.orchestrator.endpoints;
        let urls = [
            (
                "worker_registration_url",
                endpoints.worker_registration_url.as_ref(),
            ),
            ("node_report_url", Some(&endpoints.node_report_url)),
            ("node_config_url", Some(&endpoints.node_config_url)),
        ];
        for (name, url) in urls {
            if let Some(url) = url {
                check_url(&format!("/orchestrator/endpoints/{name}"), url)?;
            }
        }
        Ok(())
    }

    /// How long the token lives from now on, where that is known.
    pub fn token_lifetime(&self) -> Option<Duration> {
        let life = self.auth.expires_at?.since(self.issued_at?);
        Some(life).filter(|life| !life.is_zero())
    }
}

/// Where a node finds the control plane.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootstrapOrchestrator {
    /// Root of all that follows.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub base_url: String,
    /// The URLs; a node uses these and no path of its own.
    pub endpoints: BootstrapEndpoints,
}

/// The URLs that a node uses.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootstrapEndpoints {
    /// To register again; at the same URL as the first time where it is absent.
    #[serde(default, deserialize_with = "empty_as_none")]
    pub worker_registration_url: Option<String>,
    /// For capability reports.
    pub node_report_url: String,
    /// To get and to acknowledge the configuration.
    pub node_config_url: String,
}

/// A node's credentials.
#[derive(Serialize, Deserialize)]
pub struct BootstrapAuth {
    /// Bearer token for the control plane.
    pub node_jwt: String,
    /// When it ends; where that isn't known, a refusal tells.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub expires_at: Option<Time>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_shown_without_its_secrets() {
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
