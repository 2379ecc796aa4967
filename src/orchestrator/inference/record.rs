//! Record of a call that a node was asked for: who, which model, where, how many tokens, how long. Never what was said.

use crate::{
    api::{
        ApiKeyId, TaskId, UserId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        time::Time,
    },
    identity::Caller,
    inference::{Endpoint, usage::Usage},
    orchestrator::AppState,
    store::{InferenceUser, UsageRecord},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Caller of a call, and what it asks for.
pub(super) struct Subject {
    pub(super) user: UserId,
    pub(super) key: Option<(ApiKeyId, String)>,
    /// Task whose job makes the call.
    pub(super) task: Option<TaskId>,
    /// Event of the end, without what is known only then.
    pub(super) event: AuditEvent,
    pub(super) request_id: String,
    pub(super) model: String,
    /// Whether a model computes the answer; other calls are not recorded.
    is_recorded: bool,
}

/// Caller of a call.
pub(super) enum ModelUser {
    /// User with a session or key.
    Caller(Caller),
    /// Job in its sandbox.
    Job(InferenceUser),
}

impl Subject {
    pub(super) fn new(
        user: &ModelUser,
        endpoint: Endpoint,
        origin: RequestOrigin,
        model: String,
    ) -> Self {
        let action = AuditAction::InferenceRequest;
        let (user, key, task, event) = match user {
            ModelUser::Caller(caller) => {
                let key = caller.key().map(|key| (key.id, key.name.clone()));
                let event = caller.audit_event(action, &origin);
                (caller.user.id, key, None, event)
            }
            ModelUser::Job(job) => {
                let event = AuditEvent::new(action, Time::now(), Some(&origin));
                let event = event.by(job.user, &job.handle);
                (job.user, None, Some(job.task), event)
            }
        };
        Self {
            user,
            key,
            task,
            event,
            request_id: origin.request_id,
            model,
            is_recorded: endpoint.computes(),
        }
    }
}

/// End of a call.
pub(super) struct CallEnd<'a> {
    /// Slug of the node.
    pub(super) node: &'a str,
    pub(super) usage: Usage,
    /// Whether the answer came to its end.
    pub(super) is_complete: bool,
    /// Time since the request arrived.
    pub(super) took: Duration,
}

/// Records the end of a call. The database follows in the background.
pub(super) fn record(state: &Arc<AppState>, subject: &Subject, end: &CallEnd<'_>) {
    let Subject {
        user,
        key,
        task,
        event,
        model,
        ..
    } = subject;
    if !subject.is_recorded {
        return;
    }
    let Usage {
        prompt_tokens,
        completion_tokens,
    } = end.usage;
    let mut event = AuditEvent {
        at: Time::now(),
        ..event.clone().to(model)
    };
    let ended = if end.is_complete { "" } else { ", cut off" };
    let of_task = task.map(|task| format!("task {task}, "));
    let of_task = of_task.unwrap_or_default();
    event.reason = Some(format!(
        "{of_task}node {}, {prompt_tokens} tokens in, {completion_tokens} out, {} ms{ended}",
        end.node,
        end.took.as_millis()
    ));
    state.usage.record(UsageRecord {
        user: *user,
        key: key.clone(),
        task: *task,
        model: model.clone(),
        prompt_tokens,
        completion_tokens,
        event,
    });
}

/// Call that waits for its first byte. Where it ends before, it is recorded with the last node that was asked.
pub(super) struct Unanswered {
    state: Arc<AppState>,
    subject: Arc<Subject>,
    since: Instant,
    /// Slug of the node; `None` where none was asked, or the answer has begun.
    node: Option<String>,
}

impl Unanswered {
    pub(super) fn new(state: &Arc<AppState>, subject: &Arc<Subject>) -> Self {
        Self {
            state: Arc::clone(state),
            subject: Arc::clone(subject),
            since: Instant::now(),
            node: None,
        }
    }

    /// Notes that a node is asked.
    pub(super) fn note_node(&mut self, slug: &str) {
        self.node = Some(slug.to_owned());
    }

    /// Ends the wait: the answer records itself.
    pub(super) fn end(mut self) {
        self.node = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(node) = &self.node else {
            return;
        };
        let end = CallEnd {
            node,
            usage: Usage::default(),
            is_complete: false,
            took: self.since.elapsed(),
        };
        record(&self.state, &self.subject, &end);
    }
}
