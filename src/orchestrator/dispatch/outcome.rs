//! What an answer of a node, or the lack of one, means for the attempt. Pure.

use super::Start;
use crate::{
    api::{
        events::{OutputLog, ResultEvent},
        problem::ProblemKind,
    },
    http::client::CallError,
    orchestrator::reason::Reason,
    store::RunningJob,
};

/// What became of an attempt.
pub(super) enum AttemptOutcome {
    /// It ended.
    Ended(Box<ResultEvent>),
    /// The node never began.
    NotStarted(Reason),
    /// The node never began, since it has no room at present.
    AtCapacity(Reason),
    /// The node never began, since the job's image has to be pulled and too many others wait for that: other jobs
    /// may find it ready.
    PullQueueFull(Reason),
    /// The node never began, and says by itself why it can't and what is to be done about it.
    NodeUnhealthy(Reason),
    /// The node will never take it as it is.
    Rejected(Reason),
    /// Nobody can tell what happened.
    Lost(Reason),
    /// The command has run, and how it ended can't be understood: no other attempt would be the same.
    Unreadable(Reason),
}

impl AttemptOutcome {
    /// Whether it is the job's end, whatever another attempt would come to.
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

    /// The same of an attempt whose command is known to have run.
    pub(super) fn of_run(self) -> Self {
        match self {
            Self::Lost(reason) => Self::Unreadable(reason),
            other => other,
        }
    }
}

/// A conversation that did not lead to a result.
pub(super) struct AttemptError {
    pub(super) reason: Reason,
    /// What follows; request_job again when `None`.
    pub(super) outcome: Option<AttemptOutcome>,
}

impl AttemptError {
    pub(super) fn passing(reason: impl Into<Reason>) -> Self {
        Self {
            reason: reason.into(),
            outcome: None,
        }
    }

    pub(super) fn lost(reason: &str) -> Self {
        Self {
            reason: reason.into(),
            outcome: Some(AttemptOutcome::Lost(reason.into())),
        }
    }

    /// An answer of success that can't be understood.
    pub(super) fn unreadable(reason: &str) -> Self {
        let reason = Reason::from(format!("its node's answer is not understood ({reason})"));
        Self {
            outcome: Some(AttemptOutcome::Unreadable(reason.clone())),
            reason,
        }
    }

    /// An answer that broke off, or makes no sense. After the start of an attempt the command has run, and
    /// that is all there is to know; to a later question anybody in between may have answered.
    pub(super) fn unread(error: &CallError, start: Start) -> Self {
        match (error, start) {
            (CallError::Malformed { .. }, Start::Run) => {
                tracing::debug!(%error, "answer of a node not understood");
                Self::unreadable("it is not what the contract says")
            }
            _ => Self::passing(Reason::from_call_error(error)),
        }
    }
}

/// What a refusal means for the attempt. A 503, and a 404 for a job that may be there, count only in a
/// node's own words: a proxy in between says the same of a node that it lost sight of.
pub(super) fn classify_error(error: &CallError, start: Start) -> AttemptError {
    let (status, slug) = match error {
        CallError::Refused {
            status, problem, ..
        } => (status.as_u16(), problem.slug()),
        _ => (0, ""),
    };
    let known = !slug.is_empty();
    let reason = Reason::from_call_error(error);
    let outcome = match (start, status) {
        (Start::Run, _) if error.is_not_sent() => Some(AttemptOutcome::NotStarted(reason.clone())),
        (Start::Run, 400 | 413 | 415) => Some(AttemptOutcome::Rejected(reason.clone())),
        (Start::Run, 409) => Some(AttemptOutcome::Lost(reason.clone())),
        (Start::Run, 401 | 403 | 404 | 405 | 421) => {
            Some(AttemptOutcome::NotStarted(reason.clone()))
        }
        (Start::Run, 503 | 507) if known => Some(AttemptOutcome::NodeUnhealthy(reason.clone())),
        (Start::Run, 429) if slug == ProblemKind::PullsFull.slug() => {
            Some(AttemptOutcome::PullQueueFull(reason.clone()))
        }
        (Start::Run, 429) => Some(AttemptOutcome::AtCapacity(reason.clone())),
        // Of another attempt than ours it doesn't speak.
        (Start::Attach, 404 | 409) if known => Some(AttemptOutcome::Lost(
            "its node does not know it (any more)".into(),
        )),
        _ => None,
    };
    AttemptError { reason, outcome }
}

/// A node is not believed what can't be, nor stored what is out of all proportion. An outline that
/// doesn't belong to the texts makes room for one that does.
pub(super) fn validate_result(
    job: &RunningJob,
    mut last: ResultEvent,
) -> Result<ResultEvent, AttemptError> {
    let result = &last.result;
    let its_own =
        result.job_id == job.id && result.task_id == job.task_id && result.attempt == job.attempt;
    if !(its_own && result.is_valid()) {
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
        problem::{ProblemBody, TYPE_BASE},
        time::Time,
    };
    use http::StatusCode;

    pub(in crate::orchestrator) fn job() -> RunningJob {
        let spec = serde_json::json!({
            "sandbox": {"image": "a", "command": ["x"]}, "node_labels": [], "max_attempts": 3,
        });
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
            spec: serde_json::from_value(spec).unwrap(),
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
            "nor is its outline"
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
        let refused_as = |status: u16, kind: String| CallError::Refused {
            url: String::new(),
            status: StatusCode::from_u16(status).unwrap(),
            problem: Box::new(ProblemBody {
                kind,
                title: String::new(),
                status,
                detail: String::new(),
                instance: String::new(),
                errors: Vec::new(),
            }),
        };
        let refusal = |status, known: bool| {
            let kind = known.then(|| format!("{TYPE_BASE}x"));
            refused_as(status, kind.unwrap_or_default())
        };
        let transport = |connected| CallError::Transport {
            url: String::new(),
            reason: String::new(),
            connected,
        };
        for (status, busy) in [(401, false), (403, false), (404, false), (429, true)] {
            let outcome = classify_error(&refusal(status, true), Start::Run).outcome;
            assert!(
                match outcome {
                    Some(AttemptOutcome::NotStarted(_)) => !busy,
                    Some(AttemptOutcome::AtCapacity(_)) => busy,
                    _ => false,
                },
                "{status}"
            );
        }
        let pulls_full = refused_as(429, ProblemKind::PullsFull.uri());
        assert!(matches!(
            classify_error(&pulls_full, Start::Run).outcome,
            Some(AttemptOutcome::PullQueueFull(_))
        ));
        for status in [503, 507] {
            let outcome = classify_error(&refusal(status, true), Start::Run).outcome;
            assert!(
                matches!(outcome, Some(AttemptOutcome::NodeUnhealthy(_))),
                "{status}"
            );
        }
        assert!(matches!(
            classify_error(&refusal(400, true), Start::Run).outcome,
            Some(AttemptOutcome::Rejected(_))
        ));
        assert!(matches!(
            classify_error(&refusal(409, true), Start::Run).outcome,
            Some(AttemptOutcome::Lost(_))
        ));
        assert!(matches!(
            classify_error(&transport(false), Start::Run).outcome,
            Some(AttemptOutcome::NotStarted(_))
        ));
        assert!(
            classify_error(&refusal(404, false), Start::Attach)
                .outcome
                .is_none()
        );
        // It may have begun: request_job, don't assume. A proxy's answer is no node's.
        assert!(
            classify_error(&refusal(503, false), Start::Run)
                .outcome
                .is_none()
        );
        assert!(
            classify_error(&refusal(507, false), Start::Run)
                .outcome
                .is_none()
        );
        assert!(
            classify_error(&refusal(500, true), Start::Run)
                .outcome
                .is_none()
        );
        assert!(
            classify_error(&transport(true), Start::Run)
                .outcome
                .is_none()
        );
        assert!(
            classify_error(&transport(false), Start::Attach)
                .outcome
                .is_none()
        );
        assert!(
            classify_error(&refusal(503, true), Start::Attach)
                .outcome
                .is_none()
        );
        assert!(matches!(
            classify_error(&refusal(404, true), Start::Attach).outcome,
            Some(AttemptOutcome::Lost(_))
        ));
    }
}
