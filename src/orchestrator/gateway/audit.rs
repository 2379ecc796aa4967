//! Who did what, for admins.

use super::{Orchestrator, admin, cursor, page_limit};
use crate::{
    api::audit::{AuditAction, AuditLog},
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::store_problem,
    store::AuditFilter,
};
use std::sync::Arc;

/// Events of a page when the caller names no number.
pub(super) const USUAL_LIMIT: u32 = 50;

pub(super) async fn list(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    let admin = admin(&orchestrator, &request, AuditAction::AdminRead).await?;
    let limit = page_limit(&request, USUAL_LIMIT)?;
    let filter = AuditFilter {
        action: request.query_as("action", "the name of an action, such as auth.login")?,
        who: request.query("who"),
        before: cursor::<u64>(&request)?.map(|seq| i64::try_from(seq).unwrap_or(i64::MAX)),
        limit: limit + 1,
    };
    let events = orchestrator.store.audit_list(admin.user.id, filter).await;
    let mut events = events.map_err(store_problem)?;
    let more = events.len() > limit as usize;
    events.truncate(limit as usize);
    let last = events.last().filter(|_| more);
    response::ok(&AuditLog {
        next_cursor: last.map_or_else(String::new, |entry| entry.seq.to_string()),
        events,
    })
}
