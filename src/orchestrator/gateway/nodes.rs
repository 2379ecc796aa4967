//! Nodes: list and get for every user; forget, drain and resume for admins.

use super::{AppState, authenticate, authenticate_admin};
use crate::{
    api::{api_keys::Scope, audit::AuditAction, error::ApiError, images::PushImage},
    background::run_to_end,
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
    orchestrator::{images, nodes},
};
use std::sync::Arc;

/// Keys that may change nodes.
const ADMIN_ACCESS: Access = Access::Scope(Scope::All);
/// Largest body of a push.
const MAX_BODY_BYTES: usize = 4096;

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, Access::AnyKey).await?;
    response::ok(&nodes::list(&state, &caller).await?)
}

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, Access::AnyKey).await?;
    let slug = request.param("slug", "node")?;
    response::ok(&nodes::show(&state, &caller, slug).await?)
}

pub(super) async fn forget(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, ADMIN_ACCESS, AuditAction::NodeForget).await?;
    let slug = request.param("slug", "node")?;
    nodes::forget(&state, &admin, slug, &request.origin()).await?;
    response::no_content()
}

pub(super) async fn drain(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, ADMIN_ACCESS, AuditAction::NodeDrain).await?;
    let slug = request.param("slug", "node")?;
    nodes::drain(&state, &admin, slug, &request.origin()).await?;
    response::no_content()
}

pub(super) async fn resume(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, ADMIN_ACCESS, AuditAction::NodeResume).await?;
    let slug = request.param("slug", "node")?;
    nodes::resume(&state, &admin, slug, &request.origin()).await?;
    response::no_content()
}

/// Has a node load an image; goes on when the caller leaves, so that the audit log says how it ended.
pub(super) async fn push_image(state: Arc<AppState>, mut request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, ADMIN_ACCESS, AuditAction::ImagePush).await?;
    let slug = request.param("slug", "node")?;
    request.limit_body(MAX_BODY_BYTES);
    let wanted: PushImage = request.json().await?;
    let pushed = images::push(state, admin, slug, wanted, request.origin());
    let pushed = run_to_end("push_image", pushed).await;
    response::ok(&pushed.map_err(ApiError::internal)??)
}
