//! The Node API (contract, section 3): register, report, configuration, acknowledgement.

mod config;

pub(super) use config::{has_current_key, is_stale};

use super::{AppState, health, readiness};
use crate::{
    api::{
        NodeId, PAYLOAD_VERSION,
        audit::{AuditAction, AuditEvent},
        error::ApiError,
        nodes::{
            self, Bootstrap, BootstrapAuth, BootstrapEndpoints, BootstrapOrchestrator,
            CapabilityReport, Register,
        },
        problem::{Problem, ProblemKind},
        time::Time,
    },
    digest::sha256_hex,
    http::{
        budget::Account,
        request::Request,
        response::{self, Reply},
        router::Router,
    },
    instances::InstanceStatus,
    store::{Node, RegisterOutcome},
};
use http::{Method, StatusCode};
use std::sync::Arc;
use tokio::time::Instant;
use uuid::Uuid;

/// Longest report, acknowledgement, and registration that shows the pre-shared key in its head: a report at
/// its limits is smaller.
const MAX_REPORT_BYTES: usize = 1024 * 1024;
/// Longest one that shows it in its body, which anybody may send.
const MAX_UNAUTHENTICATED_BYTES: usize = 256 * 1024;
const REGISTER_PATH: &str = "/v1/nodes/register";
const REPORT_PATH: &str = "/v1/nodes/report";
/// The report path by the name that other implementations know.
const CAPABILITY_PATH: &str = "/v1/nodes/capability";
const CONFIG_PATH: &str = "/v1/nodes/config";

/// All calls of the control plane.
pub(super) fn router(state: Arc<AppState>) -> Router<AppState> {
    let requests = state.metrics.requests("control");
    let builder = Router::new()
        .route(Method::POST, REGISTER_PATH, register)
        .route(Method::POST, REPORT_PATH, report)
        .route(Method::POST, CAPABILITY_PATH, report)
        .route(Method::GET, CONFIG_PATH, config::config)
        .route(Method::POST, CONFIG_PATH, config::acknowledge);
    health::routes(builder).build(state, requests)
}

async fn register(state: Arc<AppState>, mut request: Request) -> Reply {
    let (peer, origin) = (request.connection.peer, request.origin());
    let event = AuditEvent::new(AuditAction::NodeRegister, Time::now(), Some(&origin));
    let body = authenticate_registration(&state, &mut request, &event).await?;
    body.check()?;
    let Register {
        mut capability,
        node_key,
        ..
    } = body;
    state
        .check_worker_address(&request, &mut capability, "/capability")
        .await?;
    let (slug, hash) = (capability.node.node_slug.clone(), report_hash(&capability));
    let key = node_key.map(sha256_hex);
    let instance = capability.node.instance_id.clone();
    // Whose slug it is comes first: nobody else can make a node look like two.
    let known = state.store.node_owned(slug.clone(), key.clone()).await?;
    let is_newcomer = |id| {
        let process = instance.as_deref();
        process.is_some_and(|process| state.nodes.instances.is_unknown(&id, process))
    };
    match known {
        // It is heard once it is registered: a late call of the process before it, whose token still counts,
        // must not make the two look alive.
        Some(id) if is_newcomer(id) => {}
        Some(id) => observe_instance(&state, id, &slug, instance.as_deref(), &request).await?,
        None => state.identity.admit_new_node(origin.address)?,
    }
    let (offered, most) = (capability.max_concurrency(), state.settings.max_nodes);
    let registered = state
        .store
        .node_register(capability, hash, key, most, event)
        .await?;
    let (status, id, registration) = match registered {
        RegisterOutcome::Created(id, registration) => (StatusCode::CREATED, id, registration),
        RegisterOutcome::Known(id, registration) => (StatusCode::OK, id, registration),
        RegisterOutcome::Taken => {
            tracing::warn!(node = slug, %peer, "a machine asked for the slug of another one");
            return Err(slug_taken_error(&slug).into());
        }
        RegisterOutcome::Full => return Err(too_many_nodes(most).into()),
    };
    observe_instance(&state, id, &slug, instance.as_deref(), &request).await?;
    tracing::info!(node = slug, new = status == StatusCode::CREATED, %peer, "node registered");
    state.nodes.slots.log_excess_slots(&slug, None, offered);
    state.nodes.reconciler.mark_dirty(id);
    let base_url = base_url(&state, &request);
    let (node_jwt, expires_at) = state.identity.node_token(id, registration)?;
    response::json(
        status,
        &Bootstrap {
            version: PAYLOAD_VERSION,
            issued_at: Some(Time::now()),
            orchestrator_id: Some(state.store.orchestrator_id().clone()),
            orchestrator: BootstrapOrchestrator {
                endpoints: BootstrapEndpoints {
                    worker_registration_url: Some(format!("{base_url}{REGISTER_PATH}")),
                    node_report_url: format!("{base_url}{REPORT_PATH}"),
                    node_config_url: format!("{base_url}{CONFIG_PATH}"),
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

/// A registration whose sender has the pre-shared key: in its head, or, as the published contract has it, in
/// its body, which is short then. Who has no key is told nothing of slugs.
async fn authenticate_registration(
    state: &AppState,
    request: &mut Request,
    event: &AuditEvent,
) -> Result<Register, ApiError> {
    let (identity, address) = (&state.identity, request.connection.client);
    let shown = request
        .bearer()
        .map(|psk| identity.verify_psk(psk, address));
    let wrong = match shown.transpose()? {
        Some(Ok(())) => {
            // Those who have the key are one party as far as memory goes.
            request.authorize(Account::Authenticated(Uuid::nil()))?;
            request.limit_body(MAX_REPORT_BYTES);
            return Ok(request.payload().await?);
        }
        // It may be another token of a node that shows the key in its body.
        Some(Err(wrong)) => Some(wrong),
        None => None,
    };
    request.limit_body(MAX_UNAUTHENTICATED_BYTES);
    let body: Result<Register, Problem> = request.payload().await;
    let checked = match (body, wrong) {
        (Ok(body), Some(wrong)) => identity
            .verify_other_psk(wrong, &body.psk, address)
            .map(|()| body),
        (Ok(body), None) => identity.check_psk(&body.psk, address).map(|()| body),
        (Err(problem), Some(wrong)) if problem.kind == ProblemKind::PayloadTooLarge => {
            Err(wrong.refuse(address))
        }
        (Err(mut problem), _) => {
            if problem.kind == ProblemKind::PayloadTooLarge {
                problem.detail +=
                    ", or show the pre-shared key in the head, as Authorization: Bearer KEY";
            }
            Err(problem)
        }
    };
    match &checked {
        Ok(_) => request.authorize_connection(),
        Err(problem) if problem.kind == ProblemKind::Unauthorized => {
            identity
                .record_audit(event.clone().refused(problem))
                .await?;
        }
        Err(_) => {}
    }
    Ok(checked?)
}

/// Notes which process of a node calls. While there are two, both are refused, and neither is given jobs:
/// each would end and forget what the other one runs.
async fn observe_instance(
    state: &AppState,
    id: NodeId,
    slug: &str,
    instance: Option<&str>,
    request: &Request,
) -> Result<(), ApiError> {
    let Some(instance) = instance else {
        return Ok(());
    };
    let caller = state
        .nodes
        .instances
        .record_call(id, instance, Instant::now());
    let InstanceStatus::Duplicate { is_new } = caller else {
        return Ok(());
    };
    let problem = Problem::new(ProblemKind::DuplicateInstance, readiness::DUPLICATE_REASON);
    if is_new {
        tracing::warn!(node = slug, address = %request.connection.client, "{}", readiness::DUPLICATE_REASON);
        let origin = request.origin();
        let event = AuditEvent::new(AuditAction::NodeDuplicate, Time::now(), Some(&origin));
        let event = event.by(id, slug).refused(&problem);
        state.identity.record_audit(event).await?;
    }
    Err(problem.into())
}

fn slug_taken_error(slug: &str) -> Problem {
    Problem::new(
        ProblemKind::SlugTaken,
        format!(
            "the slug {slug} belongs to another machine; start this one with another --slug, or, where it \
             takes the place of that machine or has lost its data directory, have an admin run: \
             cynode nodes forget {slug}"
        ),
    )
}

fn too_many_nodes(most: u32) -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        format!(
            "this orchestrator has {most} nodes, which is its limit; have an admin remove those that are gone \
             (cynode nodes forget SLUG), or restart the orchestrator with a higher --max-nodes"
        ),
    )
}

async fn report(state: Arc<AppState>, mut request: Request) -> Reply {
    let node = authenticate_node(&state, &request).await?;
    request.limit_body(MAX_REPORT_BYTES);
    let mut report: CapabilityReport = request.payload().await?;
    report.check("")?;
    check_own_slug("/node/node_slug", &report.node.node_slug, &node)?;
    let instance = report.node.instance_id.as_deref();
    observe_instance(&state, node.id, &node.slug, instance, &request).await?;
    state
        .check_worker_address(&request, &mut report, "")
        .await?;
    let before = node.capability.max_concurrency();
    let offered = report.max_concurrency();
    state
        .nodes
        .slots
        .log_excess_slots(&node.slug, Some(before), offered);
    let hash = report_hash(&report);
    let now = Time::now();
    let event = AuditEvent::new(AuditAction::NodeWorkerUrl, now, Some(&request.origin()));
    let stored = state
        .store
        .node_report(node.id, node.registration, report, hash, event)
        .await?;
    if !stored {
        return Err(unregistered().into());
    }
    let silent = now.since(state.nodes.liveness.last_contact(&node).at);
    state.nodes.reconciler.record_contact(node.id, silent);
    state.jobs.wake.notify_one();
    response::no_content()
}

/// The node that calls. One that was forgotten has to register again.
async fn authenticate_node(state: &AppState, request: &Request) -> Result<Node, ApiError> {
    let (id, registration): (NodeId, i64) = state.identity.node(request.bearer())?;
    let node = state.store.node_get(id).await?;
    // A later one than ours was given out before this database was restored from a backup.
    let node = node
        .filter(|node| node.registration == registration)
        .ok_or_else(unregistered)?;
    request.authorize(Account::Authenticated(node.id.into()))?;
    tracing::Span::current().record("node", &node.slug);
    Ok(node)
}

fn unregistered() -> Problem {
    Problem::unauthorized(
        "this node is not registered any more, or has registered again since it was given this token; \
         register again",
    )
}

fn check_own_slug(pointer: &str, named: &str, node: &Node) -> Result<(), Problem> {
    if named == node.slug {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        format!("is not the slug of this token's node, {}", node.slug),
    ))
}

fn report_hash(report: &CapabilityReport) -> String {
    format!(
        "sha256:{}",
        sha256_hex(serde_json::to_vec(report).unwrap_or_default())
    )
}

/// How nodes reach us: as the operator says, or else as this node did.
fn base_url(state: &AppState, request: &Request) -> String {
    if let Some(url) = &state.settings.public_url {
        return url.trim_end_matches('/').to_owned();
    }
    // The name or forwarded port that the node used, where it is one; only this node is told.
    let named = request.authority().map(|host| format!("http://{host}"));
    named
        .filter(|url| nodes::check_url("", url).is_ok())
        .unwrap_or_else(|| format!("http://{}", request.connection.local))
}
