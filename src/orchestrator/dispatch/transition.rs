//! Decision on what an outcome means for the job: its end, another attempt, or another node. Pure.

use super::{finalize::Cleanup, outcome::AttemptOutcome};
use crate::{
    api::{
        events::ResultEvent,
        jobs::{JobErrorKind, Outcome},
        tasks::JobStatus,
    },
    backoff::nth_delay,
    orchestrator::summary,
    store::{FinishedJob, MAX_BACKOFF, RunningJob},
};
use std::time::Duration;

/// Backoff before a job that its node refused is scheduled again.
pub(super) const REFUSED_BACKOFF: Duration = Duration::from_secs(1);
/// Same where the node refuses only jobs that need an image pull, or GPUs; it has room for all others.
const PARTLY_FULL_BACKOFF: Duration = Duration::from_secs(5);
/// Same where the node has no room for the job's files, until other jobs end.
const NO_ROOM_BACKOFF: Duration = Duration::from_secs(10);
/// First backoff between two attempts; the later ones grow up to [`MAX_BACKOFF`].
pub(super) const INITIAL_ATTEMPT_BACKOFF: Duration = Duration::from_secs(1);

/// Write that an outcome leads to: the end of the job, or its way back into the queue.
pub(super) struct Transition {
    pub(super) end: FinishedJob,
    /// Pause before the job is scheduled again, where it is.
    pub(super) requeue_after: Option<Duration>,
    /// Whether the node did not start the attempt, so that its number is free again.
    pub(super) is_not_started: bool,
    /// Reason for which this node can't run the job; another one may.
    pub(super) refusal: Option<String>,
    pub(super) cleanup: Cleanup,
}

impl Transition {
    pub(super) fn decide(job: &RunningJob, outcome: AttemptOutcome) -> Self {
        let may_retry = job.may_retry();
        let retries = job.attempt.saturating_sub(1);
        let backoff = nth_delay(INITIAL_ATTEMPT_BACKOFF, MAX_BACKOFF, retries);
        // The number of this attempt is free again unless a later one was given out: then one must be left.
        let may_requeue = may_retry || job.attempt == job.last_attempt;
        match outcome {
            AttemptOutcome::Ended(last) => Self::ended(job, *last, may_retry.then_some(backoff)),
            AttemptOutcome::PullQueueFull(_) | AttemptOutcome::GpusBusy(_) if may_requeue => {
                Self::not_started(job, PARTLY_FULL_BACKOFF)
            }
            AttemptOutcome::NoRoom(_) if may_requeue => Self::not_started(job, NO_ROOM_BACKOFF),
            AttemptOutcome::NotStarted(_)
            | AttemptOutcome::NotSent(_)
            | AttemptOutcome::NodeUnhealthy(_)
            | AttemptOutcome::AtCapacity(_)
                if may_requeue =>
            {
                Self::not_started(job, REFUSED_BACKOFF)
            }
            AttemptOutcome::Rejected(reason) => Self {
                is_not_started: true,
                refusal: Some(reason.to_string()),
                cleanup: Cleanup::Nothing,
                ..Self::without_result(job, JobStatus::Failed, String::new())
            },
            AttemptOutcome::Damaged(reason) | AttemptOutcome::SecretMissing(reason) => Self {
                is_not_started: true,
                cleanup: Cleanup::Nothing,
                ..Self::without_result(job, JobStatus::Failed, reason.to_string())
            },
            AttemptOutcome::Unreadable(reason) => {
                let summary =
                    format!("lost: {reason}; the command has run, so it is not run again");
                Self::without_result(job, JobStatus::Lost, summary)
            }
            AttemptOutcome::Lost(reason)
            | AttemptOutcome::NotStarted(reason)
            | AttemptOutcome::NodeUnhealthy(reason)
            | AttemptOutcome::NotSent(reason)
            | AttemptOutcome::NoRoom(reason)
            | AttemptOutcome::PullQueueFull(reason)
            | AttemptOutcome::GpusBusy(reason)
            | AttemptOutcome::AtCapacity(reason) => {
                let (attempt, max_attempts) = (job.attempt, job.max_attempts);
                let summary = format!("lost (attempt {attempt} of {max_attempts}): {reason}");
                Self {
                    requeue_after: may_retry.then_some(backoff),
                    ..Self::without_result(job, JobStatus::Lost, summary)
                }
            }
        }
    }

    /// Turns this into the end of a canceled job, also where the store could not record the cancel yet.
    pub(super) fn cancel(&mut self) {
        let is_requeued = self.requeue_after.take().is_some() || self.refusal.take().is_some();
        // What never started has no end of its own, such as that a secret was removed.
        if is_requeued || self.is_not_started {
            self.end.status = JobStatus::Canceled;
            "canceled".clone_into(&mut self.end.summary);
        }
        if self.end.status == JobStatus::Lost {
            // The user was answered that it is canceled.
            self.end.status = JobStatus::Canceled;
        }
    }

    /// End without a result, of which the node may have anything.
    fn without_result(job: &RunningJob, status: JobStatus, summary: String) -> Self {
        Self {
            end: FinishedJob {
                id: job.id,
                attempt: job.attempt,
                status,
                result: None,
                artifacts: Vec::new(),
                outline: None,
                exit_code: None,
                summary,
            },
            requeue_after: None,
            is_not_started: false,
            refusal: None,
            cleanup: Cleanup::Reconcile,
        }
    }

    /// Way back into the queue of an attempt that ran nothing.
    fn not_started(job: &RunningJob, backoff: Duration) -> Self {
        let summary = "canceled before it started".to_owned();
        Self {
            requeue_after: Some(backoff),
            is_not_started: true,
            cleanup: Cleanup::Nothing,
            ..Self::without_result(job, JobStatus::Canceled, summary)
        }
    }

    /// Transition for a result, with another attempt after `backoff` where its error may pass.
    fn ended(job: &RunningJob, last: ResultEvent, backoff: Option<Duration>) -> Self {
        let ResultEvent {
            result, outline, ..
        } = last;
        let error = result.error.as_ref();
        let kind = error.map(|error| error.kind);
        let refusal = error.filter(|error| error.kind.is_node_specific());
        let refusal = refusal.map(summary::of_error);
        let end = FinishedJob {
            id: job.id,
            attempt: job.attempt,
            status: match result.status {
                Outcome::Completed => JobStatus::Completed,
                Outcome::Failed if kind == Some(JobErrorKind::Lost) => JobStatus::Lost,
                Outcome::Failed => JobStatus::Failed,
                Outcome::Timeout => JobStatus::Timeout,
                Outcome::Canceled => JobStatus::Canceled,
            },
            exit_code: result.exit_code,
            summary: summary::of_result(&result),
            artifacts: Vec::new(),
            outline: Some(outline),
            result: Some(result),
        };
        Self {
            end,
            requeue_after: backoff.filter(|_| kind.is_some_and(JobErrorKind::is_retryable)),
            is_not_started: false,
            refusal,
            cleanup: Cleanup::AfterReaders,
        }
    }
}

#[cfg(test)]
mod tests;
