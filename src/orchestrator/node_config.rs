//! Use cases of node configurations: serve one, acknowledge one, and find nodes whose configuration is
//! outdated.
//!
//! A configuration gets a new version when its content changes. A node fetches it when it starts, applies it
//! and acknowledges the version; it is scheduled only then.

use super::{AppState, Settings, model_server, node_registration::unregistered, reason::sanitize};
use crate::{
    api::{
        PAYLOAD_VERSION,
        error::ApiError,
        jobs::{MAX_TIMEOUT_SECONDS, NetworkPolicy},
        nodes::{
            self, AckStatus, ConfigAck, ConfigEndpoints, ConfigOrchestrator, ConfigWorkerApi,
            Constraints, ModelCache, NodeConfig, Policy, SandboxPolicy, SandboxRegistry,
        },
        problem::{Problem, ProblemKind},
        time::Time,
    },
    digest::sha256_hex,
    http::MAX_BODY_BYTES,
    store::{AckOutcome, Node},
};

/// Path of reports, which a configuration names.
pub(super) const REPORT_PATH: &str = "/v1/nodes/report";

/// Current configuration of `node`, which reaches this orchestrator at `base_url`. Fails with 401 where the
/// node has registered again meanwhile.
pub(super) async fn serve(
    state: &AppState,
    node: &Node,
    base_url: String,
) -> Result<NodeConfig, ApiError> {
    let (store, identity) = (&state.store, &state.identity);
    let token = identity.worker_token(node.id, node.registration);
    let mut config = content(&state.settings, node, sha256_hex(&token), base_url);
    let version = store
        .node_config_serve(node.id, node.registration, config.clone())
        .await?
        .ok_or_else(unregistered)?;
    config.config_version = version.to_string();
    config.issued_at = Some(Time::now());
    config.orchestrator_id = Some(store.orchestrator_id().clone());
    config.report_interval_seconds = Some(nodes::REPORT_INTERVAL_SECONDS);
    config.worker_api.orchestrator_bearer_token = token;
    let target = state.listening_url(node).unwrap_or_default();
    target.clone_into(&mut config.orchestrator.endpoints.worker_api_target_url);
    Ok(config)
}

/// Stores whether `node` has applied the configuration that `ack`, which was checked, names.
///
/// Fails with 409 for a version that the node was never served, or whose token was replaced since.
pub(super) async fn acknowledge(
    state: &AppState,
    node: &Node,
    ack: ConfigAck,
) -> Result<(), ApiError> {
    let version: i64 = ack.config_version.parse().map_err(|_| {
        Problem::field(
            "/config_version",
            "expected the config_version of a configuration, such as \"1\"",
        )
    })?;
    let status = ack.status;
    let is_new = node.ack_status != Some(AckStatus::Applied) || node.ack_version != Some(version);
    let url = state.worker_url(node);
    let url = url.filter(|_| status == AckStatus::Applied && is_new);
    if let Some(url) = url {
        // Before the acknowledgement is in force, so that no job comes before the probe.
        state.nodes.reachability.mark_pending(node.id, url);
    }
    let error = ack.error.as_ref();
    let error = error.map(|error| sanitize(&error.to_stored()));
    let outcome = state
        .store
        .node_ack(node.id, node.registration, version, ack, Time::now())
        .await?;
    let conflict = |detail| Err(Problem::new(ProblemKind::Conflict, detail).into());
    let is_first = match outcome {
        AckOutcome::Stored { is_first } => is_first,
        AckOutcome::Unregistered => return Err(unregistered().into()),
        AckOutcome::NeverServed => {
            return conflict(format!(
                "this node was never served configuration {version}; fetch the current one and acknowledge its version"
            ));
        }
        AckOutcome::Replaced => {
            return conflict(format!(
                "the Worker API token of configuration {version} was replaced since; fetch the current configuration, \
                 apply it and acknowledge its version"
            ));
        }
    };
    tracing::info!(
        version,
        status = status.as_str(),
        error,
        "configuration acknowledged"
    );
    state.nodes.backoff.clear(node.id);
    if status == AckStatus::Applied && is_first {
        // The node has just started, and may now have what it refused a job for. A repeated
        // acknowledgement shows nothing of that kind.
        state.store.node_readmit(node.id).await?;
    }
    if url.is_some() {
        state.nodes.reachability.wait_probed(node.id).await;
    }
    state.jobs.wake.notify_one();
    Ok(())
}

/// Whether the node runs with another configuration than it would be served now: the last one that it was
/// served differs, or it has applied only an older one.
pub(super) fn is_stale(state: &AppState, node: &Node) -> bool {
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
        // A release before tokens were stored left it empty.
        String::new()
    } else {
        sha256_hex(state.identity.worker_token(node.id, node.registration))
    };
    let base_url = before.orchestrator.base_url.clone();
    let now = content(&state.settings, node, token, base_url);
    serde_json::to_string(&now).ok() != serde_json::to_string(&before).ok()
}

/// Whether the configuration that the node was last served carries the token that the current key derives.
/// The key is a file, which may have been lost or restored since.
pub(super) fn has_current_key(state: &AppState, node: &Node) -> bool {
    node.served_config().is_none_or(|served| {
        let stored = &served.content.worker_api.orchestrator_bearer_token;
        let token = state.identity.worker_token(node.id, served.registration);
        stored.is_empty() || *stored == sha256_hex(token)
    })
}

/// Content of a node's configuration: the part that is stored, compared and numbered. It leaves out version,
/// identity, dates, the node's own address and the report interval, whose change is no new configuration,
/// and holds the digest of the token in place of the token.
fn content(settings: &Settings, node: &Node, token_sha256: String, base_url: String) -> NodeConfig {
    NodeConfig {
        version: PAYLOAD_VERSION,
        config_version: String::new(),
        issued_at: Some(Time::from_millis(0)),
        node_slug: node.slug.clone(),
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
        inference_backend: model_server::backend(settings, &node.slug, &node.capability),
        constraints: Some(Constraints {
            max_request_bytes: Some(MAX_BODY_BYTES as u64),
            max_job_timeout_seconds: Some(MAX_TIMEOUT_SECONDS),
        }),
        report_interval_seconds: None,
    }
}
