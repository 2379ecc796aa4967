//! Carries one decision out: gives an attempt to its node, follows it, stores how it ended.
//!
//! ```text
//! Entry::Run ────POST jobs:run────▶ events … result ──▶ stored ──▶ DELETE at the node
//!                   │ cut                                  ▲
//!                   ▼                                      │
//! Entry::Attach ─GET jobs/{id}?after=n─▶ events … result ──┘   (also after our own restart)
//!                   │ 404, or away for longer than the lease
//!                   ▼
//!                 lost ──▶ the next attempt, or the end
//! ```
//!
//! An attempt is posted once. After a cut nobody can tell whether the node has begun, so we
//! ask, and never start it again under the same number. A node that was never reached, or
//! refused, has not begun: the job goes back to the queue and its attempt doesn't count.
//!
//! A result is stored before the node may forget it; while the store takes no writes, we try
//! again, and the node keeps the result.

mod settle;

use super::{
    Orchestrator,
    live::{LiveTask, Moment},
    node_client::NodeClient,
};
use crate::{
    api::{
        events::{JobEvent, KEPT_BYTES},
        jobs::{JobResult, Outcome},
        tasks::TaskStatus,
    },
    http::client::CallError,
    store::{Node, RunningJob},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How long a node may be away before its attempt is given up.
const LEASE: Duration = Duration::from_mins(1);
/// First pause before asking a silent node again; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How to begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// The node hasn't heard of this attempt.
    Run,
    /// It may have.
    Attach,
}

/// What became of an attempt.
enum Verdict {
    /// It ended.
    Ended(Box<JobResult>),
    /// The node never began.
    NotBegun(String),
    /// The node will never take it as it is.
    Rejected(String),
    /// Nobody can tell what happened.
    Lost(String),
}

/// Follows `job` in the background until its end is stored.
pub(super) fn start(orchestrator: &Arc<Orchestrator>, job: RunningJob, entry: Entry) {
    let cancel = orchestrator.followers.enter(job.id, job.cancel_requested);
    let shared = Arc::clone(orchestrator);
    orchestrator.following.spawn(async move {
        let orchestrator = shared;
        let live = orchestrator.live.task(job.task_id);
        live.moves_to(Moment {
            status: TaskStatus::Running,
            attempt: job.attempt,
        });
        let verdict = follow(&orchestrator, &job, entry, &live, cancel).await;
        settle::settle(&orchestrator, &job, &live, verdict).await;
        orchestrator.followers.leave(job.id);
    });
}

async fn follow(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    mut entry: Entry,
    live: &LiveTask,
    cancel: watch::Receiver<bool>,
) -> Verdict {
    let mut away_since = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let reached = match orchestrator.store.node_get(job.node_id).await {
            Ok(Some(node)) => talk(orchestrator, job, &node, entry, live, cancel.clone()).await,
            Ok(None) => return Verdict::Lost("its node was forgotten".to_owned()),
            Err(error) => Err(Trouble {
                reason: error.to_string(),
                heard: false,
                verdict: None,
            }),
        };
        let trouble = match reached {
            Ok(result) => return Verdict::Ended(Box::new(result)),
            Err(Trouble {
                verdict: Some(verdict),
                ..
            }) => return verdict,
            Err(trouble) => trouble,
        };
        if trouble.heard {
            away_since = None;
            pause = FIRST_PAUSE;
        }
        entry = Entry::Attach;
        tracing::debug!(job = %job.id, attempt = job.attempt, reason = trouble.reason, "a node does not answer");
        let since = *away_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= LEASE {
            return Verdict::Lost(format!(
                "its node did not answer for {} s: {}",
                LEASE.as_secs(),
                trouble.reason
            ));
        }
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// A conversation that did not lead to a result.
struct Trouble {
    reason: String,
    /// Whether the node had begun to tell us events.
    heard: bool,
    /// What follows; ask again when `None`.
    verdict: Option<Verdict>,
}

async fn talk(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    node: &Node,
    entry: Entry,
    live: &LiveTask,
    cancel: watch::Receiver<bool>,
) -> Result<JobResult, Trouble> {
    let Some(url) = orchestrator.worker_url(node) else {
        let reason = "it has not said where its Worker API is".to_owned();
        let verdict = (entry == Entry::Run).then(|| Verdict::NotBegun(reason.clone()));
        return Err(Trouble {
            reason,
            heard: false,
            verdict,
        });
    };
    let client = NodeClient::new(
        &orchestrator.client,
        url,
        orchestrator.identity.worker_token(node.id),
    );
    let conversation = async {
        let opened = match entry {
            Entry::Run => client.run(job).await,
            Entry::Attach => client.attach(job.id, live.last_seq()).await,
        };
        let mut events = opened.map_err(|error| refused(&error, entry))?;
        let cut = |reason: String| Trouble {
            reason,
            heard: true,
            verdict: None,
        };
        loop {
            match events
                .next()
                .await
                .map_err(|error| cut(error.to_string()))?
            {
                Some(JobEvent::Result(last)) => return check(job, last.result),
                Some(event) => live.push(&event),
                None => return Err(cut("the events ended without a result".to_owned())),
            }
        }
    };
    tokio::select! {
        outcome = conversation => outcome,
        never = cancel_when_asked(&client, job, cancel) => match never {},
    }
}

/// What a refusal means for the attempt.
fn refused(error: &CallError, entry: Entry) -> Trouble {
    let reason = error.to_string();
    let verdict = match (entry, error.status().map(|status| status.as_u16())) {
        (Entry::Run, Some(400 | 413 | 415)) => Some(Verdict::Rejected(reason.clone())),
        (Entry::Run, Some(409)) => Some(Verdict::Lost(reason.clone())),
        (Entry::Run, Some(..=499 | 503)) => Some(Verdict::NotBegun(reason.clone())),
        (Entry::Run, None) if error.is_unsent() => Some(Verdict::NotBegun(reason.clone())),
        (Entry::Attach, Some(404)) => Some(Verdict::Lost(
            "its node does not know it (any more)".to_owned(),
        )),
        _ => None,
    };
    Trouble {
        reason,
        heard: false,
        verdict,
    }
}

/// A node is not believed what can't be.
fn check(job: &RunningJob, result: JobResult) -> Result<JobResult, Trouble> {
    let sound = result.job_id == job.id
        && result.task_id == job.task_id
        && result.attempt == job.attempt
        && result.stdout.len() <= KEPT_BYTES
        && result.stderr.len() <= KEPT_BYTES
        && match result.status {
            Outcome::Completed => result.exit_code == Some(0),
            Outcome::Failed => result.exit_code.is_some() != result.error.is_some(),
            Outcome::Timeout | Outcome::Canceled => result.exit_code.is_none(),
        };
    if sound {
        return Ok(result);
    }
    let reason = "its node answered a result that can't be this job's".to_owned();
    Err(Trouble {
        reason: reason.clone(),
        heard: true,
        verdict: Some(Verdict::Lost(reason)),
    })
}

/// Once asked to, tells the node to end the job, until it has heard. Never returns.
async fn cancel_when_asked(
    client: &NodeClient<'_>,
    job: &RunningJob,
    mut cancel: watch::Receiver<bool>,
) -> std::convert::Infallible {
    if cancel.wait_for(|cancel| *cancel).await.is_ok() {
        // A 404 may mean that our own request to run is still under way.
        while let Err(error) = client.cancel(job.id).await {
            tracing::debug!(job = %job.id, %error, "a cancel was not heard");
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        JobId, NodeId, TaskId,
        jobs::{JobError, JobErrorKind, Truncated},
        problem::ProblemBody,
        time::Time,
    };
    use http::StatusCode;

    pub(super) fn job() -> RunningJob {
        let spec = serde_json::json!({
            "sandbox": {"image": "a", "command": ["x"]}, "node_labels": [], "max_attempts": 3,
        });
        RunningJob {
            id: JobId::new(),
            task_id: TaskId::new(),
            attempt: 1,
            max_attempts: 3,
            node_id: NodeId::new(),
            cancel_requested: false,
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
        assert!(check(&job, good.clone()).is_ok());
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
            assert!(check(&job, forged.clone()).is_err(), "{forged:?}");
        }
    }

    #[test]
    fn a_refusal_means_not_begun_only_where_that_is_certain() {
        let refusal = |status: u16| CallError::Refused {
            url: String::new(),
            status: StatusCode::from_u16(status).unwrap(),
            problem: Box::new(ProblemBody {
                kind: String::new(),
                title: String::new(),
                status,
                detail: String::new(),
                instance: String::new(),
                errors: Vec::new(),
            }),
        };
        let transport = |connected| CallError::Transport {
            url: String::new(),
            reason: String::new(),
            connected,
        };
        for status in [401, 403, 404, 429, 503] {
            assert!(
                matches!(
                    refused(&refusal(status), Entry::Run).verdict,
                    Some(Verdict::NotBegun(_))
                ),
                "{status}"
            );
        }
        assert!(matches!(
            refused(&refusal(400), Entry::Run).verdict,
            Some(Verdict::Rejected(_))
        ));
        assert!(matches!(
            refused(&refusal(409), Entry::Run).verdict,
            Some(Verdict::Lost(_))
        ));
        assert!(matches!(
            refused(&transport(false), Entry::Run).verdict,
            Some(Verdict::NotBegun(_))
        ));
        // It may have begun: ask, don't assume.
        assert!(refused(&refusal(500), Entry::Run).verdict.is_none());
        assert!(refused(&transport(true), Entry::Run).verdict.is_none());
        assert!(refused(&transport(false), Entry::Attach).verdict.is_none());
        assert!(refused(&refusal(503), Entry::Attach).verdict.is_none());
        assert!(matches!(
            refused(&refusal(404), Entry::Attach).verdict,
            Some(Verdict::Lost(_))
        ));
    }
}
