//! Use cases of nodes for nodes themselves: registration and reports.
//!
//! A slug belongs to the machine that registered it first, which later proves itself by its node key. A
//! registration issues a new token, and with that ends the one before: of two processes with one data
//! directory at most one is known at a time. While both call, both are refused ([`check_instance`]).

use super::{AppState, readiness};
use crate::{
    api::{
        JoinTokenId, NodeId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        nodes::{AckStatus, CapabilityReport, Register},
        problem::{Problem, ProblemKind},
        time::Time,
    },
    digest::sha256_hex,
    identity::NodeCredential,
    instances::InstanceStatus,
    store::{JoinRefusal, Node, RegisterOutcome},
};
use tokio::time::Instant;

/// Outcome of a registration.
pub(super) struct Registered {
    /// Whether the node was unknown before.
    pub(super) is_new: bool,
    /// Token of this registration.
    pub(super) token: String,
    /// Time at which the token expires.
    pub(super) expires_at: Time,
}

/// Registers a node, new or known, whose request has shown this credential and was checked.
///
/// Fails where the slug belongs to another machine, the join token does not let this node in, two
/// processes call as this node, or the limit of nodes or of new nodes from this address is reached.
pub(super) async fn register(
    state: &AppState,
    request: Register,
    credential: NodeCredential,
    origin: &RequestOrigin,
    event: AuditEvent,
) -> Result<Registered, ApiError> {
    let capability = request.capability;
    let slug = capability.node.node_slug.clone();
    tracing::Span::current().record("node", &slug);
    let instance = capability.node.instance_id.clone();
    let (key, token) = (request.node_key.map(sha256_hex), credential.token());
    if token.is_some() && key.is_none() {
        let detail = "is required with a join token, which knows its nodes by it; use the pre-shared key otherwise";
        return Err(Problem::field("/node_key", detail).into());
    }
    // Ownership of the slug comes first: no other machine can make a node look like two.
    let known = state.store.node_owned(slug.clone(), key.clone(), token);
    let known = known.await?;
    match known {
        // Recorded after the registration: a late call of the process before it, whose token is still
        // valid, must not make the two look alive.
        Some(id) if is_new_instance(state, id, instance.as_deref()) => {}
        Some(id) => check_instance(state, id, &slug, instance.as_deref(), origin).await?,
        None => admit_new_node(state, &slug, key.as_deref(), token, origin).await?,
    }
    let (offered, limit) = (capability.max_concurrency(), state.settings.max_nodes);
    let hash = report_hash(&capability);
    let outcome = state
        .store
        .node_register(capability, hash, key, token, limit, event)
        .await?;
    let (is_new, id, registration) = match outcome {
        RegisterOutcome::Created(id, registration) => (true, id, registration),
        RegisterOutcome::Known(id, registration) => (false, id, registration),
        RegisterOutcome::Taken => {
            tracing::warn!(
                address = %origin.address,
                "registration refused: the slug belongs to another machine"
            );
            return Err(slug_taken(&slug).into());
        }
        RegisterOutcome::Full => return Err(too_many_nodes(limit).into()),
        RegisterOutcome::NotAdmitted(refusal) => {
            let reason = refusal.as_str();
            tracing::warn!(address = %origin.address, reason, "registration by a join token refused");
            return Err(not_admitted(&refusal).into());
        }
    };
    // It was opened with a token that is not valid any more, whether this process is refused or not.
    state.nodes.tunnels.close(id);
    check_instance(state, id, &slug, instance.as_deref(), origin).await?;
    tracing::info!(new = is_new, address = %origin.address, "node registered");
    state.nodes.slots.log_excess_slots(&slug, None, offered);
    state.nodes.reconciler.mark_dirty(id);
    let (token, expires_at) = state.identity.node_token(id, registration)?;
    Ok(Registered {
        is_new,
        token,
        expires_at,
    })
}

/// Admits a node that is new, by the rate of its network. One that its join token refuses spends nothing of the rate, which
/// others of the network may need; the registration refuses it, and records why.
async fn admit_new_node(
    state: &AppState,
    slug: &str,
    key_sha256: Option<&str>,
    token: Option<JoinTokenId>,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    if let Some(token) = token {
        let machine = (key_sha256.unwrap_or_default().to_owned(), slug.to_owned());
        let admitted = state
            .store
            .join_token_admits(token, machine, Time::now())
            .await?;
        if !admitted {
            return Ok(());
        }
    }
    Ok(state.identity.admit_new_node(origin.address)?)
}

/// Stores a checked report of `node`, and wakes those that wait for its slots.
pub(super) async fn report(
    state: &AppState,
    node: &Node,
    report: CapabilityReport,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    let (before, offered) = (node.capability.max_concurrency(), report.max_concurrency());
    let slots = &state.nodes.slots;
    slots.log_excess_slots(&node.slug, Some(before), offered);
    let moved_to = new_address(state, node, &report);
    if let Some(url) = &moved_to {
        // Before the report is in force, so that no job comes before the probe.
        state.nodes.reachability.mark_pending(node.id, url);
    }
    let (hash, now) = (report_hash(&report), Time::now());
    let event = AuditEvent::new(AuditAction::NodeWorkerUrl, now, Some(origin));
    let is_stored = state
        .store
        .node_report(node.id, node.registration, report, hash, event);
    if !is_stored.await? {
        return Err(unregistered().into());
    }
    let silence = now.since(state.nodes.liveness.last_contact(node).at);
    state.nodes.reconciler.record_contact(node.id, silence);
    if moved_to.is_some() {
        state.nodes.reachability.wait_probed(node.id).await;
    }
    state.jobs.wake.notify_one();
    Ok(())
}

/// Address of a Worker API that listens, where a report changes it; neither the operator's address nor a tunnel is changed.
fn new_address(state: &AppState, node: &Node, report: &CapabilityReport) -> Option<String> {
    let listens = node.ack_status == Some(AckStatus::Applied);
    let is_elsewhere = state.settings.worker_urls.contains_key(&node.slug)
        || state.nodes.tunnels.is_connected(node.id);
    let url = report.worker_url();
    let url =
        url.filter(|url| listens && !is_elsewhere && node.worker_url.as_deref() != Some(*url));
    url.map(str::to_owned)
}

/// Node that a bearer token belongs to. Fails with 401 where it was forgotten, or has registered again since.
pub(super) async fn authenticate(state: &AppState, bearer: Option<&str>) -> Result<Node, ApiError> {
    let (id, registration) = state.identity.node(bearer)?;
    let node = state.store.node_get(id).await?;
    // A later registration than the stored one was made before this database was restored from a backup.
    let node = node
        .filter(|node| node.registration == registration)
        .ok_or_else(unregistered)?;
    tracing::Span::current().record("node", &node.slug);
    Ok(node)
}

fn is_new_instance(state: &AppState, node: NodeId, instance: Option<&str>) -> bool {
    instance.is_some_and(|instance| state.nodes.instances.is_unknown(&node, instance))
}

/// Records that this process calls as a node. While there are two, both are refused, and neither is given
/// jobs: each would end and forget the jobs of the other one.
pub(super) async fn check_instance(
    state: &AppState,
    node: NodeId,
    slug: &str,
    instance: Option<&str>,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    let Some(instance) = instance else {
        return Ok(());
    };
    let instances = &state.nodes.instances;
    let InstanceStatus::Duplicate { is_new } =
        instances.record_call(node, instance, Instant::now())
    else {
        return Ok(());
    };
    let problem = Problem::new(ProblemKind::DuplicateInstance, readiness::DUPLICATE_REASON);
    if is_new {
        tracing::warn!(
            address = %origin.address,
            reason = readiness::DUPLICATE_REASON,
            "node refused: two processes call as this node"
        );
        let event = AuditEvent::new(AuditAction::NodeDuplicate, Time::now(), Some(origin));
        let event = event.by(node, slug).refused(&problem);
        state.identity.record_audit(event).await?;
    }
    Err(problem.into())
}

/// Digest by which two equal reports are recognized.
fn report_hash(report: &CapabilityReport) -> String {
    format!(
        "sha256:{}",
        sha256_hex(serde_json::to_vec(report).unwrap_or_default())
    )
}

pub(super) fn unregistered() -> Problem {
    Problem::unauthorized(
        "this node is no longer registered, or has registered again since it got this token; register again",
    )
}

fn slug_taken(slug: &str) -> Problem {
    Problem::new(
        ProblemKind::SlugTaken,
        format!(
            "the slug {slug} belongs to another machine; start this one with another --slug, or, if it replaces \
             that machine or has lost its data directory, ask an admin to run: cynode nodes forget {slug}"
        ),
    )
}

/// Problem for a node that shows the secret of a token which does not let it in. Only a holder of the secret gets here.
fn not_admitted(refusal: &JoinRefusal) -> Problem {
    let why = match refusal {
        JoinRefusal::Removed => "was removed".to_owned(),
        JoinRefusal::CreatorNotAdmin => {
            "lets no new node in any more: the user who created it is disabled or no admin"
                .to_owned()
        }
        JoinRefusal::Expired(end) => {
            format!("expired at {end}, and this node had not joined by it before")
        }
        JoinRefusal::UsedUp(uses) => format!(
            "is used up: as many nodes have joined by it as may ({uses}), and this one, known by its data directory \
             and slug, is not among them"
        ),
        JoinRefusal::OtherSlug(slug) => {
            format!("is only for the node {slug} (start that one with --slug {slug})")
        }
    };
    let detail =
        format!("this join token {why}; ask an admin for a new one: cynode nodes token create");
    Problem::new(ProblemKind::Forbidden, detail)
}

fn too_many_nodes(limit: u32) -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        format!(
            "this orchestrator has {limit} nodes, which is its limit; ask an admin to remove nodes that are gone \
             (cynode nodes forget SLUG), or restart the orchestrator with a higher --max-nodes"
        ),
    )
}
