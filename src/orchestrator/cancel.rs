//! Cancellation of a task, answered once its outcome is stored.
//!
//! A result and a cancel may cross: a request to cancel does not tell how the task ends. So the caller waits
//! until the end is stored, and gets that outcome. The wait is bounded, since dispatch
//! [limits the time](dispatch) that a node has to stop a job. The outcome stays undecided only where no end
//! can be stored, as on a full disk.
//!
//! A running job is stopped before the cancel is stored: a disk that can't be written must not keep it
//! alive. From then on this process starts no further attempt, and the end is stored once the disk has room.

use super::{AppState, active_jobs::Cancellation, dispatch, task_log, task_watch::TaskState};
use crate::{
    api::{
        TaskId,
        audit::{AuditAction, AuditEvent},
        tasks::TaskStatus,
    },
    http::server::shutdown_requested,
    store::{CancelOutcome, StoreError},
    wait,
};
use std::time::Duration;

/// Wait for the end of a task beyond the node's time to stop the job: a few seconds for the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

/// Failure of a cancel.
pub(super) enum CancelError {
    /// Nothing was done.
    Failed(StoreError),
    /// The node was asked to stop the job, but the cancel is not stored.
    Unrecorded(StoreError),
}

/// Cancels a task, and waits for its end; `event` is stored where the task had not ended. Its command has its grace to
/// end, unless the cancel is forced or is the second one. Returns whether the task ended as canceled, `None` if its end
/// is not known in time.
pub(super) async fn cancel(
    state: &AppState,
    task: TaskId,
    is_forced: bool,
    event: AuditEvent,
) -> Result<Option<bool>, CancelError> {
    // Subscribed before the store is read, so that no end is missed.
    let watch = state.jobs.watches.for_task(task);
    let mut states = watch.subscribe();
    let running = state.store.task_running_job(task).await;
    let running = running.map_err(CancelError::Failed)?;
    let active = &state.jobs.active;
    let request = if is_forced || running.is_some_and(|job| active.is_canceled(job)) {
        Cancellation::Forced
    } else {
        Cancellation::Graceful
    };
    let is_notified = running.is_some_and(|job| active.cancel(job, request));
    let is_sandbox = event.action == AuditAction::SandboxDelete;
    let outcome = state.store.task_cancel(task, event).await;
    let outcome = outcome.map_err(if is_notified {
        CancelError::Unrecorded
    } else {
        CancelError::Failed
    })?;
    let job = match outcome {
        CancelOutcome::Dequeued { attempt } => {
            if is_sandbox {
                state.metrics.record_sandbox_ended();
            } else {
                state.metrics.record_transition(TaskStatus::Canceled);
            }
            watch.publish(TaskState::new(TaskStatus::Canceled, attempt));
            task_log::span(task, attempt)
                .in_scope(|| task_log::transitioned(TaskStatus::Canceled, None));
            return Ok(Some(true));
        }
        CancelOutcome::Ended { canceled } => return Ok(Some(canceled)),
        CancelOutcome::Running(job) => job,
    };
    active.cancel(job, request);
    let limit = dispatch::cancel_timeout(state, task).await + STORE_TIMEOUT;
    let end = async {
        // The sender lives in `watch`, so this can't fail.
        let last = wait::until(&mut states, |state| state.status.is_final()).await;
        last.ok().map(|last| last.status == TaskStatus::Canceled)
    };
    Ok(tokio::select! {
        canceled = end => canceled,
        () = tokio::time::sleep(limit) => None,
        () = shutdown_requested(state.shutdown.clone()) => None,
    })
}
