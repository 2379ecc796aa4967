//! Configurations of nodes: serving one, and acknowledgements of it.

use super::{
    MAX_REPORT_BYTES, REPORT_PATH, authenticate_node, base_url, check_own_slug, unregistered,
};
use crate::{
    api::{
        PAYLOAD_VERSION,
        image::ImageRef,
        jobs::{MAX_TIMEOUT_SECONDS, NetworkPolicy},
        nodes::{
            self, AckStatus, ConfigAck, ConfigEndpoints, ConfigOrchestrator, ConfigWorkerApi,
            Constraints, InferenceBackend, ModelCache, NodeConfig, Policy, SandboxPolicy,
            SandboxRegistry,
        },
        problem::{Problem, ProblemKind},
        time::Time,
    },
    digest::sha256_hex,
    http::{
        MAX_BODY_BYTES,
        request::Request,
        response::{self, Reply},
    },
    orchestrator::{AppState, Settings, reason::sanitize},
    store::{AckOutcome, Node},
};
use std::sync::Arc;

pub(super) async fn config(state: Arc<AppState>, request: Request) -> Reply {
    let node = authenticate_node(&state, &request).await?;
    let token = state.identity.worker_token(node.id, node.registration);
    let mut config = content(
        &state.settings,
        &node.slug,
        sha256_hex(&token),
        base_url(&state, &request),
    );
    let version = state
        .store
        .node_config_serve(node.id, node.registration, config.clone())
        .await?
        .ok_or_else(unregistered)?;
    config.config_version = version.to_string();
    config.issued_at = Some(Time::now());
    config.orchestrator_id = Some(state.store.orchestrator_id().clone());
    config.report_interval_seconds = Some(nodes::REPORT_INTERVAL_SECONDS);
    config.worker_api.orchestrator_bearer_token = token;
    let target = state.worker_url(&node).unwrap_or_default();
    target.clone_into(&mut config.orchestrator.endpoints.worker_api_target_url);
    response::ok(&config)
}

/// Whether the node runs with another configuration than it would be served now: what it was last served
/// differs, or it has applied an older one only.
pub(in crate::orchestrator) fn is_stale(state: &AppState, node: &Node) -> bool {
    if node.config.is_none() {
        return false;
    }
    if node.ack_status == Some(AckStatus::Applied) && node.ack_version != Some(node.config_version)
    {
        return true;
    }
    let Some(served) = node.served_config() else {
        return true;
    };
    let before = served.content;
    let token = if before.worker_api.orchestrator_bearer_token.is_empty() {
        // An older release stored none.
        String::new()
    } else {
        sha256_hex(state.identity.worker_token(node.id, node.registration))
    };
    let base_url = before.orchestrator.base_url.clone();
    let now = content(&state.settings, &node.slug, token, base_url);
    serde_json::to_string(&now).ok() != serde_json::to_string(&before).ok()
}

/// Whether what the node was last served carries the token that our key gives for it. That key is a file,
/// which may have been lost or restored since.
pub(in crate::orchestrator) fn has_current_key(state: &AppState, node: &Node) -> bool {
    node.served_config().is_none_or(|served| {
        let stored = &served.content.worker_api.orchestrator_bearer_token;
        let token = state.identity.worker_token(node.id, served.registration);
        stored.is_empty() || *stored == sha256_hex(token)
    })
}

pub(super) async fn acknowledge(state: Arc<AppState>, mut request: Request) -> Reply {
    let node = authenticate_node(&state, &request).await?;
    request.limit_body(MAX_REPORT_BYTES);
    let ack: ConfigAck = request.payload().await?;
    ack.check()?;
    check_own_slug("/node_slug", &ack.node_slug, &node)?;
    let version: i64 = ack.config_version.parse().map_err(|_| {
        Problem::field(
            "/config_version",
            "expected the config_version of a configuration, such as \"1\"",
        )
    })?;
    let (status, error) = (
        ack.status,
        ack.error.as_ref().map(|error| sanitize(&error.to_stored())),
    );
    let outcome = state
        .store
        .node_ack(node.id, node.registration, version, ack, Time::now())
        .await?;
    let conflict = |detail: String| Err(Problem::new(ProblemKind::Conflict, detail).into());
    let is_first = match outcome {
        AckOutcome::Stored { is_first } => is_first,
        AckOutcome::Unregistered => return Err(unregistered().into()),
        AckOutcome::NeverServed => {
            return conflict(format!(
                "this node was never served configuration {version}; fetch it and acknowledge that version"
            ));
        }
        AckOutcome::Replaced => {
            return conflict(format!(
                "configuration {version} carried a Worker API token that was replaced since; fetch the present \
                 configuration, apply it and acknowledge that version"
            ));
        }
    };
    tracing::info!(
        node = node.slug,
        version,
        status = status.as_str(),
        error,
        "configuration acknowledged"
    );
    state.nodes.backoff.clear(node.id);
    if status == AckStatus::Applied && is_first {
        // It has just started, and may have by now what it refused a job for. One that says so again and
        // again has not.
        let readmitted = state.store.node_readmit(node.id).await;
        readmitted?;
    }
    state.jobs.wake.notify_one();
    response::no_content()
}

/// What of a node's configuration is compared and stored: neither version, identity and dates, nor the node's
/// own address and how often it reports, whose change is no change of configuration. For the token stands its
/// SHA-256.
fn content(settings: &Settings, slug: &str, token_sha256: String, base_url: String) -> NodeConfig {
    NodeConfig {
        version: PAYLOAD_VERSION,
        config_version: String::new(),
        issued_at: Some(Time::from_millis(0)),
        node_slug: slug.to_owned(),
        orchestrator_id: None,
        orchestrator: ConfigOrchestrator {
            endpoints: ConfigEndpoints {
                worker_api_target_url: String::new(),
                node_report_url: format!("{base_url}{REPORT_PATH}"),
            },
            base_url,
        },
        sandbox_registry: SandboxRegistry {
            registry_url: String::new(),
        },
        sandbox_registries: Vec::new(),
        model_cache: ModelCache {
            cache_url: String::new(),
        },
        policy: Policy {
            sandbox: SandboxPolicy {
                default_network_policy: Some(NetworkPolicy::default().as_str().to_owned()),
                allowed_images: None,
            },
        },
        worker_api: ConfigWorkerApi {
            orchestrator_bearer_token: token_sha256,
        },
        inference_backend: settings.inference_image.as_ref().map(|image: &ImageRef| {
            InferenceBackend {
                enabled: true,
                image: Some(image.as_str().to_owned()),
                variant: None,
                port: None,
                models: (!settings.inference_models.is_empty())
                    .then(|| settings.inference_models.clone()),
            }
        }),
        constraints: Some(Constraints {
            max_request_bytes: Some(MAX_BODY_BYTES as u64),
            max_job_timeout_seconds: Some(MAX_TIMEOUT_SECONDS),
        }),
        report_interval_seconds: None,
    }
}
