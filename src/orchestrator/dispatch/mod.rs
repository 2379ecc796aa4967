//! Carries one decision out: gives an attempt to its node, follows it, stores how it ended.
//!
//! ```text
//! Entry::Run ────POST jobs:run────▶ started … result ──▶ stored ──▶ DELETE at the node
//!                   │ events cut or silent 15 s             ▲
//!                   ▼                                       │
//! Entry::Attach ─GET jobs/{id}?after=n─▶ started … result ──┤  (also after our own restart)
//!                   │ silent for a lease                    │
//!                   ▼                                       │
//!                 offered to another node ──────────────────┘  whichever counts when it ends
//! ```
//!
//! [`attempt`] follows one attempt: it is posted once. After a cut nobody can tell whether the node has
//! begun, so we ask, and never start it again under the same number. A node that was never reached, or
//! refused, has not begun: the job goes back to the queue and its attempt doesn't count. One that does
//! not know the attempt has lost it.
//!
//! Workers of other implementations may answer `jobs:run` with one document, and only at the end. Until
//! then we ask whether the node is there. After such an answer the command has run: where it is not
//! understood the job ends as lost, and no other attempt follows.
//!
//! A node that is merely silent loses nothing. When its [`lease`] has run out the scheduler finds another
//! node, if there is one, and [`handover`] offers it the next attempt; the silent node is asked all the
//! while. What it has of an attempt that is over goes when it is [looked through](super::leftovers). Of a
//! job that may have no other attempt the end is awaited, until its time limit and [`MARGIN`] have passed:
//! then nobody can know it any more, and it is lost.
//!
//! What the command prints doesn't come by here: whoever wants to read it asks the node. So a job that
//! prints without end costs us nothing.
//!
//! A result is stored before the node may forget it ([`settle`]); while the store takes no writes, we try
//! again, and the node keeps the result.

mod attempt;
mod handover;
mod lease;
mod settle;
mod verdict;

pub(super) use attempt::CANCEL_TIMEOUT;

use super::{
    Orchestrator,
    followers::Follower,
    live::{Moment, Source},
};
use crate::{api::tasks::TaskStatus, store::RunningJob};
use futures_util::FutureExt as _;
use settle::Left;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use verdict::Verdict;

/// What a node may take beyond a job's time limit, mostly to fetch its image, before its attempt is given up.
const MARGIN: Duration = Duration::from_mins(30);
/// How long a node keeps what it was told to keep for those who read along, after the end.
const READERS_LIMIT: Duration = Duration::from_mins(10);
/// Pauses before asking a silent node, or a store that takes no writes, again.
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

impl Entry {
    /// How to begin now, with a node that is about to be asked; from then on it may have heard.
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Attach)
    }
}

/// Follows `job` in the background until its end is stored.
pub(super) fn start(
    orchestrator: &Arc<Orchestrator>,
    job: RunningJob,
    follower: Follower,
    entry: Entry,
) {
    if job.cancel_requested {
        orchestrator.followers.cancel(job.id);
    }
    let live = orchestrator.live.task(job.task_id);
    live.moves_to(match entry {
        Entry::Run => Moment::of(TaskStatus::Running, job.attempt),
        // What it printed before our own restart is asked for at its node, which may have it.
        Entry::Attach => moment(&job),
    });
    let shared = Arc::clone(orchestrator);
    orchestrator.following.spawn(async move {
        let (orchestrator, mut job) = (shared, job);
        let following = handover::follow(&orchestrator, &mut job, entry, &live, &follower);
        // A fault of ours must not leave a job that runs forever.
        let verdict = AssertUnwindSafe(following)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| {
                Verdict::Lost("the orchestrator made a mistake; its log says which".into())
            });
        let canceled = follower.is_canceled();
        let left = settle::settle(&orchestrator, &job, &live, verdict, canceled).await;
        drop(follower);
        if let Some(offered) = job.offered() {
            // Its end in the store has ended the offer.
            orchestrator.leftovers.owe_end(&offered);
        }
        match left {
            Left::Nothing => {}
            Left::Leftover => orchestrator.leftovers.owe_end(&job),
            Left::Log => {
                // Who reads along and was cut off, as when the node was restarted, reads the rest there.
                live.unwatched(READERS_LIMIT).await;
                settle::forget(&orchestrator, &job).await;
            }
        }
    });
}

/// A node has this attempt.
fn moment(job: &RunningJob) -> Moment {
    let source = Source {
        node: job.node_id,
        job: job.id,
        attempt: job.attempt,
    };
    Moment {
        source: Some(source),
        ..Moment::of(TaskStatus::Running, job.attempt)
    }
}

#[cfg(test)]
pub(super) mod tests {
    pub(in crate::orchestrator) use super::verdict::tests::job as running;
}
