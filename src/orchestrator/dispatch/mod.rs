//! Carries one decision out: gives an attempt to its node, follows it, stores how it ended.
//!
//! ```text
//! Entry::Run ────POST jobs:run────▶ started … result ──▶ stored ──▶ DELETE at the node
//!                   │ cut                                  ▲
//!                   ▼                                      │
//! Entry::Attach ─GET jobs/{id}?after=n─▶ started … result ─┘   (also after our own restart)
//!                   │ 404, or away for longer than the lease
//!                   ▼
//!                 lost ──▶ the next attempt, or the end
//! ```
//!
//! An attempt is posted once. After a cut nobody can tell whether the node has begun, so we
//! ask, and never start it again under the same number. A node that was never reached, or
//! refused, has not begun: the job goes back to the queue and its attempt doesn't count.
//!
//! What the command prints doesn't come by here: whoever wants to read it asks the node. So a job that
//! prints without end costs us nothing.
//!
//! A result is stored before the node may forget it; while the store takes no writes, we try
//! again, and the node keeps the result.

mod settle;
mod verdict;

use super::{
    Orchestrator,
    followers::Follower,
    live::{LiveTask, Moment, Source},
    node_client::{NodeClient, Wanted},
};
use crate::{
    api::{
        events::{JobEvent, ResultEvent},
        jobs::{DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS},
        tasks::TaskStatus,
    },
    pause::Pauses,
    store::RunningJob,
};
use futures_util::FutureExt as _;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use verdict::{Trouble, Verdict, check, refused};

/// How long a node may refuse to be talked to before its attempt is given up. One that takes calls and
/// stalls isn't noticed by this, but by [`MARGIN`].
const LEASE: Duration = Duration::from_mins(1);
/// What a node may take beyond a job's time limit, mostly to fetch its image, before its attempt is given up.
const MARGIN: Duration = Duration::from_mins(30);
/// A stream of events that stood for so long was no mere refusal.
const STEADY: Duration = Duration::from_secs(5);
/// How long a node may take to end a job that it was told to.
const CANCEL_LIMIT: Duration = Duration::from_mins(1);
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
    // What it printed before our own restart is asked for at its node, which may have it.
    let source = (entry == Entry::Attach).then(|| source(&job));
    live.moves_to(Moment {
        source,
        ..Moment::of(TaskStatus::Running, job.attempt)
    });
    let shared = Arc::clone(orchestrator);
    orchestrator.following.spawn(async move {
        let orchestrator = shared;
        let following = within_time(&orchestrator, &job, entry, &live, follower.cancel());
        // A fault of ours must not leave a job that runs forever.
        let verdict = AssertUnwindSafe(following)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| {
                Verdict::Lost("the orchestrator made a mistake; its log says which".to_owned())
            });
        let canceled = *follower.cancel().borrow();
        let may_forget = settle::settle(&orchestrator, &job, &live, verdict, canceled).await;
        drop(follower);
        if may_forget {
            // Who reads along and was cut off, as when the node was restarted, reads the rest there.
            live.unwatched(READERS_LIMIT).await;
            settle::forget(&orchestrator, &job).await;
        }
    });
}

fn source(job: &RunningJob) -> Source {
    Source {
        node: job.node_id,
        job: job.id,
    }
}

/// A node that goes on talking and never comes to an end is given up as well.
async fn within_time(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    entry: Entry,
    live: &LiveTask,
    cancel: watch::Receiver<bool>,
) -> Verdict {
    let asked = job
        .spec
        .sandbox
        .timeout_seconds
        .unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    let limit = Duration::from_secs(asked.min(MAX_TIMEOUT_SECONDS)) + MARGIN;
    let conversation = Conversation {
        orchestrator,
        job,
        live,
        entry,
        last_seq: 0,
    };
    match tokio::time::timeout(limit, follow(conversation, cancel)).await {
        Ok(verdict) => verdict,
        Err(_) => Verdict::Lost(format!("its node told no end within {} s", limit.as_secs())),
    }
}

async fn follow(mut conversation: Conversation<'_>, cancel: watch::Receiver<bool>) -> Verdict {
    let job = conversation.job;
    let mut away_since = None;
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let seen = conversation.last_seq;
        let Trouble { reason, steady, .. } = match conversation.hold(cancel.clone()).await {
            Ok(last) => return Verdict::Ended(Box::new(last)),
            Err(Trouble {
                verdict: Some(verdict),
                ..
            }) => return verdict,
            Err(trouble) => trouble,
        };
        // News show that the node is there, and so does a stream that stood for a while; an answer
        // that breaks off at once does not.
        if steady || conversation.last_seq > seen {
            away_since = None;
            pauses.reset();
        }
        tracing::debug!(job = %job.id, attempt = job.attempt, reason, "a node does not answer");
        let since = *away_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= LEASE {
            return Verdict::Lost(format!(
                "its node did not answer for {} s: {reason}",
                LEASE.as_secs()
            ));
        }
        tokio::time::sleep(pauses.take()).await;
    }
}

/// What is said with a node about an attempt.
struct Conversation<'a> {
    orchestrator: &'a Orchestrator,
    job: &'a RunningJob,
    live: &'a LiveTask,
    entry: Entry,
    /// Number of the newest event that was heard.
    last_seq: u64,
}

impl Conversation<'_> {
    /// From the question to the result; may be held again.
    async fn hold(&mut self, cancel: watch::Receiver<bool>) -> Result<ResultEvent, Trouble> {
        let (orchestrator, job) = (self.orchestrator, self.job);
        let found = orchestrator.store.node_get(job.node_id).await;
        let node = found
            .map_err(|error| Trouble::passing(error.to_string()))?
            .ok_or_else(|| Trouble::lost("its node was forgotten"))?;
        let entry = std::mem::replace(&mut self.entry, Entry::Attach);
        let Some(client) = orchestrator.node_client(&node) else {
            let reason = "it has not said where its Worker API is".to_owned();
            let verdict = (entry == Entry::Run).then(|| Verdict::NotBegun(reason.clone()));
            return Err(Trouble {
                verdict,
                ..Trouble::passing(reason)
            });
        };
        tokio::select! {
            outcome = self.listen(&client, entry) => outcome,
            trouble = cancel_when_asked(&client, job, cancel) => Err(trouble),
        }
    }

    async fn listen(
        &mut self,
        client: &NodeClient<'_>,
        entry: Entry,
    ) -> Result<ResultEvent, Trouble> {
        let job = self.job;
        let asked = match entry {
            Entry::Run => client.run(job).await,
            Entry::Attach => client.attach(job.id, self.last_seq, Wanted::Course).await,
        };
        let mut events = asked.map_err(|error| refused(&error, entry))?;
        self.orchestrator.avoided.forgive(job.node_id);
        self.live.moves_to(Moment {
            source: Some(source(job)),
            ..Moment::of(TaskStatus::Running, job.attempt)
        });
        let opened = Instant::now();
        let cut = |reason: String| Trouble {
            steady: opened.elapsed() > STEADY,
            ..Trouble::passing(reason)
        };
        loop {
            let heard = events.next().await;
            match heard.map_err(|error| cut(error.to_string()))? {
                Some(JobEvent::Result(last)) => return check(job, *last),
                Some(event) => self.last_seq = event.seq().unwrap_or(0).max(self.last_seq),
                None => return Err(cut("the events ended without a result".to_owned())),
            }
        }
    }
}

/// Once asked to, tells the node to end the job until it has heard; and gives the attempt up when the
/// node tells no end in time, whether it had heard or not.
async fn cancel_when_asked(
    client: &NodeClient<'_>,
    job: &RunningJob,
    mut cancel: watch::Receiver<bool>,
) -> Trouble {
    if cancel.wait_for(|cancel| *cancel).await.is_err() {
        // Nobody can ask any more, so nobody will.
        return std::future::pending().await;
    }
    let until = Instant::now() + CANCEL_LIMIT;
    let told = async {
        // A 404 may mean that our own request to run is still under way.
        while let Err(error) = client.cancel(job.id).await {
            tracing::debug!(job = %job.id, %error, "a cancel was not heard");
            tokio::time::sleep(FIRST_PAUSE).await;
        }
        tokio::time::sleep_until(until).await;
    };
    let _ = tokio::time::timeout_at(until, told).await;
    Trouble::lost("it was to be canceled, and its node told no end")
}
