//! Configuration of a node, and its acknowledgement (contract, section 3).

use super::validation::check_text;
use crate::{
    api::{
        OrchestratorId, check_version,
        integer::optional_integer,
        jobs::NetworkPolicy,
        lenient::{default_true, invalid_as_default, null_as_default, null_as_true},
        problem::Problem,
        string_form::named_enum,
        time::Time,
    },
    text::clean_prefix,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::{ops::RangeInclusive, time::Duration};

/// Longest message of a failed acknowledgement, in bytes.
const MAX_ACK_MESSAGE_BYTES: usize = 4096;
/// Longest part of a value that an error quotes, in bytes.
const MAX_QUOTED_BYTES: usize = 64;
/// Default interval between two reports of a node, in seconds.
pub const REPORT_INTERVAL_SECONDS: u64 = 10;
/// Range of the report interval, in seconds; a node clamps other values.
const REPORT_INTERVAL_RANGE_SECONDS: RangeInclusive<u64> = 1..=300;

/// Answer of `GET node_config_url`.
///
/// Required are the version, the `config_version` and the token; see [`check`](Self::check). Other implementations
/// may leave out the rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Payload version, 1.
    pub version: u64,
    /// Version of the configuration: an integer as a string, or any text of another implementation.
    pub config_version: String,
    /// Time of this answer.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub issued_at: Option<Time>,
    /// Slug of the node.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub node_slug: String,
    /// Identity of the orchestrator, which the node stores with each job; other implementations may leave it out.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub orchestrator_id: Option<OrchestratorId>,
    /// URLs of the Node API.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub orchestrator: ConfigOrchestrator,
    /// Registry of sandbox images.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub sandbox_registry: SandboxRegistry,
    /// Registries of sandbox images, best first.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub sandbox_registries: Vec<SandboxRegistry>,
    /// Cache of models.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub model_cache: ModelCache,
    /// Policies.
    #[serde(default, deserialize_with = "null_as_default")]
    pub policy: Policy,
    /// Credentials of the orchestrator at the Worker API.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub worker_api: ConfigWorkerApi,
    /// Model server to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_backend: Option<InferenceBackend>,
    /// Upper limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Constraints>,
    /// Interval between two reports, in seconds.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub report_interval_seconds: Option<u64>,
}

impl NodeConfig {
    /// Checks the fields that are required, and the policies that must be enforceable.
    pub fn check(&self) -> Result<(), Problem> {
        if self.worker_api.orchestrator_bearer_token.is_empty() {
            return Err(Problem::field(
                "/worker_api/orchestrator_bearer_token",
                "is missing; without it the orchestrator can't call this node's Worker API",
            ));
        }
        let policy = self.policy.sandbox.default_network_policy.as_deref();
        let known = [NetworkPolicy::None, NetworkPolicy::Restricted].map(NetworkPolicy::as_str);
        match policy {
            None | Some("") => Ok(()),
            Some(policy) if known.contains(&policy) => Ok(()),
            Some(policy) => Err(Problem::field(
                "/policy/sandbox/default_network_policy",
                format!(
                    "{:?} is not a policy that this node can enforce ({}); change it at the \
                     orchestrator, or run a release of cynode that knows it",
                    clean_prefix(policy, MAX_QUOTED_BYTES),
                    known.join(", ")
                ),
            )),
        }
    }

    /// Whether images are to be pulled from another registry than the one in their names.
    pub fn has_custom_registries(&self) -> bool {
        let mut registries = self
            .sandbox_registries
            .iter()
            .chain([&self.sandbox_registry]);
        registries.any(|registry| !["", "docker.io"].contains(&registry.registry_url.as_str()))
    }

    /// Interval between two reports, within its range.
    pub fn report_interval(&self) -> Duration {
        let asked = self.report_interval_seconds.filter(|seconds| *seconds > 0);
        let seconds = asked.unwrap_or(REPORT_INTERVAL_SECONDS);
        Duration::from_secs(seconds.clamp(
            *REPORT_INTERVAL_RANGE_SECONDS.start(),
            *REPORT_INTERVAL_RANGE_SECONDS.end(),
        ))
    }
}

/// URLs of the Node API, for a configured node.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ConfigOrchestrator {
    /// Base URL.
    #[serde(default)]
    pub base_url: String,
    /// URLs.
    #[serde(default)]
    pub endpoints: ConfigEndpoints,
}

/// Endpoints of a configured node.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ConfigEndpoints {
    /// URL at which the orchestrator calls the node's Worker API.
    #[serde(default)]
    pub worker_api_target_url: String,
    /// URL for capability reports.
    #[serde(default)]
    pub node_report_url: String,
}

/// Registry of sandbox images.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct SandboxRegistry {
    /// URL; empty when there is none.
    #[serde(default)]
    pub registry_url: String,
}

/// Cache of models.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ModelCache {
    /// URL; empty when there is none.
    #[serde(default)]
    pub cache_url: String,
}

/// Policies. A wrong type in here is an error: no policy may silently have no effect.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Policy for sandboxes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub sandbox: SandboxPolicy,
}

/// Policy for sandboxes.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct SandboxPolicy {
    /// Network policy of jobs that name none: the name of a [`NetworkPolicy`] or, until it is
    /// [checked](NodeConfig::check), of one that this release does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_network_policy: Option<String>,
    /// Patterns of allowed images in normal form, with `*`; absent allows all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_images: Option<Vec<String>>,
}

/// Credentials of the orchestrator at the Worker API.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct ConfigWorkerApi {
    /// Bearer token that the Worker API accepts.
    pub orchestrator_bearer_token: String,
}

impl std::fmt::Debug for ConfigWorkerApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfigWorkerApi(…)")
    }
}

/// Model server to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InferenceBackend {
    /// Whether to run one; `true` where the object does not say.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub enabled: bool,
    /// Image of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Variant of the image, such as `rocm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Port on 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Names of the models to pull.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
}

/// Upper limits; where one is absent or 0, the node's own applies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Constraints {
    /// Largest body of a request, in bytes.
    #[serde(
        default,
        deserialize_with = "limit",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_request_bytes: Option<u64>,
    /// Longest time limit of a job, in seconds.
    #[serde(
        default,
        deserialize_with = "limit",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_job_timeout_seconds: Option<u64>,
}

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    optional_integer(deserializer, 0..)
}

/// Body of `POST node_config_url`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigAck {
    /// Payload version, 1.
    pub version: u64,
    /// Slug of the node.
    pub node_slug: String,
    /// Version of the configuration.
    pub config_version: String,
    /// Time of the acknowledgement.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub ack_at: Option<Time>,
    /// Status of the configuration at the node.
    pub status: AckStatus,
    /// Reason of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AckError>,
    /// Hash of the configuration in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_config_hash: Option<String>,
}

impl ConfigAck {
    /// Checks every field.
    pub fn check(&self) -> Result<(), Problem> {
        check_version("", self.version)?;
        check_text(
            "/effective_config_hash",
            self.effective_config_hash.as_deref(),
        )?;
        if let Some(error) = &self.error {
            check_text("/error/type", Some(&error.kind))?;
            if error.message.len() > MAX_ACK_MESSAGE_BYTES {
                return Err(Problem::field(
                    "/error/message",
                    format!(
                        "must have at most {MAX_ACK_MESSAGE_BYTES} bytes, got {}",
                        error.message.len()
                    ),
                ));
            }
        }
        Ok(())
    }
}

named_enum! {
    /// Status of a configuration at a node.
    pub enum AckStatus {
        /// The configuration is in force.
        Applied,
        /// The configuration could not be applied.
        Failed,
    }
}

/// Kinds of [`AckError`] that this release knows.
const KNOWN_ACK_ERRORS: [&str; 9] = [
    "invalid-configuration",
    "worker-api",
    "image-unavailable",
    "container-not-ours",
    "port-in-use",
    "model-server-not-started",
    "model-server-silent",
    "engine-error",
    "image-not-allowed",
];

impl AckError {
    /// Text for the database.
    pub fn to_stored(&self) -> String {
        format!("{}: {}", self.kind, self.message)
    }

    /// Kind and message from the text of [`to_stored`](Self::to_stored), where the kind is a known one.
    pub fn parse_stored(line: &str) -> (Option<&str>, Option<&str>) {
        match line.split_once(": ") {
            Some((kind, message)) if KNOWN_ACK_ERRORS.contains(&kind) => {
                (Some(kind), Some(message))
            }
            _ => (None, None),
        }
    }
}

/// Reason why a configuration could not be applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AckError {
    /// Kind of the error.
    #[serde(rename = "type", default, deserialize_with = "null_as_default")]
    pub kind: String,
    /// Message for the operator.
    #[serde(default, deserialize_with = "null_as_default")]
    pub message: String,
    /// Further details; not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}
