//! What an answer of a node, or the lack of one, means for the attempt. Pure.

use super::Entry;
use crate::{
    api::{
        events::{OutputLog, ResultEvent},
        problem::Kind,
    },
    http::client::CallError,
    orchestrator::node_words::Reason,
    store::RunningJob,
};

/// What became of an attempt.
pub(super) enum Verdict {
    /// It ended.
    Ended(Box<ResultEvent>),
    /// The node never began.
    NotBegun(Reason),
    /// The node never began, since it has no room at present.
    Busy(Reason),
    /// The node never began, since the job's image has to be pulled and too many others wait for that: other jobs
    /// may find it ready.
    PullsFull(Reason),
    /// The node never began, and says by itself why it can't and what is to be done about it.
    Unable(Reason),
    /// The node will never take it as it is.
    Rejected(Reason),
    /// Nobody can tell what happened.
    Lost(Reason),
    /// The command has run, and how it ended can't be understood: no other attempt would be the same.
    Unreadable(Reason),
}

impl Verdict {
    /// Whether it is the job's end, whatever another attempt would come to.
    pub(super) fn is_last_word(&self) -> bool {
        match self {
            Self::Ended(last) => last
                .result
                .error
                .as_ref()
                .is_none_or(|error| !error.kind.is_retryable() && !error.kind.is_of_one_node()),
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
pub(super) struct Trouble {
    pub(super) reason: Reason,
    /// What follows; ask again when `None`.
    pub(super) verdict: Option<Verdict>,
}

impl Trouble {
    pub(super) fn passing(reason: impl Into<Reason>) -> Self {
        Self {
            reason: reason.into(),
            verdict: None,
        }
    }

    pub(super) fn lost(reason: &str) -> Self {
        Self {
            reason: reason.into(),
            verdict: Some(Verdict::Lost(reason.into())),
        }
    }

    /// An answer of success that can't be understood.
    pub(super) fn unreadable(reason: &str) -> Self {
        let reason = Reason::from(format!("its node's answer is not understood ({reason})"));
        Self {
            verdict: Some(Verdict::Unreadable(reason.clone())),
            reason,
        }
    }

    /// An answer that broke off, or makes no sense. After the start of an attempt the command has run, and
    /// that is all there is to know; to a later question anybody in between may have answered.
    pub(super) fn unread(error: &CallError, entry: Entry) -> Self {
        match (error, entry) {
            (CallError::Malformed { .. }, Entry::Run) => {
                tracing::debug!(%error, "answer of a node not understood");
                Self::unreadable("it is not what the contract says")
            }
            _ => Self::passing(Reason::of(error)),
        }
    }
}

/// What a refusal means for the attempt. A 503, and a 404 for a job that may be there, count only in a
/// node's own words: a proxy in between says the same of a node that it lost sight of.
pub(super) fn refused(error: &CallError, entry: Entry) -> Trouble {
    let (status, slug) = match error {
        CallError::Refused {
            status, problem, ..
        } => (status.as_u16(), problem.slug()),
        _ => (0, ""),
    };
    let known = !slug.is_empty();
    let reason = Reason::of(error);
    let verdict = match (entry, status) {
        (Entry::Run, _) if error.is_unsent() => Some(Verdict::NotBegun(reason.clone())),
        (Entry::Run, 400 | 413 | 415) => Some(Verdict::Rejected(reason.clone())),
        (Entry::Run, 409) => Some(Verdict::Lost(reason.clone())),
        (Entry::Run, 401 | 403 | 404 | 405 | 421) => Some(Verdict::NotBegun(reason.clone())),
        (Entry::Run, 503 | 507) if known => Some(Verdict::Unable(reason.clone())),
        (Entry::Run, 429) if slug == Kind::PullsFull.slug() => {
            Some(Verdict::PullsFull(reason.clone()))
        }
        (Entry::Run, 429) => Some(Verdict::Busy(reason.clone())),
        // Of another attempt than ours it doesn't speak.
        (Entry::Attach, 404 | 409) if known => {
            Some(Verdict::Lost("its node does not know it (any more)".into()))
        }
        _ => None,
    };
    Trouble { reason, verdict }
}

/// A node is not believed what can't be, nor stored what is out of all proportion. An outline that
/// doesn't belong to the texts makes room for one that does.
pub(super) fn check(job: &RunningJob, mut last: ResultEvent) -> Result<ResultEvent, Trouble> {
    let result = &last.result;
    let its_own =
        result.job_id == job.id && result.task_id == job.task_id && result.attempt == job.attempt;
    if !(its_own && result.is_sound()) {
        return Err(Trouble::unreadable("a result that can't be this job's"));
    }
    last.outline = OutputLog::restore(&last.outline, &result.stdout, &result.stderr).outline();
    Ok(last)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{
        JobId, NodeId, TaskId,
        events::KEPT_BYTES,
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
            placement: "{}".to_owned(),
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
    fn a_result_that_cant_be_is_not_believed() {
        let job = job();
        let good = answer(&job);
        let check = |result| {
            let outline = vec![(3, 7)];
            check(
                &job,
                ResultEvent {
                    seq: 1,
                    outline,
                    result,
                },
            )
        };
        let stored = check(JobResult {
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
                stdout: "x".repeat(KEPT_BYTES + 1),
                ..good
            },
        ];
        for forged in forged {
            assert!(check(forged.clone()).is_err(), "{forged:?}");
        }
    }

    #[test]
    fn a_refusal_means_not_begun_only_where_that_is_certain() {
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
            let verdict = refused(&refusal(status, true), Entry::Run).verdict;
            assert!(
                match verdict {
                    Some(Verdict::NotBegun(_)) => !busy,
                    Some(Verdict::Busy(_)) => busy,
                    _ => false,
                },
                "{status}"
            );
        }
        let pulls_full = refused_as(429, Kind::PullsFull.uri());
        assert!(matches!(
            refused(&pulls_full, Entry::Run).verdict,
            Some(Verdict::PullsFull(_))
        ));
        for status in [503, 507] {
            let verdict = refused(&refusal(status, true), Entry::Run).verdict;
            assert!(matches!(verdict, Some(Verdict::Unable(_))), "{status}");
        }
        assert!(matches!(
            refused(&refusal(400, true), Entry::Run).verdict,
            Some(Verdict::Rejected(_))
        ));
        assert!(matches!(
            refused(&refusal(409, true), Entry::Run).verdict,
            Some(Verdict::Lost(_))
        ));
        assert!(matches!(
            refused(&transport(false), Entry::Run).verdict,
            Some(Verdict::NotBegun(_))
        ));
        assert!(
            refused(&refusal(404, false), Entry::Attach)
                .verdict
                .is_none()
        );
        // It may have begun: ask, don't assume. A proxy's answer is no node's.
        assert!(refused(&refusal(503, false), Entry::Run).verdict.is_none());
        assert!(refused(&refusal(507, false), Entry::Run).verdict.is_none());
        assert!(refused(&refusal(500, true), Entry::Run).verdict.is_none());
        assert!(refused(&transport(true), Entry::Run).verdict.is_none());
        assert!(refused(&transport(false), Entry::Attach).verdict.is_none());
        assert!(
            refused(&refusal(503, true), Entry::Attach)
                .verdict
                .is_none()
        );
        assert!(matches!(
            refused(&refusal(404, true), Entry::Attach).verdict,
            Some(Verdict::Lost(_))
        ));
    }
}
