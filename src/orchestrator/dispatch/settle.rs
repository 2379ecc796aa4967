//! What follows from the end of an attempt: a result, another attempt, or none.
//!
//! [`next_step`] decides, pure; [`settle`] writes it down, as often as it takes.

use super::{
    Entry, FIRST_PAUSE, LONGEST_PAUSE,
    attempt::{client_of, node_of},
    verdict::{Trouble, Verdict},
};
use crate::{
    api::{
        NodeId,
        events::ResultEvent,
        jobs::{JobErrorKind, Outcome},
        tasks::{JobStatus, TaskStatus},
        time::Time,
    },
    errors,
    orchestrator::{
        Orchestrator,
        live::{LiveTask, Moment},
        node_words::{Reason, clean},
        refusals, summary, task_log,
    },
    pause::{self, Pauses},
    store::{FinishedJob, LONGEST_BACKOFF, Placement, Refusal, Refusals, RunningJob, StoreError},
};
use std::time::Duration;

/// Before a job that a node refused is offered again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// The same where only jobs whose image has to be pulled are refused: the node has room for all others.
const PULLS_FULL_PAUSE: Duration = Duration::from_secs(5);
/// A job that so many nodes have refused is offered to no other one.
const MAX_REFUSALS: usize = 10;
/// Pauses between two attempts.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_secs(1);

/// What a node has of an attempt that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// Nothing: it never began.
    Nothing,
    /// What it printed, for those who still read it; then it may go.
    Log,
    /// Something that nobody waits for, be it still running.
    Leftover,
}

/// Stores what became of an attempt; what its node has of it then.
pub(super) async fn settle(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    live: &LiveTask,
    verdict: Verdict,
    canceled: bool,
) -> Left {
    avoid(orchestrator, job.node_id, &verdict);
    let mut step = next_step(job, verdict);
    if canceled {
        step.cancel();
    }
    let status = stored(job, || store(orchestrator, job, &step)).await;
    if let Some(status) = status {
        orchestrator.metrics.task_moved(status);
        live.moves_to(Moment::of(status, job.attempt));
        task_log::moved(job.task_id, status, job.attempt, step.end.exit_code);
    }
    orchestrator.wake.notify_one();
    match step.left {
        Left::Log if !status.is_some_and(TaskStatus::is_final) => Left::Leftover,
        left => left,
    }
}

/// Writes about a job, as often as it takes.
pub(super) async fn stored<T, F: Future<Output = Result<T, StoreError>>>(
    job: &RunningJob,
    write: impl Fn() -> F,
) -> T {
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match write().await {
            Ok(written) => return written,
            Err(error) => {
                tracing::error!(job = %job.id, error = errors::chain(&error), "what became of a job can't be stored yet; trying again");
                tokio::time::sleep(pauses.take()).await;
            }
        }
    }
}

/// Leaves a node alone for a while that did not take an attempt.
pub(super) fn avoid(orchestrator: &Orchestrator, node: NodeId, verdict: &Verdict) {
    match verdict {
        Verdict::NotBegun(why) => {
            let advice = why.clone().map(|why| {
                format!(
                    "does not take jobs ({why}); see its log, and that the orchestrator reaches its Worker API \
                     there (--advertise-url at the node, --worker-url at the orchestrator)"
                )
            });
            orchestrator.avoided.refused(node, Some(advice));
        }
        Verdict::Unable(why) => {
            let why = why
                .clone()
                .map(|why| format!("does not take jobs at present ({why})"));
            orchestrator.avoided.refused(node, Some(why));
        }
        Verdict::Busy(_) => {
            orchestrator.avoided.refused(node, None);
            // It should have had room, so it runs what nobody waits for.
            orchestrator.leftovers.owe(node);
        }
        _ => {}
    }
}

/// What to write: the end of the job, or its way back into the queue.
struct Step {
    end: FinishedJob,
    /// Back into the queue after this pause, unless it is to be canceled.
    again: Option<Duration>,
    /// The attempt never began, and its number is free.
    not_begun: bool,
    /// Reason for which this node can't run it, where another one might.
    refusal: Option<String>,
    left: Left,
}

impl Step {
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

fn next_step(job: &RunningJob, verdict: Verdict) -> Step {
    let tries_left = job.may_be_tried_again();
    let backoff = pause::nth(
        FIRST_BACKOFF,
        LONGEST_BACKOFF,
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
    let offered_again = |pause| Step {
        end: without_result(JobStatus::Canceled, "canceled before it started".to_owned()),
        again: Some(pause),
        not_begun: true,
        refusal: None,
        left: Left::Nothing,
    };
    match verdict {
        Verdict::Ended(last) => ended(job, *last, tries_left.then_some(backoff)),
        Verdict::PullsFull(reason) if may_be_offered => {
            tracing::info!(job = %job.id, %reason, "too many jobs of a node wait for pulls; job is offered again later");
            offered_again(PULLS_FULL_PAUSE)
        }
        Verdict::NotBegun(reason) | Verdict::Unable(reason) | Verdict::Busy(reason)
            if may_be_offered =>
        {
            tracing::warn!(job = %job.id, %reason, "a node did not take a job; it is offered again");
            offered_again(REFUSED_PAUSE)
        }
        Verdict::Rejected(reason) => Step {
            end: without_result(JobStatus::Failed, String::new()),
            again: None,
            not_begun: true,
            refusal: Some(reason.to_string()),
            left: Left::Nothing,
        },
        Verdict::Unreadable(reason) => {
            tracing::warn!(job = %job.id, attempt = job.attempt, %reason, "job ran and its result is lost; not retried");
            let summary = format!("lost: {reason}; the command has run, so it is not run again");
            Step {
                end: without_result(JobStatus::Lost, summary),
                again: None,
                not_begun: false,
                refusal: None,
                left: Left::Leftover,
            }
        }
        Verdict::Lost(reason)
        | Verdict::NotBegun(reason)
        | Verdict::Unable(reason)
        | Verdict::PullsFull(reason)
        | Verdict::Busy(reason) => {
            tracing::warn!(job = %job.id, attempt = job.attempt, %reason, "an attempt is lost");
            let tries = format!("attempt {} of {}", job.attempt, job.max_attempts);
            let end = without_result(JobStatus::Lost, format!("lost ({tries}): {reason}"));
            Step {
                end,
                again: tries_left.then_some(backoff),
                not_begun: false,
                refusal: None,
                left: Left::Leftover,
            }
        }
    }
}

/// What a result means; another attempt `again`, where the trouble may pass.
fn ended(job: &RunningJob, last: ResultEvent, again: Option<Duration>) -> Step {
    let ResultEvent {
        result, outline, ..
    } = last;
    let trouble = result.error.as_ref().map(|error| error.kind);
    let refusal = result.error.as_ref();
    let refusal = refusal.filter(|error| error.kind.is_of_one_node());
    let refusal = refusal.map(summary::cause);
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
        summary: summary::of(&result),
        outline: serde_json::to_string(&outline).ok(),
        result: serde_json::to_string(&result).ok(),
    };
    Step {
        end,
        again: again.filter(|_| trouble.is_some_and(JobErrorKind::is_retryable)),
        not_begun: false,
        refusal,
        left: Left::Log,
    }
}

/// Writes a step; where the task stands then, `None` when another attempt is the current one.
async fn store(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    step: &Step,
) -> Result<Option<TaskStatus>, StoreError> {
    let now = Time::now();
    let mut end = step.end.clone();
    if let Some(reason) = &step.refusal {
        let (refusals, may_go_on) = refused(orchestrator, job, reason).await?;
        end.summary = summary::refused_by_all(&refusals);
        let jobs = &orchestrator.store;
        let not_before = now.plus(REFUSED_PAUSE);
        if may_go_on
            && jobs
                .job_refuse(job.id, job.attempt, refusals, not_before, now)
                .await?
        {
            tracing::info!(job = %job.id, attempt = job.attempt, reason, "node refused the job; requeued");
            return Ok(Some(TaskStatus::Queued));
        }
    }
    if let Some(pause) = step.again {
        let not_before = now.plus(pause);
        if orchestrator
            .store
            .job_requeue(job.id, job.attempt, step.not_begun, not_before, now)
            .await?
        {
            return Ok(Some(TaskStatus::Queued));
        }
        // It is to be canceled, so there is no other attempt.
        end.status = JobStatus::Canceled;
        "canceled".clone_into(&mut end.summary);
    }
    let status = end.status.task_status();
    let stored = orchestrator.store.job_finish(end, now).await?;
    if !stored {
        tracing::warn!(job = %job.id, attempt = job.attempt, "a late result is discarded, its attempt is over");
    }
    Ok(stored.then_some(status))
}

/// Refusals of a job with that of its node, and whether a node is left that could run it.
pub(super) async fn refused(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    reason: &str,
) -> Result<(Refusals, bool), StoreError> {
    let nodes = orchestrator.store.node_list().await?;
    let node = nodes.iter().find(|node| node.id == job.node_id);
    let refusal = Refusal {
        node: node.map_or_else(|| job.node_id.to_string(), |node| node.slug.clone()),
        reason: clean(reason),
    };
    // As they are now: a node that has started again since is left out no longer.
    let mut refusals = orchestrator.store.task_demands(job.task_id).await?.refusals;
    refusals.insert(job.node_id, refusal);
    let mut placement = Placement::read(&job.placement)?;
    placement.except = refusals.keys().copied().collect();
    let may_go_on = refusals.len() < MAX_REFUSALS
        && refusals::is_any_left(orchestrator, nodes, &placement, Time::now());
    Ok((refusals, may_go_on))
}

/// Lets the node forget an attempt whose result is stored; at the latest when it is looked through.
pub(super) async fn forget(orchestrator: &Orchestrator, job: &RunningJob) {
    let forgotten = async {
        let node = node_of(orchestrator, job).await?;
        let client = client_of(orchestrator, &node, Entry::Attach)?;
        match client.forget(job.id, job.attempt).await {
            // A worker that knows no such call keeps what it keeps.
            Err(error) if error.is_unsupported() && client.is_there().await => Ok(()),
            Err(error) => Err(Trouble::passing(Reason::of(&error))),
            Ok(()) => Ok(()),
        }
    };
    if let Err(Trouble { reason, .. }) = forgotten.await {
        tracing::debug!(job = %job.id, %reason, "a node keeps a result that is stored");
        orchestrator.leftovers.owe(job.node_id);
    }
}

#[cfg(test)]
mod tests;
