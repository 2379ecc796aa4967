//! What a node is told to do, and whether it does.

use super::validation::check_text;
use crate::api::{
    OrchestratorId, check_version,
    integer::optional_integer,
    jobs::NetworkPolicy,
    lenient::{default_true, invalid_as_default, null_as_default, null_as_true},
    problem::Problem,
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::{ops::RangeInclusive, time::Duration};
use strum::{EnumString, IntoStaticStr, VariantNames};

/// Longest cause of a failed acknowledgement, in bytes.
const MAX_ACK_MESSAGE_BYTES: usize = 4096;
/// Seconds between two reports of a node that isn't told another number.
pub const REPORT_INTERVAL_SECONDS: u64 = 10;
/// Seconds between two reports that an orchestrator may ask for; a node goes to the nearer end.
const REPORT_INTERVAL_RANGE_SECONDS: RangeInclusive<u64> = 1..=300;

/// Answer of `GET node_config_url`.
///
/// Needed of it are the version, the `config_version` and the token; see [`check`](Self::check). Other
/// implementations leave out the rest, or call it by another name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Payload version, 1.
    pub version: u64,
    /// Counts what this node was served; an integer as a string. Of another orchestrator it is any text.
    pub config_version: String,
    /// When this was made.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub issued_at: Option<Time>,
    /// For which node.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub node_slug: String,
    /// Identity of the orchestrator, which the node keeps with each job; a peer may send none.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub orchestrator_id: Option<OrchestratorId>,
    /// Where things are.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub orchestrator: ConfigOrchestrator,
    /// Where sandbox images come from.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub sandbox_registry: SandboxRegistry,
    /// The same as a list, best first, as newer orchestrators say it.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub sandbox_registries: Vec<SandboxRegistry>,
    /// Where models come from.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub model_cache: ModelCache,
    /// What is allowed.
    #[serde(default, deserialize_with = "null_as_default")]
    pub policy: Policy,
    /// How the orchestrator will show itself at the Worker API.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub worker_api: ConfigWorkerApi,
    /// The model server to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_backend: Option<InferenceBackend>,
    /// Upper limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Constraints>,
    /// Seconds between two reports of the node.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub report_interval_seconds: Option<u64>,
}

impl NodeConfig {
    /// Checks what a node can't do without and what it must not guess.
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
                    "{policy:.64?} is not a policy that this node can enforce ({}); change it at the \
                     orchestrator, or run a release of cynode that knows it",
                    known.join(", ")
                ),
            )),
        }
    }

    /// Whether it wants images from another registry than the one in their names.
    pub fn has_custom_registries(&self) -> bool {
        let mut registries = self
            .sandbox_registries
            .iter()
            .chain([&self.sandbox_registry]);
        registries.any(|registry| !["", "docker.io"].contains(&registry.registry_url.as_str()))
    }

    /// How often the node reports.
    pub fn report_interval(&self) -> Duration {
        let asked = self.report_interval_seconds.filter(|seconds| *seconds > 0);
        let seconds = asked.unwrap_or(REPORT_INTERVAL_SECONDS);
        Duration::from_secs(seconds.clamp(
            *REPORT_INTERVAL_RANGE_SECONDS.start(),
            *REPORT_INTERVAL_RANGE_SECONDS.end(),
        ))
    }
}

/// Where things are, for a configured node.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ConfigOrchestrator {
    /// Root of the control plane.
    #[serde(default)]
    pub base_url: String,
    /// URLs.
    #[serde(default)]
    pub endpoints: ConfigEndpoints,
}

/// URLs for a configured node.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ConfigEndpoints {
    /// Where the orchestrator will look for the node's Worker API.
    #[serde(default)]
    pub worker_api_target_url: String,
    /// For capability reports.
    #[serde(default)]
    pub node_report_url: String,
}

/// Where sandbox images come from.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct SandboxRegistry {
    /// Empty when there is none.
    #[serde(default)]
    pub registry_url: String,
}

/// Where models come from.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ModelCache {
    /// Empty when there is none.
    #[serde(default)]
    pub cache_url: String,
}

/// What is allowed. A wrong type in here is an error: nothing of it may be silently without effect.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// For sandboxes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub sandbox: SandboxPolicy,
}

/// What sandboxes are allowed.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct SandboxPolicy {
    /// The network of a job that names none: the name of a [`NetworkPolicy`], or, until it is
    /// [checked](NodeConfig::check), of one that this release doesn't know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_network_policy: Option<String>,
    /// `*` patterns on the normal form; absent allows all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_images: Option<Vec<String>>,
}

/// How the orchestrator shows itself at the Worker API.
#[derive(Clone, Default, Serialize, Deserialize)]
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
    /// Whether to run one; an object that doesn't say wants one.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
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

/// Upper limits. Where one is absent or 0, the node's own counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Constraints {
    /// Bytes of a body.
    #[serde(
        default,
        deserialize_with = "limit",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_request_bytes: Option<u64>,
    /// Seconds of a job.
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
    /// Who acknowledges.
    pub node_slug: String,
    /// What is acknowledged.
    pub config_version: String,
    /// When.
    #[serde(default, deserialize_with = "invalid_as_default")]
    pub ack_at: Option<Time>,
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

/// How applying a configuration went.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Serialize,
    JsonSchema,
    EnumString,
    IntoStaticStr,
    VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AckStatus {
    /// All of it is in force.
    Applied,
    /// It is not.
    Failed,
}

impl AckStatus {
    /// The name on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Kinds of trouble that we know.
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
    /// What is stored of it.
    pub fn to_stored(&self) -> String {
        format!("{}: {}", self.kind, self.message)
    }

    /// What was stored of one: its kind and its message, where we know the kind.
    pub fn parse_stored(line: &str) -> (Option<&str>, Option<&str>) {
        match line.split_once(": ") {
            Some((kind, message)) if KNOWN_ACK_ERRORS.contains(&kind) => {
                (Some(kind), Some(message))
            }
            _ => (None, None),
        }
    }
}

/// Why a configuration could not be applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AckError {
    /// What kind of trouble.
    #[serde(rename = "type", default, deserialize_with = "null_as_default")]
    pub kind: String,
    /// For the operator.
    #[serde(default, deserialize_with = "null_as_default")]
    pub message: String,
    /// Anything more; not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

crate::api::string_form::deserialize_by_name!(AckStatus);
