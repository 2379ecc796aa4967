//! What a node is told to do, and whether it does.

use super::rules::check_text;
use crate::api::{
    OrchestratorId, check_version, jobs::NetworkPolicy, problem::Problem, time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest cause of a failed acknowledgement, in bytes.
const MAX_CAUSE: usize = 4096;

/// Answer of `GET node_config_url`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Payload version, 1.
    pub version: u64,
    /// Counts what this node was served; an integer as a string.
    pub config_version: String,
    /// When this was made.
    pub issued_at: Time,
    /// For which node.
    pub node_slug: String,
    /// Identity of the orchestrator, which the node keeps with each job; a peer may send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator_id: Option<OrchestratorId>,
    /// Where things are.
    pub orchestrator: ConfigOrchestrator,
    /// Where sandbox images come from.
    pub sandbox_registry: SandboxRegistry,
    /// Where models come from.
    pub model_cache: ModelCache,
    /// What is allowed.
    pub policy: Policy,
    /// How the orchestrator will show itself at the Worker API.
    pub worker_api: ConfigWorkerApi,
    /// The model server to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_backend: Option<InferenceBackend>,
    /// Upper limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Constraints>,
}

/// Where things are, for a configured node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigOrchestrator {
    /// Root of the control plane.
    pub base_url: String,
    /// URLs.
    pub endpoints: ConfigEndpoints,
}

/// URLs for a configured node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigEndpoints {
    /// Where the orchestrator will look for the node's Worker API.
    pub worker_api_target_url: String,
    /// For capability reports.
    pub node_report_url: String,
}

/// Where sandbox images come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRegistry {
    /// Empty when there is none.
    pub registry_url: String,
}

/// Where models come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelCache {
    /// Empty when there is none.
    pub cache_url: String,
}

/// What is allowed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// For sandboxes.
    pub sandbox: SandboxPolicy,
}

/// What sandboxes are allowed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxPolicy {
    /// The network of a job that names none.
    pub default_network_policy: NetworkPolicy,
    /// `*` patterns on the normal form; absent allows all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_images: Option<Vec<String>>,
}

/// How the orchestrator shows itself at the Worker API.
#[derive(Clone, Serialize, Deserialize)]
pub struct ConfigWorkerApi {
    /// The bearer token that the Worker API accepts.
    pub orchestrator_bearer_token: String,
}

impl std::fmt::Debug for ConfigWorkerApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfigWorkerApi(…)")
    }
}

/// The model server to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InferenceBackend {
    /// Whether to run one.
    pub enabled: bool,
    /// Its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Such as `rocm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Models to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
}

/// Upper limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Constraints {
    /// Bytes of a body.
    pub max_request_bytes: u64,
    /// Seconds of a job.
    pub max_job_timeout_seconds: u64,
}

/// Body of `POST node_config_url`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigAck {
    /// Payload version, 1.
    pub version: u64,
    /// Who acknowledges.
    pub node_slug: String,
    /// What is acknowledged.
    pub config_version: String,
    /// When.
    pub ack_at: Time,
    /// How it went.
    pub status: AckStatus,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AckError>,
    /// Hash of what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_config_hash: Option<String>,
}

impl ConfigAck {
    /// Bounds every field.
    pub fn check(&self) -> Result<(), Problem> {
        check_version("", self.version)?;
        check_text(
            "/effective_config_hash",
            self.effective_config_hash.as_deref(),
        )?;
        if let Some(error) = &self.error {
            check_text("/error/type", Some(&error.kind))?;
            if error.message.len() > MAX_CAUSE {
                return Err(Problem::field(
                    "/error/message",
                    format!("is longer than {MAX_CAUSE} bytes"),
                ));
            }
        }
        Ok(())
    }
}

/// How applying a configuration went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AckStatus {
    /// All of it is in force.
    Applied,
    /// It is not.
    Failed,
}

impl AckStatus {
    /// The name on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Failed => "failed",
        }
    }
}

/// Why a configuration could not be applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AckError {
    /// What kind of trouble.
    #[serde(rename = "type")]
    pub kind: String,
    /// For the operator.
    pub message: String,
    /// Anything more; not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}
