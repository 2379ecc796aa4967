//! Users, for admins.

use super::{AppState, MAX_PAGE_SIZE, authenticate_admin, page_size};
use crate::{
    api::{
        UserId,
        audit::AuditAction,
        users::{CreateUser, UserList},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::{Caller, UserAction},
};
use http::StatusCode;
use std::sync::Arc;

/// Longest user: handle, password and address at their limits are far smaller.
const MAX_BODY_BYTES: usize = 64 * 1024;

pub(super) async fn create(state: Arc<AppState>, mut request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::UserCreate).await?;
    request.limit_body(MAX_BODY_BYTES);
    let create: CreateUser = request.json().await?;
    let origin = request.origin();
    let made = state.identity.user_create(&admin, create, &origin);
    response::json(StatusCode::CREATED, &made.await?)
}

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::AdminRead).await?;
    let limit = page_size(&request, MAX_PAGE_SIZE)?;
    let after = request.query("cursor").filter(|cursor| !cursor.is_empty());
    // One more than asked for tells whether there is more.
    let users = state.store.user_list(admin.user.id, after, limit + 1);
    let mut users = users.await?;
    let more = users.len() > limit as usize;
    users.truncate(limit as usize);
    let last = users.last().filter(|_| more);
    response::ok(&UserList {
        next_cursor: last.map_or_else(String::new, |user| user.handle.clone()),
        users,
    })
}

pub(super) async fn disable(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::UserDisable).await?;
    change(&state, &request, &admin, UserAction::Disable).await
}

pub(super) async fn enable(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::UserEnable).await?;
    change(&state, &request, &admin, UserAction::Enable).await
}

pub(super) async fn revoke_sessions(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::UserRevokeSessions).await?;
    change(&state, &request, &admin, UserAction::RevokeSessions).await
}

pub(super) async fn reset_password(state: Arc<AppState>, mut request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::UserResetPassword).await?;
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
