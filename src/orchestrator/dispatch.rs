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

use super::{
    Orchestrator,
    live::{LiveTask, Moment},
    node_client::NodeClient,
    summary,
};
use crate::{
    api::{
        events::{JobEvent, KEPT_BYTES},
        jobs::{JobResult, Outcome},
        tasks::{JobStatus, TaskStatus},
        time::Time,
    },
    http::client::CallError,
    store::{FinishedJob, Node, RunningJob},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How long a node may be away before its attempt is given up.
const LEASE: Duration = Duration::from_mins(1);
/// First pause before asking a silent node again; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Before a job that a node refused is offered again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two attempts.
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);

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
    let orchestrator = Arc::clone(orchestrator);
    tokio::spawn(async move {
        let live = orchestrator.live.task(job.task_id);
        live.moves_to(Moment {
            status: TaskStatus::Running,
            attempt: job.attempt,
        });
        let verdict = follow(&orchestrator, &job, entry, &live, cancel).await;
        settle(&orchestrator, &job, &live, verdict).await;
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
        (Entry::Run, Some(_)) => Some(Verdict::NotBegun(reason.clone())),
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

/// Stores what became of an attempt, and then lets the node forget it.
async fn settle(orchestrator: &Orchestrator, job: &RunningJob, live: &LiveTask, verdict: Verdict) {
    let step = next_step(job, verdict, live);
    let mut pause = FIRST_PAUSE;
    let moment = loop {
        match store(orchestrator, job, &step).await {
            Ok(status) => break status,
            Err(error) => {
                tracing::error!(job = %job.id, %error, "an end can't be stored yet; trying again");
                tokio::time::sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    };
    if let Some(status) = moment {
        live.moves_to(Moment {
            status,
            attempt: job.attempt,
        });
    }
    orchestrator.wake.notify_one();
    if step.node_may_forget {
        forget(orchestrator, job).await;
    }
}

/// What to write: the end of the job, or its way back into the queue.
struct Step {
    end: FinishedJob,
    /// Back into the queue after this pause, unless it is to be canceled.
    again: Option<Duration>,
    /// The attempt never began, and its number is free.
    not_begun: bool,
    node_may_forget: bool,
}

fn next_step(job: &RunningJob, verdict: Verdict, live: &LiveTask) -> Step {
    let tries_left = job.attempt < job.max_attempts;
    let backoff = backoff(job.attempt);
    let without_result = |status, summary: String| FinishedJob {
        id: job.id,
        attempt: job.attempt,
        status,
        result: None,
        outline: None,
        exit_code: None,
        summary,
    };
    match verdict {
        Verdict::Ended(result) => {
            let retryable = result
                .error
                .as_ref()
                .is_some_and(|error| error.kind.is_retryable());
            let end = FinishedJob {
                id: job.id,
                attempt: job.attempt,
                status: match result.status {
                    Outcome::Completed => JobStatus::Completed,
                    Outcome::Failed => JobStatus::Failed,
                    Outcome::Timeout => JobStatus::Timeout,
                    Outcome::Canceled => JobStatus::Canceled,
                },
                exit_code: result.exit_code,
                summary: summary::of(&result),
                outline: serde_json::to_string(&live.outline()).ok(),
                result: serde_json::to_string(&result).ok(),
            };
            let again = (retryable && tries_left).then_some(backoff);
            Step {
                end,
                again,
                not_begun: false,
                node_may_forget: true,
            }
        }
        Verdict::NotBegun(reason) => {
            tracing::warn!(job = %job.id, reason, "a node did not take a job; it is offered again");
            let end = without_result(JobStatus::Canceled, "canceled before it started".to_owned());
            Step {
                end,
                again: Some(REFUSED_PAUSE),
                not_begun: true,
                node_may_forget: false,
            }
        }
        Verdict::Rejected(reason) => {
            let end = without_result(JobStatus::Failed, format!("no node takes it: {reason}"));
            Step {
                end,
                again: None,
                not_begun: true,
                node_may_forget: false,
            }
        }
        Verdict::Lost(reason) => {
            tracing::warn!(job = %job.id, attempt = job.attempt, reason, "an attempt is lost");
            let tries = format!("attempt {} of {}", job.attempt, job.max_attempts);
            let end = without_result(JobStatus::Lost, format!("lost ({tries}): {reason}"));
            Step {
                end,
                again: tries_left.then_some(backoff),
                not_begun: false,
                node_may_forget: false,
            }
        }
    }
}

/// Writes a step; where the task stands then, `None` when another attempt is the current one.
async fn store(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    step: &Step,
) -> Result<Option<TaskStatus>, crate::store::StoreError> {
    let now = Time::now();
    let mut end = step.end.clone();
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

async fn forget(orchestrator: &Orchestrator, job: &RunningJob) {
    for _ in 0..3 {
        let Ok(Some(node)) = orchestrator.store.node_get(job.node_id).await else {
            return;
        };
        let Some(url) = orchestrator.worker_url(&node) else {
            return;
        };
        let client = NodeClient::new(
            &orchestrator.client,
            url,
            orchestrator.identity.worker_token(node.id),
        );
        match client.forget(job.id).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(job = %job.id, %error, "the node keeps a result that is stored");
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        }
    }
}

/// Doubles with each attempt, up to [`LONGEST_BACKOFF`]; between half and all of it, so that jobs
/// which failed together don't come back together.
fn backoff(attempt: u32) -> Duration {
    let full = LONGEST_BACKOFF.min(Duration::from_secs(1 << attempt.saturating_sub(1).min(6)));
    let random = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
    full.mul_f64(0.5 + random / 2.0)
}
