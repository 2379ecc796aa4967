//! Record of a call whose answer began: who, which model, where, how many tokens, how long. Never what was said.

use crate::{
    api::audit::{AuditAction, RequestOrigin},
    identity::Caller,
    inference::usage::Usage,
    orchestrator::AppState,
    store::UsageRecord,
};
use std::{sync::Arc, time::Instant};

/// Caller of a call, and what it asks for.
pub(super) struct Subject {
    pub(super) caller: Caller,
    pub(super) origin: RequestOrigin,
    pub(super) model: String,
    /// Arrival of the request.
    pub(super) since: Instant,
}

/// End of a call.
pub(super) struct CallEnd<'a> {
    /// Slug of the node.
    pub(super) node: &'a str,
    pub(super) usage: Usage,
    /// Whether the answer came to its end.
    pub(super) is_complete: bool,
}

/// Records the end of a call. The database follows in the background.
pub(super) fn record(state: &Arc<AppState>, subject: &Subject, end: &CallEnd<'_>) {
    let Subject {
        caller,
        origin,
        model,
        since,
    } = subject;
    let Usage {
        prompt_tokens,
        completion_tokens,
    } = end.usage;
    let mut event = caller
        .audit_event(AuditAction::InferenceRequest, origin)
        .to(model);
    let ended = if end.is_complete { "" } else { ", cut off" };
    event.reason = Some(format!(
        "node {}, {prompt_tokens} tokens in, {completion_tokens} out, {} ms{ended}",
        end.node,
        since.elapsed().as_millis()
    ));
    state.usage.record(UsageRecord {
        user: caller.user.id,
        key: caller.key().map(|key| (key.id, key.name.clone())),
        task: None,
        model: model.clone(),
        prompt_tokens,
        completion_tokens,
        event,
    });
}
