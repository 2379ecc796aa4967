//! One attempt, followed at its node from the request to the result.

use super::{
    Entry, FIRST_PAUSE, LONGEST_PAUSE, MARGIN,
    lease::Lease,
    moment,
    verdict::{Trouble, Verdict, check, refused},
};
use crate::{
    api::{
        events::{JobEvent, Outline, ResultEvent},
        jobs::{DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS},
        plain::Expected,
        tasks::TaskStatus,
        time::Time,
    },
    http::client::CallError,
    orchestrator::{
        Orchestrator,
        live::{LiveTask, Moment},
        node_client::{Events, JobAnswer, NodeClient, Pending, Plain},
        node_words::Reason,
        task_log,
    },
    pause::Pauses,
    store::{Node, RunningJob},
    wait,
};
use std::{pin::pin, time::Duration};
use tokio::sync::watch;

/// Time that a node has to end a job that is to be canceled.
pub(in crate::orchestrator) const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest pause before it is told so again.
const LONGEST_CANCEL_PAUSE: Duration = Duration::from_secs(1);

/// Before a node is asked, again and again, whether it is there while its answer is awaited.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Users are told of a node that has not answered for so long.
const SILENCE: Duration = Duration::from_secs(5);

/// How a conversation with a node begins.
pub(super) struct Opening<'a> {
    pub(super) entry: Entry,
    /// Answer to that, where the node was asked before.
    pub(super) pending: Option<Pending<'a>>,
}

impl From<Entry> for Opening<'_> {
    fn from(entry: Entry) -> Self {
        Self {
            entry,
            pending: None,
        }
    }
}

/// How an attempt ended. A node that goes on talking, or is silent, and never comes to an end is given up
/// one day.
pub(super) async fn attend<'a>(
    orchestrator: &'a Orchestrator,
    job: &'a RunningJob,
    opening: Opening<'a>,
    live: &'a LiveTask,
    cancel: watch::Receiver<bool>,
    lease: &'a Lease,
) -> Verdict {
    let asked = job.spec.sandbox.timeout_seconds;
    let asked = asked.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    let limit = Duration::from_secs(asked.min(MAX_TIMEOUT_SECONDS)) + MARGIN;
    let conversation = Conversation {
        orchestrator,
        job,
        live,
        // One that is attached to was logged when it was first taken.
        is_logged: opening.entry == Entry::Attach,
        opening,
        began: Time::now(),
        lease,
        last_seq: 0,
        heard: false,
    };
    let verdict = tokio::select! {
        verdict = follow(conversation) => verdict,
        verdict = cancel_when_asked(orchestrator, job, cancel) => verdict,
        () = tokio::time::sleep(limit) => {
            Verdict::Lost(format!("its node told no end within {} s", limit.as_secs()).into())
        }
    };
    if lease.has_run() {
        verdict.of_run()
    } else {
        verdict
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
        conversation.note_silence();
        // Else one that breaks off each time would be asked without a pause.
        if conversation.heard {
            pauses.reset();
        }
        tracing::debug!(job = %job.id, attempt = job.attempt, %reason, "a node does not answer");
        tokio::time::sleep(pauses.take()).await;
    }
}

/// What is said with a node about an attempt.
struct Conversation<'a> {
    orchestrator: &'a Orchestrator,
    job: &'a RunningJob,
    live: &'a LiveTask,
    opening: Opening<'a>,
    /// Start of the attempt, where its node names none.
    began: Time,
    lease: &'a Lease,
    /// Number of the newest event that was heard.
    last_seq: u64,
    /// Whether there was any news since it was asked last.
    heard: bool,
    /// Whether the log says that the node took the attempt.
    is_logged: bool,
}

impl Conversation<'_> {
    /// From the question to the result; may be held again.
    async fn hold(&mut self) -> Result<ResultEvent, Trouble> {
        let (orchestrator, job) = (self.orchestrator, self.job);
        let node = node_of(orchestrator, job).await?;
        let client = client_of(orchestrator, &node, self.opening.entry)?;
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let entry = self.opening.entry.take();
            let pending = self.opening.pending.take();
            let pending = pending.unwrap_or_else(|| ask(&client, job, entry, self.last_seq));
            match self.wait_for(&client, pending).await {
                Ok(JobAnswer::Events(events)) => {
                    self.note_taken().await;
                    self.live.moves_to(moment(job));
                    return self.listen(entry, events).await;
                }
                Ok(JobAnswer::Plain(answer)) => {
                    self.note_taken().await;
                    if let Some(last) = self.read(&client, entry, answer).await? {
                        return Ok(last);
                    }
                }
                Err(error) => return Err(explain(&client, &error, entry).await),
            }
            // It runs, and there is no telling when it ends but by asking again.
            tokio::time::sleep(pauses.take()).await;
        }
    }

    /// Notes that the node has the attempt.
    async fn note_taken(&mut self) {
        self.orchestrator.avoided.forgive(self.job.node_id);
        if !std::mem::replace(&mut self.is_logged, true) {
            task_log::started(self.orchestrator, self.job).await;
        }
    }

    /// Follows the events of the attempt up to its result.
    async fn listen(&mut self, entry: Entry, mut events: Events) -> Result<ResultEvent, Trouble> {
        loop {
            let event = events.next().await;
            let Some(event) = event.map_err(|error| Trouble::unread(&error, entry))? else {
                return Err(Trouble::passing("the events ended without a result"));
            };
            if event
                .attempt()
                .is_some_and(|attempt| attempt != self.job.attempt)
            {
                let reason = "it tells of another attempt";
                return Err(match entry {
                    Entry::Run => Trouble::unreadable(reason),
                    // It has another one, and not this.
                    Entry::Attach => Trouble::lost(reason),
                });
            }
            self.lease.renew();
            // That it is alive is its word, and no news.
            self.heard |= event.seq().is_some();
            self.last_seq = event.seq().unwrap_or(0).max(self.last_seq);
            if let JobEvent::Result(last) = event {
                return check(self.job, *last);
            }
        }
    }

    /// Reads a plain answer; nothing where the command still runs.
    async fn read(
        &mut self,
        client: &NodeClient<'_>,
        entry: Entry,
        answer: Plain,
    ) -> Result<Option<ResultEvent>, Trouble> {
        if entry == Entry::Run {
            self.lease.mark_run();
        }
        let answer = self.wait_for(client, answer.read()).await;
        let answer = answer.map_err(|error| Trouble::unread(&error, entry))?;
        self.note_life();
        let expected = Expected {
            task_id: self.job.task_id,
            job_id: self.job.id,
            attempt: self.job.attempt,
            started_at: self.began,
            ended_at: Time::now(),
        };
        let result = answer.result(expected);
        let result = result.map_err(|reason| match entry {
            Entry::Run => Trouble::unreadable(&reason),
            Entry::Attach => Trouble::passing(reason),
        })?;
        let last = result.map(|result| {
            let outline = Outline::new();
            let seq = 1;
            check(
                self.job,
                ResultEvent {
                    seq,
                    outline,
                    result,
                },
            )
        });
        last.transpose()
    }

    /// Waits for what some workers send only once the job has ended, and finds out meanwhile whether the
    /// node is there.
    async fn wait_for<T>(&mut self, client: &NodeClient<'_>, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                is_there = probe(client) => {
                    if is_there {
                        self.note_life();
                    } else {
                        self.note_silence();
                    }
                }
            }
        }
    }

    /// The node is there, and has sent nothing of the attempt.
    fn note_life(&self) {
        self.lease.renew();
        let runs = Moment::of(TaskStatus::Running, self.job.attempt);
        self.live.moves_to(runs);
    }

    /// The node does not answer.
    fn note_silence(&self) {
        self.lease.is_silent();
        if self.lease.silence() >= SILENCE {
            self.live.moves_to(Moment {
                is_silent: true,
                ..moment(self.job)
            });
        }
    }
}

/// Asks the node of an attempt to run it, or after it where that was asked before: its course behind event
/// number `after`.
pub(super) fn ask<'a>(
    client: &NodeClient<'a>,
    job: &RunningJob,
    entry: Entry,
    after: u64,
) -> Pending<'a> {
    match entry {
        Entry::Run => client.run(job),
        Entry::Attach => client.attach(job.id, job.attempt, after),
    }
}

/// Whether a node is there, after a while.
pub(super) async fn probe(client: &NodeClient<'_>) -> bool {
    tokio::time::sleep(PROBE_INTERVAL).await;
    client.is_there().await
}

/// What a refusal means. A node that lives and can't be asked about its jobs will never tell.
async fn explain(client: &NodeClient<'_>, error: &CallError, entry: Entry) -> Trouble {
    if entry == Entry::Attach && error.is_unsupported() && client.is_there().await {
        return Trouble::lost(
            "the connection to its node broke off, and that node can't be asked again",
        );
    }
    refused(error, entry)
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
    node: &Node,
    entry: Entry,
) -> Result<NodeClient<'a>, Trouble> {
    orchestrator.node_client(node).ok_or_else(|| {
        let reason = Reason::from("it has not said where its Worker API is");
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
            tracing::debug!(job = %job.id, %reason, "a cancel was not heard");
            tokio::time::sleep(pauses.take()).await;
        }
        std::future::pending::<()>().await;
    };
    let _ = tokio::time::timeout(CANCEL_TIMEOUT, told).await;
    Verdict::Lost("it was to be canceled, and its node told no end".into())
}

async fn tell_cancel(orchestrator: &Orchestrator, job: &RunningJob) -> Result<(), Trouble> {
    let node = node_of(orchestrator, job).await?;
    let client = client_of(orchestrator, &node, Entry::Attach)?;
    let canceled = client.cancel(job.id, job.attempt).await;
    canceled.map_err(|error| Trouble::passing(Reason::of(&error)))
}
