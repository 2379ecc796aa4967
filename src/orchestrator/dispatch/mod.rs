//! Carries one decision out: gives an attempt to its node, follows it, stores how it ended.
//!
//! ```text
//! Start::Run ────POST jobs:run────▶ started … result ──▶ stored ──▶ DELETE at the node
//!                   │ events cut or silent 15 s             ▲
//!                   ▼                                       │
//! Start::Attach ─GET jobs/{id}?after=n─▶ started … result ──┤  (also after our own restart)
//!                   │ silent for a lease                    │
//!                   ▼                                       │
//!                 offered to another node ──────────────────┘  whichever counts when it ends
//! ```
//!
//! [`attempt`] follows one attempt: it is posted once. After a cut nobody can tell whether the node has
//! begun, so we request_job, and never start it again under the same number. A node that was never reached, or
//! refused, has not begun: the job goes back to the queue and its attempt doesn't count. One that does
//! not know the attempt has lost it.
//!
//! Workers of other implementations may answer `jobs:run` with one document, and only at the end. Until
//! then we request_job whether the node is there. After such an answer the command has run: where it is not
//! understood the job ends as lost, and no other attempt follows.
//!
//! A node that is merely silent loses nothing. When its [`lease`] has run out the scheduler finds another
//! node, if there is one, and [`reschedule`] offers it the next attempt; the silent node is asked all the
//! while. What it has of an attempt that is over goes when it is [looked through](super::reconciler). Of a
//! job that may have no other attempt the end is awaited, until its time limit and [`TIMEOUT_MARGIN`] have passed:
//! then nobody can know it any more, and it is lost.
//!
//! What the command prints doesn't come by here: whoever wants to read it asks the node. So a job that
//! prints without end costs us nothing.
//!
//! A result is stored before the node may forget_at_node it ([`finalize`]); while the store takes no writes, we try
//! again, and the node keeps the result.

mod attempt;
mod finalize;
mod lease;
mod outcome;
mod reschedule;

pub(super) use attempt::CANCEL_TIMEOUT;

use super::{
    AppState,
    active_jobs::JobHandle,
    task_watch::{LogSource, TaskState},
};
use crate::{api::tasks::TaskStatus, store::RunningJob};
use finalize::Cleanup;
use futures_util::FutureExt as _;
use outcome::AttemptOutcome;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

/// What a node may take beyond a job's time limit, mostly to fetch its image, before its attempt is given up.
const TIMEOUT_MARGIN: Duration = Duration::from_mins(30);
/// How long a node keeps what it was told to keep for those who read along, after the end.
const READERS_TIMEOUT: Duration = Duration::from_mins(10);
/// Backoff before asking a silent node, or a store that takes no writes, again.
const INITIAL_RETRY_BACKOFF: Duration = Duration::from_millis(100);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(5);

/// How to begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The node hasn't heard of this attempt.
    Run,
    /// It may have.
    Attach,
}

impl Start {
    /// How to begin now, with a node that is about to be asked; from then on it may have heard.
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Attach)
    }
}

/// Follows `job` in the background until its end is stored.
pub(super) fn start(state: &Arc<AppState>, job: RunningJob, handle: JobHandle, start: Start) {
    if job.cancel_requested {
        state.jobs.active.cancel(job.id);
    }
    let watch = state.jobs.watches.for_task(job.task_id);
    watch.publish(match start {
        Start::Run => TaskState::new(TaskStatus::Running, job.attempt),
        // What it printed before our own restart is asked for at its node, which may have it.
        Start::Attach => running_state(&job),
    });
    let shared = Arc::clone(state);
    state.jobs.background.spawn("follow_job", async move {
        let (state, mut job) = (shared, job);
        let following = reschedule::follow(&state, &mut job, start, &watch, &handle);
        // A fault of ours must not leave a job that runs forever.
        let outcome = AssertUnwindSafe(following)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| {
                AttemptOutcome::Lost("the orchestrator made a mistake; its log says which".into())
            });
        let canceled = handle.is_cancel_requested();
        let cleanup = finalize::finalize(&state, &job, &watch, outcome, canceled).await;
        drop(handle);
        if let Some(offered) = job.offered_attempt() {
            // Its end in the store has ended the offer.
            state.nodes.reconciler.mark_superseded(&offered);
        }
        match cleanup {
            Cleanup::Nothing => {}
            Cleanup::Reconcile => state.nodes.reconciler.mark_superseded(&job),
            Cleanup::AfterReaders => {
                // Who reads along and was cut off, as when the node was restarted, reads the rest there.
                watch.wait_unobserved(READERS_TIMEOUT).await;
                finalize::forget_at_node(&state, &job).await;
            }
        }
    });
}

/// A node has this attempt.
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
