//! Nodes: list and get for every user; forget, drain and resume for admins.

use super::{AppState, authenticate, authenticate_admin};
use crate::{
    api::audit::AuditAction,
    http::{
        request::Request,
        response::{self, Reply},
    },
    orchestrator::nodes,
};
use std::sync::Arc;

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    response::ok(&nodes::list(&state, &caller).await?)
}

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let slug = request.param("slug", "node")?;
    response::ok(&nodes::show(&state, &caller, slug).await?)
}

pub(super) async fn forget(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::NodeForget).await?;
    let slug = request.param("slug", "node")?;
    nodes::forget(&state, &admin, slug, &request.origin()).await?;
    response::no_content()
}

pub(super) async fn drain(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::NodeDrain).await?;
    let slug = request.param("slug", "node")?;
    nodes::drain(&state, &admin, slug, &request.origin()).await?;
    response::no_content()
}

pub(super) async fn resume(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::NodeResume).await?;
    let slug = request.param("slug", "node")?;
    nodes::resume(&state, &admin, slug, &request.origin()).await?;
    response::no_content()
}
