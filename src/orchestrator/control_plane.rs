//! The Node API (contract, section 3): register, report, configuration, acknowledgement.

use super::{Orchestrator, Settings, health};
use crate::{
    api::{
        NodeId, PAYLOAD_VERSION,
        audit::{AuditAction, AuditEvent},
        image::ImageRef,
        jobs::{MAX_TIMEOUT_SECONDS, NetworkPolicy},
        nodes::{
            self, AckStatus, Bootstrap, BootstrapAuth, BootstrapEndpoints, BootstrapOrchestrator,
            CapabilityReport, ConfigAck, ConfigEndpoints, ConfigOrchestrator, ConfigWorkerApi,
            Constraints, InferenceBackend, ModelCache, NodeConfig, Policy, Register, SandboxPolicy,
            SandboxRegistry,
        },
        problem::{Kind, Problem},
        time::Time,
    },
    digest::sha256_hex,
    http::{
        MAX_BODY_BYTES,
        request::Request,
        response::{self, Reply},
        router::Router,
    },
    identity::store_problem,
    store::{Node, Registration},
};
use http::{Method, StatusCode};
use std::sync::Arc;

/// Longest registration: a report at its limits is smaller.
const MAX_REGISTRATION: usize = 1024 * 1024;
const REGISTER: &str = "/v1/nodes/register";
const REPORT: &str = "/v1/nodes/report";
/// The report path by the name that other implementations know.
const CAPABILITY: &str = "/v1/nodes/capability";
const CONFIG: &str = "/v1/nodes/config";

/// All calls of the control plane.
pub(super) fn router(orchestrator: Arc<Orchestrator>) -> Router<Orchestrator> {
    let requests = orchestrator.metrics.requests("control");
    let builder = Router::new()
        .route(Method::POST, REGISTER, register)
        .route(Method::POST, REPORT, report)
        .route(Method::POST, CAPABILITY, report)
        .route(Method::GET, CONFIG, config)
        .route(Method::POST, CONFIG, acknowledge);
    health::routes(builder).build(orchestrator, requests)
}

async fn register(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    request.limit_body(MAX_REGISTRATION);
    let body: Register = request.payload().await?;
    let (peer, origin) = (request.connection.peer, request.origin());
    let event = AuditEvent::new(AuditAction::NodeRegister, Time::now(), Some(&origin));
    // First of all: who has no key is told nothing of slugs.
    if let Err(problem) = orchestrator.identity.check_psk(&body.psk, origin.address) {
        if problem.kind == Kind::Unauthorized {
            orchestrator.identity.note(event.refused(&problem)).await?;
        }
        return Err(problem);
    }
    body.check()?;
    let Register {
        capability,
        node_key,
        ..
    } = body;
    let (slug, hash) = (capability.node.node_slug.clone(), hash_of(&capability));
    let registered = orchestrator
        .store
        .node_register(capability, hash, node_key.map(sha256_hex), event)
        .await
        .map_err(store_problem)?;
    let (status, id) = match registered {
        Registration::Created(id) => (StatusCode::CREATED, id),
        Registration::Known(id) => (StatusCode::OK, id),
        Registration::Taken => {
            tracing::warn!(node = slug, %peer, "a machine asked for the slug of another one");
            return Err(slug_taken(&slug));
        }
    };
    tracing::info!(node = slug, new = status == StatusCode::CREATED, %peer, "node registered");
    orchestrator.leftovers.owe(id);
    let base_url = base_url(&orchestrator, &request);
    let (node_jwt, expires_at) = orchestrator.identity.node_token(id)?;
    response::json(
        status,
        &Bootstrap {
            version: PAYLOAD_VERSION,
            issued_at: Some(Time::now()),
            orchestrator_id: Some(orchestrator.store.orchestrator_id().clone()),
            orchestrator: BootstrapOrchestrator {
                endpoints: BootstrapEndpoints {
                    worker_registration_url: Some(format!("{base_url}{REGISTER}")),
                    node_report_url: format!("{base_url}{REPORT}"),
                    node_config_url: format!("{base_url}{CONFIG}"),
                },
                base_url,
            },
            auth: BootstrapAuth {
                node_jwt,
                expires_at: Some(expires_at),
            },
        },
    )
}

fn slug_taken(slug: &str) -> Problem {
    Problem::new(
        Kind::SlugTaken,
        format!(
            "the slug {slug} belongs to another machine; start this one with another --slug, or, where it \
             takes the place of that machine or has lost its data directory, have an admin run: \
             cynode nodes forget {slug}"
        ),
    )
}

async fn report(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    let node = calling_node(&orchestrator, &request).await?;
    let report: CapabilityReport = request.payload().await?;
    report.check("")?;
    own_slug("/node/node_slug", &report.node.node_slug, &node)?;
    let hash = hash_of(&report);
    let now = Time::now();
    let stored = orchestrator
        .store
        .node_report(node.id, report, hash, now)
        .await
        .map_err(store_problem)?;
    if !stored {
        return Err(forgotten());
    }
    let silent = now.since(orchestrator.liveness.heard(&node).at);
    orchestrator.leftovers.heard(node.id, silent);
    orchestrator.wake.notify_one();
    response::no_content()
}

async fn config(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let node = calling_node(&orchestrator, &request).await?;
    let token = orchestrator.identity.worker_token(node.id);
    let mut config = content(
        &orchestrator.settings,
        &node.slug,
        sha256_hex(&token),
        base_url(&orchestrator, &request),
    );
    let stored = serde_json::to_string(&config).map_err(|_| Problem::internal())?;
    let version = orchestrator
        .store
        .node_config_serve(node.id, stored)
        .await
        .map_err(store_problem)?
        .ok_or_else(forgotten)?;
    config.config_version = version.to_string();
    config.issued_at = Some(Time::now());
    config.orchestrator_id = Some(orchestrator.store.orchestrator_id().clone());
    config.report_interval_seconds = Some(nodes::REPORT_INTERVAL_SECONDS);
    config.worker_api.orchestrator_bearer_token = token;
    let target = orchestrator.worker_url(&node).unwrap_or_default();
    target.clone_into(&mut config.orchestrator.endpoints.worker_api_target_url);
    response::ok(&config)
}

/// Whether the node runs with another configuration than it would be served now: what it was last served
/// differs, or it has applied an older one only.
pub(super) fn is_stale(orchestrator: &Orchestrator, node: &Node) -> bool {
    let Some(served) = node.config.as_deref() else {
        return false;
    };
    if node.ack_status == Some(AckStatus::Applied) && node.ack_version != Some(node.config_version)
    {
        return true;
    }
    let Ok(before) = serde_json::from_str::<NodeConfig>(served) else {
        return true;
    };
    let token = present_token(orchestrator, node, &before);
    let base_url = before.orchestrator.base_url;
    let now = content(&orchestrator.settings, &node.slug, token, base_url);
    serde_json::to_string(&now).ok().as_deref() != Some(served)
}

/// Whether what the node was last served carries the token by which it is called now. Our key for these
/// tokens is a file, which may have been lost or restored since.
pub(super) fn has_present_token(orchestrator: &Orchestrator, node: &Node) -> bool {
    let served = node.config.as_deref();
    let before = served.and_then(|served| serde_json::from_str::<NodeConfig>(served).ok());
    before.is_none_or(|before| {
        let token = &before.worker_api.orchestrator_bearer_token;
        *token == present_token(orchestrator, node, &before)
    })
}

/// What stands for the node's present token in what is stored; nothing in what an older release has stored.
fn present_token(orchestrator: &Orchestrator, node: &Node, before: &NodeConfig) -> String {
    if before.worker_api.orchestrator_bearer_token.is_empty() {
        return String::new();
    }
    sha256_hex(orchestrator.identity.worker_token(node.id))
}

async fn acknowledge(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    let node = calling_node(&orchestrator, &request).await?;
    let ack: ConfigAck = request.payload().await?;
    ack.check()?;
    own_slug("/node_slug", &ack.node_slug, &node)?;
    let version: i64 = ack.config_version.parse().map_err(|_| {
        Problem::field(
            "/config_version",
            "expected the config_version of a configuration, such as \"1\"",
        )
    })?;
    let (status, error) = (
        ack.status,
        ack.error.as_ref().map(|error| error.message.clone()),
    );
    let stored = orchestrator
        .store
        .node_ack(node.id, version, ack, Time::now())
        .await
        .map_err(store_problem)?;
    if !stored {
        // It may have been forgotten just now.
        calling_node(&orchestrator, &request).await?;
        return Err(Problem::new(
            Kind::Conflict,
            format!(
                "this node was never served configuration {version}; fetch it and acknowledge that version"
            ),
        ));
    }
    tracing::info!(
        node = node.slug,
        version,
        status = status.as_str(),
        error,
        "configuration acknowledged"
    );
    orchestrator.avoided.forgive(node.id);
    if status == nodes::AckStatus::Applied {
        // It has just started, and may have by now what it refused a job for.
        let readmitted = orchestrator.store.node_readmit(node.id).await;
        readmitted.map_err(store_problem)?;
    }
    orchestrator.wake.notify_one();
    response::no_content()
}

/// The node that calls. One that was forgotten has to register again.
async fn calling_node(orchestrator: &Orchestrator, request: &Request) -> Result<Node, Problem> {
    let id: NodeId = orchestrator.identity.node(request.bearer())?;
    let node = orchestrator
        .store
        .node_get(id)
        .await
        .map_err(store_problem)?;
    node.ok_or_else(forgotten)
}

fn forgotten() -> Problem {
    Problem::unauthorized("this node is not registered any more; register again")
}

fn own_slug(pointer: &str, named: &str, node: &Node) -> Result<(), Problem> {
    if named == node.slug {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        format!("is not the slug of this token's node, {}", node.slug),
    ))
}

fn hash_of(report: &CapabilityReport) -> String {
    format!(
        "sha256:{}",
        sha256_hex(serde_json::to_vec(report).unwrap_or_default())
    )
}

/// How nodes reach us: as the operator says, or else as this node did.
fn base_url(orchestrator: &Orchestrator, request: &Request) -> String {
    if let Some(url) = &orchestrator.settings.public_url {
        return url.trim_end_matches('/').to_owned();
    }
    // The name or forwarded port that the node used, where it is one; only this node is told.
    let named = request.header("host").map(|host| format!("http://{host}"));
    named
        .filter(|url| nodes::check_url("", url).is_ok())
        .unwrap_or_else(|| format!("http://{}", request.connection.local))
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
                node_report_url: format!("{base_url}{REPORT}"),
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
