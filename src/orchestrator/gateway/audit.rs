//! Audit log, for admins.

use super::{AppState, authenticate_admin, cursor, page_size};
use crate::{
    api::{api_keys::Scope, audit::AuditAction},
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
    store::AuditFilter,
};
use std::sync::Arc;

/// Size of a page of events where the caller gives none.
pub(super) const DEFAULT_PAGE_SIZE: u32 = 50;

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(
        &state,
        &request,
        Access::Scope(Scope::All),
        AuditAction::AdminRead,
    )
    .await?;
    let filter = AuditFilter {
        limit: page_size(&request, DEFAULT_PAGE_SIZE)?,
        action: request.query_as("action", "the name of an action, such as auth.login")?,
        who: request.query("who"),
        before: cursor::<u64>(&request)?.map(|seq| i64::try_from(seq).unwrap_or(i64::MAX)),
    };
    response::ok(&state.identity.audit_list(&admin, filter).await?)
}
