//! Log lines for the life of a task: created, started, ended, each once and by its id.

use super::AppState;
use crate::{
    api::{TaskId, tasks::TaskStatus},
    store::RunningJob,
};

/// Logs that a user created a task.
pub(super) fn created(task: TaskId, user: &str) {
    tracing::info!(%task, user, "task created");
}

/// Logs that a node took an attempt.
pub(super) async fn started(state: &AppState, job: &RunningJob) {
    let node = state.store.node_get(job.node_id).await;
    let slug = node.ok().flatten().map(|node| node.slug);
    tracing::info!(
        task = %job.task_id,
        job = %job.id,
        attempt = job.attempt,
        node = slug,
        "task started"
    );
}

/// Logs where a stored outcome leaves a task: ended, or back in the queue.
pub(super) fn transitioned(task: TaskId, status: TaskStatus, attempt: u32, exit_code: Option<i32>) {
    if status.is_final() {
        tracing::info!(%task, status = status.as_str(), attempt, exit_code, "task ended");
    } else if status == TaskStatus::Queued {
        tracing::info!(%task, attempt, "task queued again");
    }
}
