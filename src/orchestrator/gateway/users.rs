//! Users: create, list, disable, enable, revoke sessions, reset password; for admins.

use super::{AppState, MAX_PAGE_SIZE, authenticate_admin, page_size};
use crate::{
    api::{UserId, audit::AuditAction, users::CreateUser},
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::{Access, Caller, UserAction},
};
use http::StatusCode;
use std::sync::Arc;

/// Largest body of a new user; handle, password and e-mail address at their limits are far smaller.
const MAX_BODY_BYTES: usize = 64 * 1024;

pub(super) async fn create(state: Arc<AppState>, mut request: Request) -> Reply {
    let admin =
        authenticate_admin(&state, &request, Access::Login, AuditAction::UserCreate).await?;
    request.limit_body(MAX_BODY_BYTES);
    let create: CreateUser = request.json().await?;
    let origin = request.origin();
    let made = state.identity.user_create(&admin, create, &origin);
    response::json(StatusCode::CREATED, &made.await?)
}

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, Access::Login, AuditAction::AdminRead).await?;
    let limit = page_size(&request, MAX_PAGE_SIZE)?;
    let after = request.query("cursor").filter(|cursor| !cursor.is_empty());
    let users = state.identity.user_list(&admin, after, limit);
    response::ok(&users.await?)
}

pub(super) async fn disable(state: Arc<AppState>, request: Request) -> Reply {
    let admin =
        authenticate_admin(&state, &request, Access::Login, AuditAction::UserDisable).await?;
    change(&state, &request, &admin, UserAction::Disable).await
}

pub(super) async fn enable(state: Arc<AppState>, request: Request) -> Reply {
    let admin =
        authenticate_admin(&state, &request, Access::Login, AuditAction::UserEnable).await?;
    change(&state, &request, &admin, UserAction::Enable).await
}

pub(super) async fn revoke_sessions(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(
        &state,
        &request,
        Access::Login,
        AuditAction::UserRevokeSessions,
    )
    .await?;
    change(&state, &request, &admin, UserAction::RevokeSessions).await
}

pub(super) async fn reset_password(state: Arc<AppState>, mut request: Request) -> Reply {
    let admin = authenticate_admin(
        &state,
        &request,
        Access::Login,
        AuditAction::UserResetPassword,
    )
    .await?;
    request.limit_body(MAX_BODY_BYTES);
    let reset = UserAction::ResetPassword(request.json().await?);
    change(&state, &request, &admin, reset).await
}

async fn change(state: &AppState, request: &Request, admin: &Caller, change: UserAction) -> Reply {
    let (user, origin): (UserId, _) = (request.param("id", "user")?, request.origin());
    let changed = state.identity.user_change(admin, user, change, &origin);
    changed.await?;
    response::no_content()
}
