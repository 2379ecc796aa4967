//! Join tokens: create, list, remove; for admins.

use super::{AppState, authenticate_admin};
use crate::{
    api::{api_keys::Scope, audit::AuditAction, nodes::CreateJoinToken},
    http::{
        request::Request,
        response::{self, Reply},
        router::RouterBuilder,
    },
    identity::Access,
    orchestrator::join_tokens,
};
use http::{Method, StatusCode};
use std::sync::Arc;

/// Keys that may let nodes in: those that may change nodes.
const ADMIN_ACCESS: Access = Access::Scope(Scope::All);
/// Largest body of a new token.
const MAX_BODY_BYTES: usize = 16 * 1024;
const PATH: &str = "/v1/join-tokens";

pub(super) fn routes(builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    builder
        .route(Method::POST, PATH, create)
        .route(Method::GET, PATH, list)
        .route(Method::DELETE, "/v1/join-tokens/{id}", remove)
}

async fn create(state: Arc<AppState>, mut request: Request) -> Reply {
    let action = AuditAction::JoinTokenCreate;
    let admin = authenticate_admin(&state, &request, ADMIN_ACCESS, action).await?;
    request.limit_body(MAX_BODY_BYTES);
    let create: CreateJoinToken = request.json_or_default().await?;
    let created = join_tokens::create(&state, &admin, create, &request.origin()).await?;
    response::json(StatusCode::CREATED, &created)
}

async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let action = AuditAction::AdminRead;
    let admin = authenticate_admin(&state, &request, ADMIN_ACCESS, action).await?;
    response::ok(&join_tokens::list(&state, &admin).await?)
}

async fn remove(state: Arc<AppState>, request: Request) -> Reply {
    let action = AuditAction::JoinTokenRemove;
    let admin = authenticate_admin(&state, &request, ADMIN_ACCESS, action).await?;
    let id = request.param("id", "join token")?;
    join_tokens::remove(&state, &admin, id, &request.origin()).await?;
    response::no_content()
}
