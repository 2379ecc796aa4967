//! Use cases of nodes for users: list and show for everybody; drain, resume and forget for admins.
//!
//! Each takes the authenticated [`Caller`] and data, and returns data or an [`ApiError`]; no HTTP. The
//! caller of an admin's use case was authenticated as an admin for its action.

use super::{AppState, node_client::NodeClient};
use crate::{
    api::{
        audit::{AuditAction, RequestOrigin},
        error::ApiError,
        nodes::{NodeList, NodeStatus, NodeView},
        problem::{Problem, ProblemKind},
        time::Time,
    },
    identity::Caller,
    store::{ForgetOutcome, Node},
};

/// Lists all nodes. Only admins see what nodes say themselves.
pub(super) async fn list(state: &AppState, caller: &Caller) -> Result<NodeList, ApiError> {
    Ok(NodeList {
        nodes: state.node_views_for(caller.user.is_admin).await?,
        next_cursor: String::new(),
    })
}

/// Shows a node. Fails with 404 for an unknown slug.
pub(super) async fn show(
    state: &AppState,
    caller: &Caller,
    slug: String,
) -> Result<NodeView, ApiError> {
    let unknown = || Problem::unknown_node(&slug);
    let node = state.store.node_by_slug(slug.clone()).await?;
    let node = node.ok_or_else(unknown)?;
    let view = state.node_view_for(node, caller.user.is_admin).await?;
    Ok(view.ok_or_else(unknown)?)
}

/// Client of a node that is online, for the call of an admin. Fails with the reason, in the node's words, too.
pub(super) fn online_client<'a>(
    state: &'a AppState,
    node: &Node,
) -> Result<NodeClient<'a>, Problem> {
    let readiness = state.node_readiness(node, Time::now());
    let is_online = readiness.status != NodeStatus::Offline;
    state
        .node_client(node)
        .filter(|_| is_online)
        .ok_or_else(|| {
            let reason = readiness.reason.map(|reason| reason.for_admins());
            let reason = reason.unwrap_or_else(|| "no contact".to_owned());
            let slug = &node.slug;
            let detail =
                format!("node {slug} can't be reached: {reason}; try again when it is online");
            Problem::new(ProblemKind::Unavailable, detail)
        })
}

/// Stops scheduling jobs on a node.
pub(super) async fn drain(
    state: &AppState,
    admin: &Caller,
    slug: String,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    set_draining(state, admin, slug, origin, true).await
}

/// Schedules jobs on a node again.
pub(super) async fn resume(
    state: &AppState,
    admin: &Caller,
    slug: String,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    set_draining(state, admin, slug, origin, false).await
}

async fn set_draining(
    state: &AppState,
    admin: &Caller,
    slug: String,
    origin: &RequestOrigin,
    draining: bool,
) -> Result<(), ApiError> {
    let action = if draining {
        AuditAction::NodeDrain
    } else {
        AuditAction::NodeResume
    };
    let event = admin.audit_event(action, origin);
    let is_known = state.store.node_drain(slug.clone(), draining, event);
    if !is_known.await? {
        return Err(Problem::unknown_node(&slug).into());
    }
    state.jobs.wake.notify_one();
    Ok(())
}

/// Forgets a node: its token becomes invalid and its slug free. Fails with 409 while it has jobs.
pub(super) async fn forget(
    state: &AppState,
    admin: &Caller,
    slug: String,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    let event = admin.audit_event(AuditAction::NodeForget, origin);
    match state.store.node_forget(slug.clone(), event).await? {
        ForgetOutcome::Forgotten(id) => {
            state.nodes.backoff.clear(id);
            state.nodes.tunnels.forget(id);
            state.nodes.reachability.forget(id);
            state.nodes.instances.forget(&id);
            state.metrics.models.forget_node(&slug);
        }
        ForgetOutcome::Busy(jobs) => return Err(has_running_jobs(&slug, jobs).into()),
        ForgetOutcome::Unknown => return Err(Problem::unknown_node(&slug).into()),
    }
    tracing::info!(node = slug, "node forgotten");
    Ok(())
}

fn has_running_jobs(slug: &str, jobs: u32) -> Problem {
    let plural = if jobs == 1 { "" } else { "s" };
    Problem::new(
        ProblemKind::Conflict,
        format!(
            "node {slug} has {jobs} running job{plural}; wait for the end, or cancel the tasks that it runs (cynode \
             task list --status running), which takes a minute at most if the machine is gone, then try again; \
             cynode nodes drain {slug} keeps new jobs away"
        ),
    )
}
