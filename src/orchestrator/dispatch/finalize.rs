//! Storing an outcome: the end of the job, or its way back into the queue.
//!
//! [`Transition`] decides; this file writes, and retries for as long as the store takes no writes. Every write
//! names the attempt and is conditional on it, so that a late outcome changes nothing.

use super::{
    Start,
    outcome::{AttemptError, AttemptOutcome},
    request::connect,
    retrieve::Retrieved,
    transition::{REFUSED_BACKOFF, Transition},
};
use crate::{
    api::{
        tasks::{JobStatus, TaskStatus},
        time::Time,
    },
    backoff::Backoff,
    orchestrator::{
        AppState,
        reason::{Reason, sanitize},
        refusals, summary, task_log,
        task_watch::{TaskState, TaskWatch},
    },
    retry::retry,
    store::{Refusal, Refusals, RunningJob, StoreError},
};
use std::time::Duration;

/// Number of nodes that may refuse a job before no other one is tried.
const MAX_REFUSALS: usize = 10;
/// Backoff while the store takes no writes.
const INITIAL_STORE_BACKOFF: Duration = Duration::from_millis(100);
const MAX_STORE_BACKOFF: Duration = Duration::from_secs(5);

/// Clean-up at the node of an attempt that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cleanup {
    /// None: the attempt did not start.
    Nothing,
    /// The attempt ended; the node keeps its output until its last reader is done.
    AfterReaders,
    /// The attempt may still run; the reconciler stops and removes it.
    Reconcile,
}

/// Stores the outcome of an attempt. Returns the clean-up that is left to do at its node.
pub(super) async fn finalize(
    state: &AppState,
    job: &RunningJob,
    watch: &TaskWatch,
    (outcome, retrieved): (AttemptOutcome, Retrieved),
    is_canceled: bool,
) -> Cleanup {
    outcome.log();
    back_off_node(state, job, &outcome);
    let mut transition = Transition::decide(job, outcome);
    transition.end.artifacts.clone_from(&retrieved.artifacts);
    if is_canceled {
        transition.cancel();
    }
    let write = || store_transition(state, job, &transition);
    let status = write_with_retry("store the outcome of a job", write).await;
    if let Some(status) = status {
        watch.publish(TaskState::new(status, job.attempt));
        if job.is_sandbox {
            record_sandbox(state, status, &transition);
        } else {
            state.metrics.record_transition(status);
            task_log::transitioned(status, transition.end.exit_code);
        }
    }
    state.jobs.wake.notify_one();
    match transition.cleanup {
        Cleanup::AfterReaders if !status.is_some_and(TaskStatus::is_final) => Cleanup::Reconcile,
        cleanup => cleanup,
    }
}

/// Counts and logs the end of a sandbox that stays.
fn record_sandbox(state: &AppState, status: TaskStatus, transition: &Transition) {
    if status.is_final() {
        state.metrics.record_sandbox_ended();
        let summary = &transition.end.summary;
        tracing::info!(summary, "sandbox ended");
    } else {
        tracing::info!("sandbox requeued");
    }
}

/// Retries a write until the store takes it.
pub(super) async fn write_with_retry<T, F>(what: &'static str, write: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let backoff = Backoff::new(INITIAL_STORE_BACKOFF, MAX_STORE_BACKOFF);
    retry(backoff, what, write).await
}

/// Gives a node that did not start an attempt no jobs for a while.
pub(super) fn back_off_node(state: &AppState, job: &RunningJob, outcome: &AttemptOutcome) {
    let node = job.node_id;
    let (reason, is_full) = match outcome {
        AttemptOutcome::NotStarted(reason) => (Some(reason.clone().map(unreachable_advice)), false),
        AttemptOutcome::NodeUnhealthy(reason) => {
            let reason = reason.clone();
            let reason = reason.map(|reason| format!("does not take jobs at present ({reason})"));
            (Some(reason), false)
        }
        AttemptOutcome::AtCapacity(_) => (None::<Reason>, true),
        AttemptOutcome::NoRoom(reason) => return state.jobs.no_room.record(job, reason.clone()),
        // By the database the devices are free, so a superseded attempt may have them. Other jobs can start.
        AttemptOutcome::GpusBusy(_) => return state.nodes.reconciler.mark_dirty(node),
        _ => return,
    };
    state.nodes.backoff.record_refusal(node, reason);
    if is_full {
        // By the database it has a free slot, so it may run a superseded attempt.
        state.nodes.reconciler.mark_dirty(node);
    }
}

fn unreachable_advice(reason: &str) -> String {
    format!(
        "does not take jobs ({reason}); see its log, and that the orchestrator reaches its Worker API there \
         (--advertise-url at the node, --worker-url at the orchestrator)"
    )
}

/// Writes a transition. Returns the status of the task, or `None` where another attempt counts.
async fn store_transition(
    state: &AppState,
    job: &RunningJob,
    transition: &Transition,
) -> Result<Option<TaskStatus>, StoreError> {
    let (store, now) = (&state.store, Time::now());
    let mut end = transition.end.clone();
    if let Some(reason) = &transition.refusal {
        let (refusals, has_candidate) = collect_refusals(state, job, reason).await?;
        end.summary = summary::refused_by_all(&refusals);
        let not_before = now.plus(REFUSED_BACKOFF);
        let refuse = store.job_refuse(job.id, job.attempt, refusals, not_before, now);
        if has_candidate && refuse.await? {
            tracing::info!(reason, "node refused the job; requeued");
            return Ok(Some(TaskStatus::Queued));
        }
    }
    if let Some(backoff) = transition.requeue_after {
        let (is_not_started, not_before) = (transition.is_not_started, now.plus(backoff));
        let requeue = store.job_requeue(job.id, job.attempt, is_not_started, not_before, now);
        if requeue.await? {
            return Ok(Some(TaskStatus::Queued));
        }
        // The store has a cancel of it, so there is no other attempt.
        end.status = JobStatus::Canceled;
        "canceled".clone_into(&mut end.summary);
    }
    let status = end.status.task_status();
    let is_stored = store.job_finish(end, now).await?;
    if !is_stored {
        tracing::warn!("late result discarded; another attempt counts");
    }
    Ok(is_stored.then_some(status))
}

/// Refusals of a job with the one of its node, and whether a node is left that could run it.
pub(super) async fn collect_refusals(
    state: &AppState,
    job: &RunningJob,
    reason: &str,
) -> Result<(Refusals, bool), StoreError> {
    let nodes = state.store.node_list().await?;
    let node = nodes.iter().find(|node| node.id == job.node_id);
    let refusal = Refusal {
        node: node.map_or_else(|| job.node_id.to_string(), |node| node.slug.clone()),
        reason: sanitize(reason),
    };
    // Read again: a node that was restarted since is a candidate again.
    let mut refusals = state.store.task_requirements(job.task_id).await?.refusals;
    refusals.insert(job.node_id, refusal);
    let placement = job.placement.excluding(refusals.keys().copied());
    let has_candidate = refusals.len() < MAX_REFUSALS
        && refusals::has_candidate(state, nodes, &placement, Time::now());
    Ok((refusals, has_candidate))
}

/// Has the node remove an attempt whose result is stored. Where that fails the reconciler does it.
pub(super) async fn forget_at_node(state: &AppState, job: &RunningJob) {
    let forget = async {
        let client = connect(state, job, Start::Attach).await?;
        match client.forget(job.id, job.attempt).await {
            // A worker without this call keeps its results as it likes.
            Err(error) if client.lacks_call(&error).await => Ok(()),
            Err(error) => Err(AttemptError::transient(error.reason)),
            Ok(()) => Ok(()),
        }
    };
    if let Err(AttemptError { reason, .. }) = forget.await {
        tracing::debug!(%reason, "node keeps a result that is stored");
        state.nodes.reconciler.mark_dirty(job.node_id);
    }
}
