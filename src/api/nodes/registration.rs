//! Registration: a pre-shared key for URLs and a token.

use super::CapabilityReport;
use crate::api::time::Time;
use serde::{Deserialize, Serialize};

/// Body of `POST /v1/nodes/register`.
#[derive(Serialize, Deserialize)]
pub struct Register {
    /// The pre-shared key.
    pub psk: String,
    /// What the machine is.
    pub capability: CapabilityReport,
}

/// Answer to a registration.
#[derive(Serialize, Deserialize)]
pub struct Bootstrap {
    /// Payload version, 1.
    pub version: u64,
    /// When this was made.
    pub issued_at: Time,
    /// Where to go from here.
    pub orchestrator: BootstrapOrchestrator,
    /// The node's credentials.
    pub auth: BootstrapAuth,
}

/// Where a node finds the control plane.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootstrapOrchestrator {
    /// Root of all that follows.
    pub base_url: String,
    /// The URLs; a node uses these and no path of its own.
    pub endpoints: BootstrapEndpoints,
}

/// The URLs that a node uses.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootstrapEndpoints {
    /// To register again.
    pub worker_registration_url: String,
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
    /// When it ends.
    pub expires_at: Time,
}
