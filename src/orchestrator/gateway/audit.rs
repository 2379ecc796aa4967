//! Who did what, for admins.

use super::{AppState, authenticate_admin, cursor, page_size};
use crate::{
    api::audit::{AuditAction, AuditLog},
    http::{
        request::Request,
        response::{self, Reply},
    },
    store::AuditFilter,
};
use std::sync::Arc;

/// Events of a page when the caller names no number.
pub(super) const DEFAULT_PAGE_SIZE: u32 = 50;

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let admin = authenticate_admin(&state, &request, AuditAction::AdminRead).await?;
    let limit = page_size(&request, DEFAULT_PAGE_SIZE)?;
    let filter = AuditFilter {
        action: request.query_as("action", "the name of an action, such as auth.login")?,
        who: request.query("who"),
        before: cursor::<u64>(&request)?.map(|seq| i64::try_from(seq).unwrap_or(i64::MAX)),
        limit: limit + 1,
    };
    let events = state.store.audit_list(admin.user.id, filter).await;
    let mut events = events?;
    let more = events.len() > limit as usize;
    events.truncate(limit as usize);
    let last = events.last().filter(|_| more);
    response::ok(&AuditLog {
        next_cursor: last.map_or_else(String::new, |entry| entry.seq.to_string()),
        events,
    })
}
