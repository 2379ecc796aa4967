//! Snapshots of sandboxes that stay: make, list, delete.

use super::{AppState, authenticate, authenticate_admin, sandbox_calls::pass_caller};
use crate::{
    api::{api_keys::Scope, audit::AuditAction, error::ApiError, snapshots::CreateSnapshot},
    http::{
        request::Request,
        response::{self, Reply},
        router::RouterBuilder,
    },
    identity::{Access, Caller},
    orchestrator::sandboxes::{self, DeleteSnapshot},
};
use http::{Method, StatusCode};
use std::sync::Arc;

/// Keys that may make these calls.
const ACCESS: Access = Access::Scope(Scope::Sandboxes);
/// Largest body of a new snapshot.
const MAX_BODY_BYTES: usize = 4096;

/// Adds the routes.
pub(super) fn routes(builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    builder
        .route(Method::POST, "/v1/sandboxes/{id}/snapshot", create)
        .route(Method::GET, "/v1/snapshots", list)
        .route(Method::DELETE, "/v1/snapshots/{name}", delete)
}

async fn create(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = pass_caller(&state, &request).await?;
    let name = request.param("id", "sandbox")?;
    request.limit_body(MAX_BODY_BYTES);
    let create: CreateSnapshot = request.json().await?;
    let origin = request.origin();
    let snapshot = sandboxes::take_snapshot(&state, caller, name, create, &origin).await?;
    response::json(StatusCode::CREATED, &snapshot)
}

async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let (caller, users) = caller_and_user(&state, &request, AuditAction::AdminRead).await?;
    response::ok(&sandboxes::list_snapshots(&state, &caller, users).await?)
}

async fn delete(state: Arc<AppState>, request: Request) -> Reply {
    let action = AuditAction::SnapshotDelete;
    let (caller, user) = caller_and_user(&state, &request, action).await?;
    let delete = DeleteSnapshot {
        name: request.param("name", "snapshot")?,
        user,
        is_forced: request.query_as("force", "true or false")?.unwrap_or(false),
    };
    sandboxes::delete_snapshot(&state, &caller, delete, &request.origin()).await?;
    response::no_content()
}

/// Caller, and the query parameter `user`, which only an admin may give.
async fn caller_and_user(
    state: &AppState,
    request: &Request,
    action: AuditAction,
) -> Result<(Caller, Option<String>), ApiError> {
    let user = request.query("user");
    let caller = match user {
        Some(_) => authenticate_admin(state, request, ACCESS, action).await?,
        None => authenticate(state, request, ACCESS).await?,
    };
    Ok((caller, user))
}
