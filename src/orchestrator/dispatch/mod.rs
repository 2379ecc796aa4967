//! Dispatch: the life of a job at nodes, from the claim to the stored result.
//!
//! ```text
//! Start::Run ────POST jobs:run────▶ started … result ──▶ stored ──▶ DELETE at the node
//!                   │ events cut or silent 15 s             ▲
//!                   ▼                                       │
//! Start::Attach ─GET jobs/{id}?after=n─▶ started … result ──┤  (also after a restart of the orchestrator)
//!                   │ silent for a lease                    │
//!                   ▼                                       │
//!                 offered to another node ──────────────────┘  the attempt that counts at its end
//! ```
//!
//! | file | part |
//! |---|---|
//! | [`attempt`] | one attempt at its node: run, follow, result |
//! | [`request`] | the first request of an attempt, and its node |
//! | [`send`] | contents that the node lacks |
//! | [`retrieve`] | artifacts, fetched before the end is stored |
//! | [`turns`] | which artifacts are fetched at the same time |
//! | [`outcome`] | meaning of an answer for the attempt; pure |
//! | [`lease`] | the time for which a node may be silent |
//! | [`expiry`] | the time after which an attempt is given up |
//! | [`reschedule`] | another node for a job whose lease expired |
//! | [`transition`] | decision on what an outcome means for the job; pure |
//! | [`finalize`] | storing an outcome: the end of the job, or another attempt |
//!
//! One background task follows a job, so that all decisions about it are made in one place, one after the other.
//!
//! An attempt is sent once. After a cut connection it is unknown whether the node started it, so the node is
//! asked, and never sent the same attempt again. A node that was never reached, or refused, has not
//! started: the job goes back to the queue, and the attempt doesn't count. A node that doesn't know the
//! attempt has lost it.
//!
//! A worker of another implementation may answer `jobs:run` with one document, when the job ends. After
//! such an answer the command has run: where the document is invalid, the job ends as lost, without another
//! attempt.
//!
//! Silence alone ends nothing: the attempt of a silent node counts until another node has accepted the next
//! one. A job without another attempt is awaited until it is [given up](expiry). A sandbox that stays can run nowhere
//! else, and is lost with the lease of its node.
//!
//! Output is not read here: a reader of logs asks the node, and after the end the node's whole log is kept
//! ([`archive`]). So a job that prints without end costs the orchestrator nothing. Nor is the sandbox of a job, up to 1 MiB, kept here: it is read for the request
//! that sends it.
//!
//! A result is stored before the node may remove it; while the store takes no writes, the node keeps it.

mod attempt;
mod expiry;
mod finalize;
mod lease;
mod outcome;
mod request;
mod reschedule;
mod retrieve;
mod send;
mod transition;
mod turns;

pub(super) use attempt::cancel_timeout;
pub use lease::LeaseTerms;
pub(super) use request::Start;
pub(super) use retrieve::ARTIFACTS_PREFIX;
pub(super) use send::{SendError, transfer};
pub(super) use turns::Turns;

use super::{
    AppState,
    active_jobs::{Cancellation, JobHandle},
    logs::archive,
    task_watch::{LogSource, TaskState, TaskWatch},
};
use crate::{api::tasks::TaskStatus, store::RunningJob};
use finalize::Cleanup;
use futures_util::FutureExt as _;
use outcome::AttemptOutcome;
use request::InitialRequest;
use reschedule::Followed;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tracing::Instrument as _;

/// Time for which a node keeps an ended attempt for readers of its logs.
const READERS_TIMEOUT: Duration = Duration::from_mins(10);

/// Follows `job` in the background until its end is stored.
pub(super) fn start(state: &Arc<AppState>, job: RunningJob, handle: JobHandle, start: Start) {
    if job.cancel_requested {
        state.jobs.active.cancel(job.id, Cancellation::Graceful);
    }
    let watch = state.jobs.watches.for_task(job.task_id);
    watch.publish(match start {
        Start::Run => TaskState::new(TaskStatus::Running, job.attempt),
        // The node may have output from before a restart of the orchestrator.
        Start::Attach => running_state(&job),
    });
    let shared = Arc::clone(state);
    let follow = async move { follow_job(&shared, job, &watch, handle, start).await };
    state.jobs.background.spawn("follow_job", follow);
}

/// Follows a job from attempt to attempt, stores the outcome, and has the nodes clean up.
async fn follow_job(
    state: &Arc<AppState>,
    mut job: RunningJob,
    watch: &TaskWatch,
    handle: JobHandle,
    start: Start,
) {
    let mut request = InitialRequest::from(start);
    loop {
        let span = job_span(&job);
        let followed = follow_attempt(state, &mut job, watch, &handle, request);
        match followed.instrument(span.clone()).await {
            Followed::HandedOff(next, accepted) => {
                job = *next;
                request = accepted;
            }
            Followed::Ended(outcome) => {
                let end = end_job(state, job, watch, handle, outcome);
                return end.instrument(span).await;
            }
        }
    }
}

/// Follows the attempt that counts. A panic must not leave a job that runs forever.
async fn follow_attempt<'a>(
    state: &'a AppState,
    job: &mut RunningJob,
    watch: &TaskWatch,
    handle: &JobHandle,
    request: InitialRequest<'a>,
) -> Followed<'a> {
    let followed = reschedule::follow(state, job, request, watch, handle);
    let followed = AssertUnwindSafe(followed).catch_unwind().await;
    followed.unwrap_or_else(|_| {
        tracing::error!("following a job panicked; the message of the panic is in the log above");
        let reason = "internal error of the orchestrator; see its log";
        Followed::Ended(AttemptOutcome::Lost(reason.into()))
    })
}

/// Stores the outcome of a job's last attempt, then has its node remove what is left of it.
async fn end_job(
    state: &Arc<AppState>,
    job: RunningJob,
    watch: &TaskWatch,
    handle: JobHandle,
    mut outcome: AttemptOutcome,
) {
    let retrieved = retrieve::retrieve(state, &job, &mut outcome, &handle).await;
    let log = match &outcome {
        AttemptOutcome::Ended(last) => {
            let started = AssertUnwindSafe(archive::start(state, &job, &last.result));
            // The message of a panic is in the log.
            started.catch_unwind().await.ok()
        }
        _ => None,
    };
    let is_canceled = handle.is_cancel_requested();
    let cleanup = finalize::finalize(state, &job, watch, (outcome, retrieved), is_canceled).await;
    drop(handle);
    if let Some(offered) = job.offered_attempt() {
        // The stored end withdrew the offer.
        state.nodes.reconciler.mark_superseded(&offered);
    }
    match cleanup {
        Cleanup::Nothing => {}
        Cleanup::Reconcile => state.nodes.reconciler.mark_superseded(&job),
        Cleanup::AfterReaders => {
            // A reader that was cut off, as by a restart of the node, gets the rest from there.
            watch.wait_unobserved(READERS_TIMEOUT).await;
            if let Some(log) = log {
                log.finish().await;
            }
            finalize::forget_at_node(state, &job).await;
        }
    }
}

/// Span of one attempt, so that no log call repeats its ids. The node's slug is recorded when it is known.
fn job_span(job: &RunningJob) -> tracing::Span {
    let (task, id, attempt) = (job.task_id, job.id, job.attempt);
    tracing::info_span!("job", %task, job = %id, attempt, node = tracing::field::Empty)
}

/// State of a task whose attempt a node has.
fn running_state(job: &RunningJob) -> TaskState {
    let source = LogSource {
        node: job.node_id,
        job: job.id,
        attempt: job.attempt,
    };
    TaskState {
        source: Some(source),
        ..TaskState::new(TaskStatus::Running, job.attempt)
    }
}

#[cfg(test)]
pub(super) mod tests {
    pub(in crate::orchestrator) use super::outcome::tests::job as running;
}
