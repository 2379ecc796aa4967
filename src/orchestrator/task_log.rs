//! Log lines for the life of a task: created, started, ended, each once.
//!
//! The lines of a job under way carry no ids: those stand in its span.

use crate::api::{TaskId, tasks::TaskStatus};

/// Span of a task outside any attempt.
pub(super) fn span(task: TaskId, attempt: u32) -> tracing::Span {
    tracing::info_span!("task", %task, attempt)
}

/// Logs that a task was created. The span of the request names the user.
pub(super) fn created(task: TaskId) {
    tracing::info!(%task, "task created");
}

/// Logs that a node accepted an attempt.
pub(super) fn started() {
    tracing::info!("node accepted the task");
}

/// Logs the status that a stored outcome leaves a task in: ended, or back in the queue.
pub(super) fn transitioned(status: TaskStatus, exit_code: Option<i32>) {
    if status.is_final() {
        tracing::info!(status = status.as_str(), exit_code, "task ended");
    } else if status == TaskStatus::Queued {
        tracing::info!("task requeued");
    }
}
