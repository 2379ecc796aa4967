//! Cancel of a task, answered once it is decided.
//!
//! A result and a cancel may cross each other on their way: what is asked for is no sign of what becomes of
//! the task. So whoever cancels waits until its end is stored, and is told that. The wait is bounded, since
//! dispatch [gives a node only so long](dispatch) to end a job. Only where no end can be stored, as
//! on a full disk, does it stay undecided.
//!
//! A job that runs is stopped before that is written: a disk on which nothing can be written must not keep
//! it alive. From then on this process starts no other attempt of it, and its end is stored once the disk
//! has room.

use super::{AppState, dispatch, task_log, task_watch::TaskState};
use crate::{
    api::{TaskId, tasks::TaskStatus, time::Time},
    http::server::shutdown_requested,
    store::{CancelOutcome, StoreError},
    wait,
};
use std::time::Duration;

/// Longest wait for the end of a task. The store has a few seconds beyond what its node has.
const DECISION_TIMEOUT: Duration = dispatch::CANCEL_TIMEOUT.saturating_add(Duration::from_secs(10));

/// Why a cancel could not be answered.
pub(super) enum CancelError {
    /// Nothing was done.
    Failed(StoreError),
    /// The node was told to stop the job, and nothing of it is written.
    Unrecorded(StoreError),
}

/// Has a task end. Whether it ended as canceled; `None` where that can't be known yet.
pub(super) async fn cancel(state: &AppState, task: TaskId) -> Result<Option<bool>, CancelError> {
    // Before the store is asked, so that no end goes unheard.
    let watch = state.jobs.watches.for_task(task);
    let mut states = watch.subscribe();
    let running = state.store.task_running_job(task).await;
    let running = running.map_err(CancelError::Failed)?;
    let is_told = running.is_some_and(|job| state.jobs.active.cancel(job));
    let outcome = state.store.task_cancel(task, Time::now()).await;
    let outcome = outcome.map_err(if is_told {
        CancelError::Unrecorded
    } else {
        CancelError::Failed
    })?;
    let job = match outcome {
        CancelOutcome::Dequeued { attempt } => {
            state.metrics.record_transition(TaskStatus::Canceled);
            watch.publish(TaskState::new(TaskStatus::Canceled, attempt));
            task_log::span(task, attempt)
                .in_scope(|| task_log::transitioned(TaskStatus::Canceled, None));
            return Ok(Some(true));
        }
        CancelOutcome::Ended { canceled } => return Ok(Some(canceled)),
        CancelOutcome::Running(job) => job,
    };
    state.jobs.active.cancel(job);
    let end = async {
        // The other end lives in `live`.
        let last = wait::until(&mut states, |state| state.status.is_final()).await;
        last.ok().map(|last| last.status == TaskStatus::Canceled)
    };
    Ok(tokio::select! {
        canceled = end => canceled,
        () = tokio::time::sleep(DECISION_TIMEOUT) => None,
        () = shutdown_requested(state.shutdown.clone()) => None,
    })
}
