//! What follows from the end of an attempt: a result, another attempt, or none.
//!
//! [`decide_transition`] decides, pure; [`finalize`] writes it down, as often as it takes.

use super::{
    INITIAL_RETRY_BACKOFF, MAX_RETRY_BACKOFF, Start,
    attempt::{connect_node, load_node},
    outcome::{AttemptError, AttemptOutcome},
};
use crate::{
    api::{
        NodeId,
        events::ResultEvent,
        jobs::{JobErrorKind, Outcome},
        tasks::{JobStatus, TaskStatus},
        time::Time,
    },
    backoff::{self, Backoff},
    errors,
    orchestrator::{
        AppState,
        reason::{Reason, sanitize},
        refusals, summary, task_log,
        task_watch::{TaskState, TaskWatch},
    },
    store::{FinishedJob, MAX_BACKOFF, Refusal, Refusals, RunningJob, StoreError},
};
use std::time::Duration;

/// Before a job that a node refused is offered again.
const REFUSED_BACKOFF: Duration = Duration::from_secs(1);
/// The same where only jobs whose image has to be pulled are refused: the node has room for all others.
const PULL_QUEUE_FULL_BACKOFF: Duration = Duration::from_secs(5);
/// A job that so many nodes have refused is offered to no other one.
const MAX_REFUSALS: usize = 10;
/// Backoff between two attempts.
pub(super) const INITIAL_ATTEMPT_BACKOFF: Duration = Duration::from_secs(1);

/// What a node has of an attempt that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cleanup {
    /// Nothing: it never began.
    Nothing,
    /// What it printed, for those who still read it; then it may go.
    AfterReaders,
    /// Something that nobody waits for, be it still running.
    Reconcile,
}

/// Stores what became of an attempt; what its node has of it then.
pub(super) async fn finalize(
    state: &AppState,
    job: &RunningJob,
    watch: &TaskWatch,
    outcome: AttemptOutcome,
    canceled: bool,
) -> Cleanup {
    back_off_node(state, job.node_id, &outcome);
    let mut transition = decide_transition(job, outcome);
    if canceled {
        transition.cancel();
    }
    let status = write_with_retry(job, || store(state, job, &transition)).await;
    if let Some(status) = status {
        state.metrics.record_transition(status);
        watch.publish(TaskState::new(status, job.attempt));
        task_log::transitioned(job.task_id, status, job.attempt, transition.end.exit_code);
    }
    state.jobs.wake.notify_one();
    match transition.cleanup {
        Cleanup::AfterReaders if !status.is_some_and(TaskStatus::is_final) => Cleanup::Reconcile,
        cleanup => cleanup,
    }
}

/// Writes about a job, as often as it takes.
pub(super) async fn write_with_retry<T, F: Future<Output = Result<T, StoreError>>>(
    job: &RunningJob,
    write: impl Fn() -> F,
) -> T {
    let mut backoff = Backoff::new(INITIAL_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
    loop {
        match write().await {
            Ok(written) => return written,
            Err(error) => {
                tracing::error!(job = %job.id, error = errors::chain(&error), "what became of a job can't be stored yet; trying again");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Leaves a node alone for a while that did not take an attempt.
pub(super) fn back_off_node(state: &AppState, node: NodeId, outcome: &AttemptOutcome) {
    match outcome {
        AttemptOutcome::NotStarted(why) => {
            let advice = why.clone().map(|why| {
                format!(
                    "does not take jobs ({why}); see its log, and that the orchestrator reaches its Worker API \
                     there (--advertise-url at the node, --worker-url at the orchestrator)"
                )
            });
            state.nodes.backoff.record_refusal(node, Some(advice));
        }
        AttemptOutcome::NodeUnhealthy(why) => {
            let why = why
                .clone()
                .map(|why| format!("does not take jobs at present ({why})"));
            state.nodes.backoff.record_refusal(node, Some(why));
        }
        AttemptOutcome::AtCapacity(_) => {
            state.nodes.backoff.record_refusal(node, None);
            // It should have had room, so it runs what nobody waits for.
            state.nodes.reconciler.mark_dirty(node);
        }
        _ => {}
    }
}

/// What to write: the end of the job, or its way back into the queue.
struct Transition {
    end: FinishedJob,
    /// Back into the queue after this pause, unless it is to be canceled.
    again: Option<Duration>,
    /// The attempt never began, and its number is free.
    not_begun: bool,
    /// Reason for which this node can't run it, where another one might.
    refusal: Option<String>,
    cleanup: Cleanup,
}

impl Transition {
    /// Makes it the end of a job that is to be canceled, also where the store could not record that yet.
    fn cancel(&mut self) {
        let goes_on = self.again.take().is_some() || self.refusal.take().is_some();
        if goes_on {
            self.end.status = JobStatus::Canceled;
            "canceled".clone_into(&mut self.end.summary);
        }
        if self.end.status == JobStatus::Lost {
            // Somebody was told that it is canceled, and it is to no one's harm if it was.
            self.end.status = JobStatus::Canceled;
        }
    }
}

fn decide_transition(job: &RunningJob, outcome: AttemptOutcome) -> Transition {
    let tries_left = job.may_retry();
    let backoff = backoff::nth_delay(
        INITIAL_ATTEMPT_BACKOFF,
        MAX_BACKOFF,
        job.attempt.saturating_sub(1),
    );
    let without_result = |status, summary: String| FinishedJob {
        id: job.id,
        attempt: job.attempt,
        status,
        result: None,
        outline: None,
        exit_code: None,
        summary,
    };
    // Its number is free again, unless a later one was given away: then there must be another.
    let may_be_offered = tries_left || job.attempt == job.last_attempt;
    let offered_again = |pause| Transition {
        end: without_result(JobStatus::Canceled, "canceled before it started".to_owned()),
        again: Some(pause),
        not_begun: true,
        refusal: None,
        cleanup: Cleanup::Nothing,
    };
    match outcome {
        AttemptOutcome::Ended(last) => ended(job, *last, tries_left.then_some(backoff)),
        AttemptOutcome::PullQueueFull(reason) if may_be_offered => {
            tracing::info!(job = %job.id, %reason, "too many jobs of a node wait for pulls; job is offered again later");
            offered_again(PULL_QUEUE_FULL_BACKOFF)
        }
        AttemptOutcome::NotStarted(reason)
        | AttemptOutcome::NodeUnhealthy(reason)
        | AttemptOutcome::AtCapacity(reason)
            if may_be_offered =>
        {
            tracing::warn!(job = %job.id, %reason, "a node did not take a job; it is offered again");
            offered_again(REFUSED_BACKOFF)
        }
        AttemptOutcome::Rejected(reason) => Transition {
            end: without_result(JobStatus::Failed, String::new()),
            again: None,
            not_begun: true,
            refusal: Some(reason.to_string()),
            cleanup: Cleanup::Nothing,
        },
        AttemptOutcome::Unreadable(reason) => {
            tracing::warn!(job = %job.id, attempt = job.attempt, %reason, "job ran and its result is lost; not retried");
            let summary = format!("lost: {reason}; the command has run, so it is not run again");
            Transition {
                end: without_result(JobStatus::Lost, summary),
                again: None,
                not_begun: false,
                refusal: None,
                cleanup: Cleanup::Reconcile,
            }
        }
        AttemptOutcome::Lost(reason)
        | AttemptOutcome::NotStarted(reason)
        | AttemptOutcome::NodeUnhealthy(reason)
        | AttemptOutcome::PullQueueFull(reason)
        | AttemptOutcome::AtCapacity(reason) => {
            tracing::warn!(job = %job.id, attempt = job.attempt, %reason, "an attempt is lost");
            let tries = format!("attempt {} of {}", job.attempt, job.max_attempts);
            let end = without_result(JobStatus::Lost, format!("lost ({tries}): {reason}"));
            Transition {
                end,
                again: tries_left.then_some(backoff),
                not_begun: false,
                refusal: None,
                cleanup: Cleanup::Reconcile,
            }
        }
    }
}

/// What a result means; another attempt `again`, where the trouble may pass.
fn ended(job: &RunningJob, last: ResultEvent, again: Option<Duration>) -> Transition {
    let ResultEvent {
        result, outline, ..
    } = last;
    let trouble = result.error.as_ref().map(|error| error.kind);
    let refusal = result.error.as_ref();
    let refusal = refusal.filter(|error| error.kind.is_node_specific());
    let refusal = refusal.map(summary::of_error);
    let end = FinishedJob {
        id: job.id,
        attempt: job.attempt,
        status: match result.status {
            Outcome::Completed => JobStatus::Completed,
            Outcome::Failed if trouble == Some(JobErrorKind::Lost) => JobStatus::Lost,
            Outcome::Failed => JobStatus::Failed,
            Outcome::Timeout => JobStatus::Timeout,
            Outcome::Canceled => JobStatus::Canceled,
        },
        exit_code: result.exit_code,
        summary: summary::of_result(&result),
        outline: Some(outline),
        result: Some(result),
    };
    Transition {
        end,
        again: again.filter(|_| trouble.is_some_and(JobErrorKind::is_retryable)),
        not_begun: false,
        refusal,
        cleanup: Cleanup::AfterReaders,
    }
}

/// Writes a transition; where the task stands then, `None` when another attempt is the current one.
async fn store(
    state: &AppState,
    job: &RunningJob,
    transition: &Transition,
) -> Result<Option<TaskStatus>, StoreError> {
    let now = Time::now();
    let mut end = transition.end.clone();
    if let Some(reason) = &transition.refusal {
        let (refusals, may_go_on) = collect_refusals(state, job, reason).await?;
        end.summary = summary::refused_by_all(&refusals);
        let jobs = &state.store;
        let not_before = now.plus(REFUSED_BACKOFF);
        if may_go_on
            && jobs
                .job_refuse(job.id, job.attempt, refusals, not_before, now)
                .await?
        {
            tracing::info!(job = %job.id, attempt = job.attempt, reason, "node refused the job; requeued");
            return Ok(Some(TaskStatus::Queued));
        }
    }
    if let Some(pause) = transition.again {
        let not_before = now.plus(pause);
        if state
            .store
            .job_requeue(job.id, job.attempt, transition.not_begun, not_before, now)
            .await?
        {
            return Ok(Some(TaskStatus::Queued));
        }
        // It is to be canceled, so there is no other attempt.
        end.status = JobStatus::Canceled;
        "canceled".clone_into(&mut end.summary);
    }
    let status = end.status.task_status();
    let stored = state.store.job_finish(end, now).await?;
    if !stored {
        tracing::warn!(job = %job.id, attempt = job.attempt, "a late result is discarded, its attempt is over");
    }
    Ok(stored.then_some(status))
}

/// Refusals of a job with that of its node, and whether a node is cleanup that could run it.
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
    // As they are now: a node that has started again since is cleanup out no longer.
    let mut refusals = state.store.task_requirements(job.task_id).await?.refusals;
    refusals.insert(job.node_id, refusal);
    let placement = job.placement.excluding(refusals.keys().copied());
    let may_go_on = refusals.len() < MAX_REFUSALS
        && refusals::has_candidate(state, nodes, &placement, Time::now());
    Ok((refusals, may_go_on))
}

/// Lets the node forget an attempt whose result is stored; at the latest when it is looked through.
pub(super) async fn forget_at_node(state: &AppState, job: &RunningJob) {
    let forgotten = async {
        let node = load_node(state, job).await?;
        let client = connect_node(state, &node, Start::Attach)?;
        match client.forget(job.id, job.attempt).await {
            // A worker that knows no such call keeps what it keeps.
            Err(error) if error.is_unsupported() && client.is_alive().await => Ok(()),
            Err(error) => Err(AttemptError::passing(Reason::from_call_error(&error))),
            Ok(()) => Ok(()),
        }
    };
    if let Err(AttemptError { reason, .. }) = forgotten.await {
        tracing::debug!(job = %job.id, %reason, "a node keeps a result that is stored");
        state.nodes.reconciler.mark_dirty(job.node_id);
    }
}

#[cfg(test)]
mod tests;
