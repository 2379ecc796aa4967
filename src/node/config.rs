//! Configuration from the orchestrator: its checks, its job policy, and its acknowledgement.

use super::NodeError;
use crate::{
    api::{
        PAYLOAD_VERSION,
        nodes::{AckError, AckStatus, ConfigAck, Constraints, NodeConfig},
        time::Time,
    },
    digest::sha256_hex,
    errors,
    worker::JobPolicy,
};

/// Maximum length of an error message in an acknowledgement, in bytes.
const MAX_ERROR_MESSAGE_BYTES: usize = 4000;

/// Checks a configuration. Fails where it lacks a setting, or has one that this node cannot enforce.
pub(super) fn validate(config: &NodeConfig) -> Result<(), NodeError> {
    config
        .check()
        .map_err(|problem| NodeError::unusable_answer("configuration", &problem))?;
    if config.has_custom_registries() {
        tracing::warn!(
            "ignoring the registries of the configuration; images come from the registry in their name"
        );
    }
    Ok(())
}

/// Policy for jobs, from the configuration.
pub(super) fn policy_from(config: &NodeConfig) -> JobPolicy {
    let policy = JobPolicy::default();
    let limit = |of: fn(&Constraints) -> Option<u64>| {
        let limit = config.constraints.as_ref().and_then(of);
        limit.filter(|limit| *limit > 0)
    };
    JobPolicy {
        allowed_images: config
            .policy
            .sandbox
            .allowed_images
            .iter()
            .cloned()
            .collect(),
        max_timeout_seconds: limit(|constraints| constraints.max_job_timeout_seconds)
            .unwrap_or(policy.max_timeout_seconds),
        max_request_bytes: limit(|constraints| constraints.max_request_bytes)
            .map_or(policy.max_request_bytes, |bytes| {
                usize::try_from(bytes).unwrap_or(usize::MAX)
            }),
    }
}

/// The acknowledgement of a configuration: applied, or failed with its reason.
pub(super) fn build_ack(slug: &str, config: &NodeConfig, failure: Option<&NodeError>) -> ConfigAck {
    let hash = sha256_hex(serde_json::to_vec(config).unwrap_or_default());
    ConfigAck {
        version: PAYLOAD_VERSION,
        node_slug: slug.to_owned(),
        config_version: config.config_version.clone(),
        ack_at: Some(Time::now()),
        status: match failure {
            Some(_) => AckStatus::Failed,
            None => AckStatus::Applied,
        },
        error: failure.map(|error| {
            let mut message = errors::chain(error);
            message.truncate(message.floor_char_boundary(MAX_ERROR_MESSAGE_BYTES));
            AckError {
                kind: match error {
                    NodeError::Inference(error) => error.kind(),
                    NodeError::UnusableAnswer { .. } => "invalid-configuration",
                    _ => "worker-api",
                }
                .to_owned(),
                message,
                details: None,
            }
        }),
        effective_config_hash: Some(format!("sha256:{hash}")),
    }
}
