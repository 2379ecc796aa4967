//! Nodes as users see them, and what admins do with them.

use super::{AppState, authenticate, authenticate_admin};
use crate::{
    api::{
        audit::{AuditAction, AuditEvent},
        error::ApiError,
        nodes::NodeList,
        problem::{Problem, ProblemKind},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    store::ForgetOutcome,
};
use std::sync::Arc;

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    response::ok(&NodeList {
        nodes: state.node_views_for(caller.user.is_admin).await?,
        next_cursor: String::new(),
    })
}

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let slug: String = request.param("slug", "node")?;
    let node = state.store.node_by_slug(slug).await?;
    let node = node.ok_or_else(|| Problem::not_found("node"))?;
    response::ok(&state.node_view(node, caller.user.is_admin))
}

pub(super) async fn drain(state: Arc<AppState>, request: Request) -> Reply {
    set_draining(&state, &request, true).await
}

pub(super) async fn resume(state: Arc<AppState>, request: Request) -> Reply {
    set_draining(&state, &request, false).await
}

pub(super) async fn forget(state: Arc<AppState>, request: Request) -> Reply {
    let event = by_admin(&state, &request, AuditAction::NodeForget).await?;
    let slug: String = request.param("slug", "node")?;
    let outcome = state.store.node_forget(slug.clone(), event).await?;
    match outcome {
        ForgetOutcome::Forgotten(id) => {
            state.nodes.backoff.clear(id);
            state.nodes.instances.forget(&id);
        }
        ForgetOutcome::Busy(jobs) => return Err(busy(&slug, jobs).into()),
        ForgetOutcome::Unknown => return Err(Problem::not_found("node").into()),
    }
    tracing::info!(node = slug, "node forgotten");
    response::no_content()
}

fn busy(slug: &str, jobs: u32) -> Problem {
    let plural = if jobs == 1 { "" } else { "s" };
    Problem::new(
        ProblemKind::Conflict,
        format!(
            "node {slug} has {jobs} running job{plural}; wait for the end, or cancel what it runs (cynode task list \
             --status running), which takes a minute at most where the machine is gone, and try again; \
             cynode nodes drain {slug} keeps new jobs away"
        ),
    )
}

/// That an admin does this, to be written down with it; nobody else may.
async fn by_admin(
    state: &AppState,
    request: &Request,
    action: AuditAction,
) -> Result<AuditEvent, ApiError> {
    let admin = authenticate_admin(state, request, action).await?;
    Ok(admin.audit_event(action, &request.origin()))
}

async fn set_draining(state: &AppState, request: &Request, draining: bool) -> Reply {
    let action = if draining {
        AuditAction::NodeDrain
    } else {
        AuditAction::NodeResume
    };
    let event = by_admin(state, request, action).await?;
    let slug: String = request.param("slug", "node")?;
    let found = state.store.node_drain(slug, draining, event).await?;
    if !found {
        return Err(Problem::not_found("node").into());
    }
    state.jobs.wake.notify_one();
    response::no_content()
}
