//! Nodes as users see them, and what admins do with them.

use super::{Orchestrator, admin, caller};
use crate::{
    api::{
        audit::{AuditAction, AuditEvent},
        nodes::NodeList,
        problem::{Kind, Problem},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::store_problem,
    store::Forgetting,
};
use std::sync::Arc;

pub(super) async fn list(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let caller = caller(&orchestrator, &request).await?;
    response::ok(&NodeList {
        nodes: orchestrator.node_views_for(caller.user.is_admin).await?,
        next_cursor: String::new(),
    })
}

pub(super) async fn get(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let caller = caller(&orchestrator, &request).await?;
    let slug: String = request.param("slug", "node")?;
    let node = orchestrator
        .store
        .node_by_slug(slug)
        .await
        .map_err(store_problem)?;
    let node = node.ok_or_else(|| Problem::not_found("node"))?;
    response::ok(&orchestrator.node_view(node, caller.user.is_admin))
}

pub(super) async fn drain(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    set_draining(&orchestrator, &request, true).await
}

pub(super) async fn resume(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    set_draining(&orchestrator, &request, false).await
}

pub(super) async fn forget(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let event = by_admin(&orchestrator, &request, AuditAction::NodeForget).await?;
    let slug: String = request.param("slug", "node")?;
    let outcome = orchestrator
        .store
        .node_forget(slug.clone(), event)
        .await
        .map_err(store_problem)?;
    match outcome {
        Forgetting::Forgotten(id) => {
            orchestrator.avoided.forgive(id);
            orchestrator.instances.forget(&id);
        }
        Forgetting::Busy(jobs) => return Err(busy(&slug, jobs)),
        Forgetting::Unknown => return Err(Problem::not_found("node")),
    }
    tracing::info!(node = slug, "node forgotten");
    response::no_content()
}

fn busy(slug: &str, jobs: u32) -> Problem {
    let plural = if jobs == 1 { "" } else { "s" };
    Problem::new(
        Kind::Conflict,
        format!(
            "node {slug} has {jobs} running job{plural}; wait for the end, or cancel what it runs (cynode task list \
             --status running), which takes a minute at most where the machine is gone, and try again; \
             cynode nodes drain {slug} keeps new jobs away"
        ),
    )
}

/// That an admin does this, to be written down with it; nobody else may.
async fn by_admin(
    orchestrator: &Orchestrator,
    request: &Request,
    action: AuditAction,
) -> Result<AuditEvent, Problem> {
    let admin = admin(orchestrator, request, action).await?;
    Ok(admin.did(action, &request.origin()))
}

async fn set_draining(orchestrator: &Orchestrator, request: &Request, draining: bool) -> Reply {
    let action = if draining {
        AuditAction::NodeDrain
    } else {
        AuditAction::NodeResume
    };
    let event = by_admin(orchestrator, request, action).await?;
    let slug: String = request.param("slug", "node")?;
    let found = orchestrator
        .store
        .node_drain(slug, draining, event)
        .await
        .map_err(store_problem)?;
    if !found {
        return Err(Problem::not_found("node"));
    }
    orchestrator.wake.notify_one();
    response::no_content()
}
