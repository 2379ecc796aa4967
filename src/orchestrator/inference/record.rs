//! Record of a call that a node was asked for: who, which model, where, how many tokens, how long. Never what was said.

use super::registry::resolve;
use crate::{
    api::{
        ApiKeyId, TaskId, UserId,
        audit::{AuditAction, AuditEvent, AuditOutcome, RequestOrigin},
        time::Time,
    },
    identity::Caller,
    inference::{Endpoint, usage::Usage},
    orchestrator::AppState,
    store::{InferenceUser, Node, UsageRecord},
};
use http::StatusCode;
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

/// End of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AnswerEnd {
    /// It came to its end.
    Complete,
    /// It is an error with this status.
    Failed(StatusCode),
    /// The node, or the end of the caller's access, ended it.
    BrokeOff,
    ClientLeft,
    /// It did not begin.
    Missing,
}

/// End of a call.
pub(super) struct CallEnd<'a> {
    /// Slug of the node.
    pub(super) node: &'a str,
    /// Name that the model has there.
    pub(super) model: &'a str,
    pub(super) usage: Usage,
    pub(super) ended: AnswerEnd,
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
        ..event.clone().to(end.model)
    };
    if end.ended != AnswerEnd::Complete {
        event.outcome = AuditOutcome::Failure;
    }
    let ended = match end.ended {
        AnswerEnd::Complete => String::new(),
        AnswerEnd::Failed(status) => format!(", answered {}", status.as_u16()),
        AnswerEnd::BrokeOff => ", cut off".to_owned(),
        AnswerEnd::ClientLeft => ", client left".to_owned(),
        AnswerEnd::Missing => ", no answer".to_owned(),
    };
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
        model: end.model.to_owned(),
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
    /// Node that was asked last; `None` where none was, or the answer has begun.
    node: Option<Arc<Node>>,
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
    pub(super) fn note_node(&mut self, node: &Arc<Node>) {
        self.node = Some(Arc::clone(node));
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
            node: &node.slug,
            model: &resolve(node, &self.subject.model),
            usage: Usage::default(),
            ended: AnswerEnd::Missing,
            took: self.since.elapsed(),
        };
        record(&self.state, &self.subject, &end);
    }
}
