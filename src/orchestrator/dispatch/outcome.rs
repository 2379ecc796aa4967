//! Outcome of an attempt, as an answer of its node, or the lack of one, implies it. Pure.

use super::Start;
use crate::{
    api::events::{OutputLog, ResultEvent},
    orchestrator::{
        node_client::{NodeCallError, NodeCallErrorKind},
        reason::Reason,
    },
    store::RunningJob,
};

/// Outcome of an attempt.
#[derive(Debug)]
pub(super) enum AttemptOutcome {
    /// A result.
    Ended(Box<ResultEvent>),
    /// The node did not start the attempt.
    NotStarted(Reason),
    /// The node did not start the attempt: all its slots are taken.
    AtCapacity(Reason),
    /// The node did not start the attempt: its image has to be pulled, and too many jobs wait for pulls. Jobs
    /// whose image is there may still start.
    PullQueueFull(Reason),
    /// The node did not start the attempt, and says why it can't run jobs at present.
    NodeUnhealthy(Reason),
    /// The node never starts this job as it is.
    Rejected(Reason),
    /// Unknown: the command may have run.
    Lost(Reason),
    /// The command has run and its result is unusable, so that no other attempt may follow.
    Unreadable(Reason),
}

impl AttemptOutcome {
    /// Whether no other attempt could improve it.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Ended(last) => {
                last.result.error.as_ref().is_none_or(|error| {
                    !error.kind.is_retryable() && !error.kind.is_node_specific()
                })
            }
            _ => false,
        }
    }

    /// Logs an outcome that is not a result.
    pub(super) fn log(&self) {
        match self {
            Self::Ended(_) | Self::Rejected(_) => {}
            Self::PullQueueFull(reason) => {
                tracing::info!(%reason, "node did not start the job: its pull queue is full");
            }
            Self::NotStarted(reason) | Self::AtCapacity(reason) | Self::NodeUnhealthy(reason) => {
                tracing::warn!(%reason, "node did not start the job");
            }
            Self::Lost(reason) => tracing::warn!(%reason, "attempt lost"),
            Self::Unreadable(reason) => {
                tracing::warn!(%reason, "job ran and its result is lost; not retried");
            }
        }
    }

    /// Same outcome for an attempt whose command is known to have run.
    pub(super) fn after_command_ran(self) -> Self {
        match self {
            Self::Lost(reason) => Self::Unreadable(reason),
            other => other,
        }
    }
}

/// Exchange with a node that brought no result.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct AttemptError {
    pub(super) reason: Reason,
    /// Outcome that follows; `None`: ask the node again.
    pub(super) outcome: Option<AttemptOutcome>,
}

impl AttemptError {
    /// Error after which the node is asked again.
    pub(super) fn transient(reason: impl Into<Reason>) -> Self {
        Self {
            reason: reason.into(),
            outcome: None,
        }
    }

    /// Error after which the attempt is lost.
    pub(super) fn lost(reason: &str) -> Self {
        Self {
            reason: reason.into(),
            outcome: Some(AttemptOutcome::Lost(reason.into())),
        }
    }

    /// Invalid answer of success.
    pub(super) fn unreadable(reason: &str) -> Self {
        let reason = Reason::from(format!("its node sent an invalid answer ({reason})"));
        Self {
            outcome: Some(AttemptOutcome::Unreadable(reason.clone())),
            reason,
        }
    }

    /// Answer that broke off or is invalid. After `jobs:run` the command has run and its result is gone; a
    /// later question may have been answered by anything in between.
    pub(super) fn of_read(error: NodeCallError, start: Start) -> Self {
        match (error.kind, start) {
            (NodeCallErrorKind::Malformed, Start::Run) => {
                tracing::debug!(%error, "node sent an invalid answer");
                Self::unreadable("it violates the contract")
            }
            _ => Self::transient(error.reason),
        }
    }

    /// Failed request. An answer to a question about an attempt counts only in a worker's own words: a proxy
    /// answers the same for a node that it lost sight of.
    pub(super) fn of_request(error: NodeCallError, start: Start) -> Self {
        use NodeCallErrorKind as Kind;
        let is_own_answer = error.is_own_answer;
        let reason = error.reason;
        let outcome = match (start, error.kind) {
            (Start::Run, Kind::Invalid) => AttemptOutcome::Rejected,
            (Start::Run, Kind::Conflict) => AttemptOutcome::Lost,
            (Start::Run, Kind::Unhealthy) => AttemptOutcome::NodeUnhealthy,
            (Start::Run, Kind::PullQueueFull) => AttemptOutcome::PullQueueFull,
            (Start::Run, Kind::AtCapacity) => AttemptOutcome::AtCapacity,
            (
                Start::Run,
                Kind::Unreachable
                | Kind::UnknownToken
                | Kind::Denied
                | Kind::NotFound
                | Kind::Unsupported,
            ) => AttemptOutcome::NotStarted,
            (Start::Attach, Kind::NotFound | Kind::Conflict) if is_own_answer => {
                return Self {
                    reason,
                    outcome: Some(AttemptOutcome::Lost(
                        "its node does not have it (any more)".into(),
                    )),
                };
            }
            _ => return Self::transient(reason),
        };
        Self {
            outcome: Some(outcome(reason.clone())),
            reason,
        }
    }
}

/// Checks a result: it must be this job's and valid. An outline that doesn't match the output is replaced by
/// one that does.
pub(super) fn validate_result(
    job: &RunningJob,
    mut last: ResultEvent,
) -> Result<ResultEvent, AttemptError> {
    let result = &last.result;
    let is_own =
        result.job_id == job.id && result.task_id == job.task_id && result.attempt == job.attempt;
    if !(is_own && result.is_valid()) {
        return Err(AttemptError::unreadable(
            "a result that can't be this job's",
        ));
    }
    last.outline = OutputLog::restore(&last.outline, &result.stdout, &result.stderr).outline();
    Ok(last)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{
        JobId, NodeId, TaskId,
        events::OUTPUT_LIMIT_BYTES,
        jobs::{JobError, JobErrorKind, JobResult, Outcome, Truncated},
        time::Time,
    };

    pub(in crate::orchestrator) fn job() -> RunningJob {
        RunningJob {
            id: JobId::new(),
            task_id: TaskId::new(),
            attempt: 1,
            last_attempt: 1,
            max_attempts: 3,
            node_id: NodeId::new(),
            offered_to: None,
            cancel_requested: false,
            eligible_at: Time::from_millis(0),
            placement: crate::store::Placement::default(),
            timeout_seconds: None,
        }
    }

    fn answer(job: &RunningJob) -> JobResult {
        JobResult {
            version: 1,
            task_id: job.task_id,
            job_id: job.id,
            attempt: job.attempt,
            status: Outcome::Completed,
            exit_code: Some(0),
            stdout: String::new(),
            stderr: String::new(),
            started_at: Time::from_millis(0),
            ended_at: Time::from_millis(0),
            truncated: Truncated::default(),
            effective: None,
            error: None,
        }
    }

    #[test]
    fn invalid_result_is_rejected() {
        let job = job();
        let good = answer(&job);
        let validate_result = |result| {
            let outline = vec![(3, 7)];
            validate_result(
                &job,
                ResultEvent {
                    seq: 1,
                    outline,
                    result,
                },
            )
        };
        let stored = validate_result(JobResult {
            stdout: "x".to_owned(),
            ..good.clone()
        });
        assert!(
            stored.is_ok_and(|last| last.outline == [(1, 1)]),
            "a wrong outline is replaced"
        );
        let error = Some(JobError {
            kind: JobErrorKind::EngineError,
            message: String::new(),
        });
        let forged = [
            JobResult {
                job_id: JobId::new(),
                ..good.clone()
            },
            JobResult {
                task_id: TaskId::new(),
                ..good.clone()
            },
            JobResult {
                attempt: 2,
                ..good.clone()
            },
            JobResult {
                exit_code: Some(1),
                ..good.clone()
            },
            JobResult {
                exit_code: None,
                ..good.clone()
            },
            JobResult {
                status: Outcome::Failed,
                exit_code: None,
                ..good.clone()
            },
            JobResult {
                status: Outcome::Failed,
                error,
                ..good.clone()
            },
            JobResult {
                status: Outcome::Timeout,
                ..good.clone()
            },
            JobResult {
                stdout: "x".repeat(OUTPUT_LIMIT_BYTES + 1),
                ..good
            },
        ];
        for forged in forged {
            assert!(validate_result(forged.clone()).is_err(), "{forged:?}");
        }
    }

    #[test]
    fn refusal_means_not_started_only_where_certain() {
        let outcome = |start, kind, is_own_answer| {
            let error = NodeCallError::of_kind(kind, is_own_answer);
            AttemptError::of_request(error, start).outcome
        };
        use NodeCallErrorKind as Kind;
        let run = |kind| outcome(Start::Run, kind, true);
        for kind in [
            Kind::Unreachable,
            Kind::UnknownToken,
            Kind::Denied,
            Kind::NotFound,
            Kind::Unsupported,
        ] {
            let outcome = run(kind);
            assert!(
                matches!(outcome, Some(AttemptOutcome::NotStarted(_))),
                "{kind:?}"
            );
        }
        assert!(matches!(
            run(Kind::AtCapacity),
            Some(AttemptOutcome::AtCapacity(_))
        ));
        assert!(matches!(
            run(Kind::PullQueueFull),
            Some(AttemptOutcome::PullQueueFull(_))
        ));
        assert!(matches!(
            run(Kind::Unhealthy),
            Some(AttemptOutcome::NodeUnhealthy(_))
        ));
        assert!(matches!(
            run(Kind::Invalid),
            Some(AttemptOutcome::Rejected(_))
        ));
        assert!(matches!(run(Kind::Conflict), Some(AttemptOutcome::Lost(_))));
        // The node may have started it, so it is asked again.
        for kind in [Kind::Unclear, Kind::Malformed, Kind::NotMade] {
            assert!(run(kind).is_none(), "{kind:?}");
        }
        let attach = |kind, is_own_answer| outcome(Start::Attach, kind, is_own_answer);
        for kind in [Kind::NotFound, Kind::Conflict] {
            assert!(matches!(attach(kind, true), Some(AttemptOutcome::Lost(_))));
            assert!(attach(kind, false).is_none(), "a proxy answers the same");
        }
        for kind in [
            Kind::Unreachable,
            Kind::Unclear,
            Kind::Unhealthy,
            Kind::Unsupported,
        ] {
            assert!(attach(kind, true).is_none(), "{kind:?}");
        }
    }
}
