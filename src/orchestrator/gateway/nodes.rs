//! Nodes as users see them, and what admins do with them.

use super::{Orchestrator, caller};
use crate::{
    api::{
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
    caller(&orchestrator, &request).await?;
    response::ok(&NodeList {
        nodes: orchestrator.node_views().await?,
    })
}

pub(super) async fn get(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    caller(&orchestrator, &request).await?;
    let slug: String = request.param("slug", "node")?;
    let node = orchestrator
        .store
        .node_by_slug(slug)
        .await
        .map_err(store_problem)?;
    let node = node.ok_or_else(|| Problem::not_found("node"))?;
    response::ok(&orchestrator.node_view(node))
}

pub(super) async fn drain(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    set_draining(&orchestrator, &request, true).await
}

pub(super) async fn resume(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    set_draining(&orchestrator, &request, false).await
}

pub(super) async fn forget(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    only_admins(&orchestrator, &request).await?;
    let slug: String = request.param("slug", "node")?;
    let outcome = orchestrator
        .store
        .node_forget(slug.clone())
        .await
        .map_err(store_problem)?;
    match outcome {
        Forgetting::Forgotten(id) => orchestrator.avoided.forgive(id),
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
            "node {slug} has {jobs} running job{plural}; cancel what it runs or wait for its end, and try \
             again (cynode nodes drain {slug} keeps new jobs away); if the machine is gone, its jobs end \
             by themselves within about a minute"
        ),
    )
}

async fn only_admins(orchestrator: &Orchestrator, request: &Request) -> Result<(), Problem> {
    if caller(orchestrator, request).await?.user.is_admin {
        return Ok(());
    }
    Err(Problem::new(
        Kind::Forbidden,
        "only an admin may do this; ask one, or log in as one",
    ))
}

async fn set_draining(orchestrator: &Orchestrator, request: &Request, draining: bool) -> Reply {
    only_admins(orchestrator, request).await?;
    let slug: String = request.param("slug", "node")?;
    let found = orchestrator
        .store
        .node_drain(slug, draining)
        .await
        .map_err(store_problem)?;
    if !found {
        return Err(Problem::not_found("node"));
    }
    orchestrator.wake.notify_one();
    response::no_content()
}
