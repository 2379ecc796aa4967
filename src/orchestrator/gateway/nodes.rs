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

async fn set_draining(orchestrator: &Orchestrator, request: &Request, draining: bool) -> Reply {
    if !caller(orchestrator, request).await?.user.is_admin {
        return Err(Problem::new(
            Kind::Forbidden,
            "only an admin may do this; ask one, or log in as one",
        ));
    }
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
