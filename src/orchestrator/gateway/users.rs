//! Users, for admins.

use super::{MAX_LIMIT, Orchestrator, admin, page_limit};
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
    identity::{Caller, Change, store_problem},
};
use http::StatusCode;
use std::sync::Arc;

/// Longest user: handle, password and address at their limits are far smaller.
const MAX_BODY_BYTES: usize = 64 * 1024;

pub(super) async fn create(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    let admin = admin(&orchestrator, &request, AuditAction::UserCreate).await?;
    request.limit_body(MAX_BODY_BYTES);
    let create: CreateUser = request.json().await?;
    let origin = request.origin();
    let made = orchestrator.identity.user_create(&admin, create, &origin);
    response::json(StatusCode::CREATED, &made.await?)
}

pub(super) async fn list(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let admin = admin(&orchestrator, &request, AuditAction::AdminRead).await?;
    let limit = page_limit(&request, MAX_LIMIT)?;
    let after = request.query("cursor").filter(|cursor| !cursor.is_empty());
    // One more than asked for tells whether there is more.
    let users = orchestrator
        .store
        .user_list(admin.user.id, after, limit + 1);
    let mut users = users.await.map_err(store_problem)?;
    let more = users.len() > limit as usize;
    users.truncate(limit as usize);
    let last = users.last().filter(|_| more);
    response::ok(&UserList {
        next_cursor: last.map_or_else(String::new, |user| user.handle.clone()),
        users,
    })
}

pub(super) async fn disable(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let admin = admin(&orchestrator, &request, AuditAction::UserDisable).await?;
    change(&orchestrator, &request, &admin, Change::Disable).await
}

pub(super) async fn enable(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let admin = admin(&orchestrator, &request, AuditAction::UserEnable).await?;
    change(&orchestrator, &request, &admin, Change::Enable).await
}

pub(super) async fn revoke_sessions(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let admin = admin(&orchestrator, &request, AuditAction::UserRevokeSessions).await?;
    change(&orchestrator, &request, &admin, Change::RevokeSessions).await
}

pub(super) async fn reset_password(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    let admin = admin(&orchestrator, &request, AuditAction::UserResetPassword).await?;
    request.limit_body(MAX_BODY_BYTES);
    let reset = Change::ResetPassword(request.json().await?);
    change(&orchestrator, &request, &admin, reset).await
}

async fn change(
    orchestrator: &Orchestrator,
    request: &Request,
    admin: &Caller,
    change: Change,
) -> Reply {
    let (user, origin): (UserId, _) = (request.param("id", "user")?, request.origin());
    let changed = orchestrator
        .identity
        .user_change(admin, user, change, &origin);
    changed.await?;
    response::no_content()
}
