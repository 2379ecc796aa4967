//! One attempt, followed at its node from the request to the result.

use super::{
    Entry, FIRST_PAUSE, LONGEST_PAUSE, MARGIN,
    lease::Lease,
    moment,
    verdict::{Trouble, Verdict, check, refused},
};
use crate::{
    api::{
        events::{JobEvent, ResultEvent},
        jobs::{DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS},
    },
    orchestrator::{
        Orchestrator,
        live::{LiveTask, Moment},
        node_client::{Events, NodeClient, Wanted},
    },
    pause::Pauses,
    store::{Node, RunningJob},
    wait,
};
use std::time::Duration;
use tokio::sync::watch;

/// How long a node may take to end a job that it was told to.
const CANCEL_LIMIT: Duration = Duration::from_mins(1);
/// Longest pause before it is told so again.
const LONGEST_CANCEL_PAUSE: Duration = Duration::from_secs(1);

/// Users are told of a node that has not answered for so long.
const SILENCE: Duration = Duration::from_secs(5);

/// How an attempt ended. A node that goes on talking, or is silent, and never comes to an end is given up
/// one day.
pub(super) async fn attend(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    entry: Entry,
    live: &LiveTask,
    cancel: watch::Receiver<bool>,
    lease: &Lease,
) -> Verdict {
    let asked = job.spec.sandbox.timeout_seconds;
    let asked = asked.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    let limit = Duration::from_secs(asked.min(MAX_TIMEOUT_SECONDS)) + MARGIN;
    let conversation = Conversation {
        orchestrator,
        job,
        live,
        entry,
        lease,
        last_seq: 0,
        heard: false,
    };
    tokio::select! {
        verdict = follow(conversation) => verdict,
        verdict = cancel_when_asked(orchestrator, job, cancel) => verdict,
        () = tokio::time::sleep(limit) => {
            Verdict::Lost(format!("its node told no end within {} s", limit.as_secs()))
        }
    }
}

async fn follow(mut conversation: Conversation<'_>) -> Verdict {
    let job = conversation.job;
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        conversation.heard = false;
        let Trouble { reason, verdict } = match conversation.hold().await {
            Ok(last) => return Verdict::Ended(Box::new(last)),
            Err(trouble) => trouble,
        };
        if let Some(verdict) = verdict {
            return verdict;
        }
        conversation.lease.is_silent();
        if conversation.lease.silence() >= SILENCE {
            conversation.live.moves_to(Moment {
                is_silent: true,
                ..moment(job)
            });
        }
        // Else one that breaks off each time would be asked without a pause.
        if conversation.heard {
            pauses.reset();
        }
        tracing::debug!(job = %job.id, attempt = job.attempt, reason, "a node does not answer");
        tokio::time::sleep(pauses.take()).await;
    }
}

/// What is said with a node about an attempt.
struct Conversation<'a> {
    orchestrator: &'a Orchestrator,
    job: &'a RunningJob,
    live: &'a LiveTask,
    entry: Entry,
    lease: &'a Lease,
    /// Number of the newest event that was heard.
    last_seq: u64,
    /// Whether there was any news since it was asked last.
    heard: bool,
}

impl Conversation<'_> {
    /// From the question to the result; may be held again.
    async fn hold(&mut self) -> Result<ResultEvent, Trouble> {
        let job = self.job;
        let mut events = ask(self.orchestrator, job, &mut self.entry, self.last_seq).await?;
        self.orchestrator.avoided.forgive(job.node_id);
        self.live.moves_to(moment(job));
        loop {
            let event = events.next().await;
            let event = event.map_err(|error| Trouble::passing(error.to_string()))?;
            let Some(event) = event else {
                return Err(Trouble::passing("the events ended without a result"));
            };
            if event
                .attempt()
                .is_some_and(|attempt| attempt != job.attempt)
            {
                return Err(Trouble::passing("it tells of another attempt"));
            }
            self.lease.renew();
            // That it is alive is its word, and no news.
            self.heard |= event.seq().is_some();
            self.last_seq = event.seq().unwrap_or(0).max(self.last_seq);
            if let JobEvent::Result(last) = event {
                return check(job, *last);
            }
        }
    }
}

/// Asks the node of an attempt to run it, or after it where that was asked before: its events behind
/// number `after`.
pub(super) async fn ask(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    entry: &mut Entry,
    after: u64,
) -> Result<Events, Trouble> {
    let node = node_of(orchestrator, job).await?;
    let client = client_of(orchestrator, &node, *entry)?;
    let entry = entry.take();
    let asked = match entry {
        Entry::Run => client.run(job).await,
        Entry::Attach => {
            client
                .attach(job.id, job.attempt, after, Wanted::Course)
                .await
        }
    };
    asked.map_err(|error| refused(&error, entry))
}

/// The node of an attempt, as it is known now.
pub(super) async fn node_of(
    orchestrator: &Orchestrator,
    job: &RunningJob,
) -> Result<Node, Trouble> {
    let found = orchestrator.store.node_get(job.node_id).await;
    found
        .map_err(|error| Trouble::passing(error.to_string()))?
        .ok_or_else(|| Trouble::lost("its node was forgotten"))
}

/// The Worker API of a node, where anybody knows where that is.
pub(super) fn client_of<'a>(
    orchestrator: &'a Orchestrator,
    node: &'a Node,
    entry: Entry,
) -> Result<NodeClient<'a>, Trouble> {
    orchestrator.node_client(node).ok_or_else(|| {
        let reason = "it has not said where its Worker API is".to_owned();
        Trouble {
            verdict: (entry == Entry::Run).then(|| Verdict::NotBegun(reason.clone())),
            reason,
        }
    })
}

/// Once asked to, tells the node to end the attempt until it has heard; and gives the attempt up when the
/// node tells no end in time, whether it had heard or not.
async fn cancel_when_asked(
    orchestrator: &Orchestrator,
    job: &RunningJob,
    mut cancel: watch::Receiver<bool>,
) -> Verdict {
    if wait::until(&mut cancel, |cancel| *cancel).await.is_err() {
        // Nobody can ask any more, so nobody will.
        return std::future::pending().await;
    }
    let told = async {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_CANCEL_PAUSE);
        // A 404 may mean that our own request to run is still under way.
        while let Err(Trouble { reason, .. }) = tell_cancel(orchestrator, job).await {
            tracing::debug!(job = %job.id, reason, "a cancel was not heard");
            tokio::time::sleep(pauses.take()).await;
        }
        std::future::pending::<()>().await;
    };
    let _ = tokio::time::timeout(CANCEL_LIMIT, told).await;
    Verdict::Lost("it was to be canceled, and its node told no end".to_owned())
}

async fn tell_cancel(orchestrator: &Orchestrator, job: &RunningJob) -> Result<(), Trouble> {
    let node = node_of(orchestrator, job).await?;
    let client = client_of(orchestrator, &node, Entry::Attach)?;
    let canceled = client.cancel(job.id, job.attempt).await;
    canceled.map_err(|error| Trouble::passing(error.to_string()))
}
