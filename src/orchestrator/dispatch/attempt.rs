//! One attempt, followed at its node from the request to the result.

use super::{
    INITIAL_RETRY_BACKOFF, MAX_RETRY_BACKOFF, Start, TIMEOUT_MARGIN,
    lease::Lease,
    outcome::{AttemptError, AttemptOutcome, classify_error, validate_result},
    running_state,
};
use crate::{
    api::{
        events::{JobEvent, Outline, ResultEvent},
        job_document::ExpectedAttempt,
        jobs::{DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS},
        tasks::TaskStatus,
        time::Time,
    },
    backoff::Backoff,
    http::client::CallError,
    orchestrator::{
        AppState,
        node_client::{JobResponse, NodeClient, NodeEvents, PendingDocument, PendingResponse},
        reason::Reason,
        task_log,
        task_watch::{TaskState, TaskWatch},
    },
    store::{Node, RunningJob},
    wait,
};
use std::{pin::pin, time::Duration};
use tokio::sync::watch;

/// Time that a node has to end a job that is to be canceled.
pub(in crate::orchestrator) const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest pause before it is told so again.
const MAX_CANCEL_BACKOFF: Duration = Duration::from_secs(1);

/// Before a node is asked, again and again, whether it is there while its answer is awaited.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Users are told of a node that has not answered for so long.
const SILENT_AFTER: Duration = Duration::from_secs(5);

/// How a follower with a node begins.
pub(super) struct InitialRequest<'a> {
    pub(super) start: Start,
    /// Answer to that, where the node was asked before.
    pub(super) pending: Option<PendingResponse<'a>>,
}

impl From<Start> for InitialRequest<'_> {
    fn from(start: Start) -> Self {
        Self {
            start,
            pending: None,
        }
    }
}

/// How an attempt ended. A node that goes on talking, or is silent, and never comes to an end is given up
/// one day.
pub(super) async fn follow_attempt<'a>(
    state: &'a AppState,
    job: &'a RunningJob,
    initial: InitialRequest<'a>,
    watch: &'a TaskWatch,
    cancel: watch::Receiver<bool>,
    lease: &'a Lease,
) -> AttemptOutcome {
    let asked = job.spec.sandbox.timeout_seconds;
    let asked = asked.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    let limit = Duration::from_secs(asked.min(MAX_TIMEOUT_SECONDS)) + TIMEOUT_MARGIN;
    let follower = AttemptFollower {
        state,
        job,
        watch,
        // One that is attached to was logged when it was first taken.
        is_logged: initial.start == Start::Attach,
        initial,
        began: Time::now(),
        lease,
        last_seq: 0,
        made_progress: false,
    };
    let outcome = tokio::select! {
        outcome = follow(follower) => outcome,
        outcome = cancel_on_request(state, job, cancel) => outcome,
        () = tokio::time::sleep(limit) => {
            AttemptOutcome::Lost(format!("its node told no end within {} s", limit.as_secs()).into())
        }
    };
    if lease.command_ran() {
        outcome.of_run()
    } else {
        outcome
    }
}

async fn follow(mut follower: AttemptFollower<'_>) -> AttemptOutcome {
    let job = follower.job;
    let mut backoff = Backoff::new(INITIAL_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
    loop {
        follower.made_progress = false;
        let AttemptError { reason, outcome } = match follower.follow_once().await {
            Ok(last) => return AttemptOutcome::Ended(Box::new(last)),
            Err(trouble) => trouble,
        };
        if let Some(outcome) = outcome {
            return outcome;
        }
        follower.record_silence();
        // Else one that breaks off each time would be asked without a pause.
        if follower.made_progress {
            backoff.reset();
        }
        tracing::debug!(job = %job.id, attempt = job.attempt, %reason, "a node does not answer");
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// What is said with a node about an attempt.
struct AttemptFollower<'a> {
    state: &'a AppState,
    job: &'a RunningJob,
    watch: &'a TaskWatch,
    initial: InitialRequest<'a>,
    /// Start of the attempt, where its node names none.
    began: Time,
    lease: &'a Lease,
    /// Number of the newest event that was heard.
    last_seq: u64,
    /// Whether there was any news since it was asked last.
    made_progress: bool,
    /// Whether the log says that the node took the attempt.
    is_logged: bool,
}

impl AttemptFollower<'_> {
    /// From the question to the result; may be held again.
    async fn follow_once(&mut self) -> Result<ResultEvent, AttemptError> {
        let (state, job) = (self.state, self.job);
        let node = load_node(state, job).await?;
        let client = connect_node(state, &node, self.initial.start)?;
        let mut backoff = Backoff::new(INITIAL_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
        loop {
            let start = self.initial.start.take();
            let pending = self.initial.pending.take();
            let pending =
                pending.unwrap_or_else(|| request_job(&client, job, start, self.last_seq));
            match self.wait_probing(&client, pending).await {
                Ok(JobResponse::Stream(events)) => {
                    self.record_accepted().await;
                    self.watch.publish(running_state(job));
                    return self.read_events(start, events).await;
                }
                Ok(JobResponse::Document(answer)) => {
                    self.record_accepted().await;
                    if let Some(last) = self.read_document(&client, start, answer).await? {
                        return Ok(last);
                    }
                }
                Err(error) => return Err(classify_attach_error(&client, &error, start).await),
            }
            // It runs, and there is no telling when it ends but by asking again.
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Notes that the node has the attempt.
    async fn record_accepted(&mut self) {
        self.state.nodes.backoff.clear(self.job.node_id);
        if !std::mem::replace(&mut self.is_logged, true) {
            task_log::started(self.state, self.job).await;
        }
    }

    /// Follows the events of the attempt up to its result.
    async fn read_events(
        &mut self,
        start: Start,
        mut events: NodeEvents,
    ) -> Result<ResultEvent, AttemptError> {
        loop {
            let event = events.next().await;
            let Some(event) = event.map_err(|error| AttemptError::unread(&error, start))? else {
                return Err(AttemptError::passing("the events ended without a result"));
            };
            if event
                .attempt()
                .is_some_and(|attempt| attempt != self.job.attempt)
            {
                let reason = "it tells of another attempt";
                return Err(match start {
                    Start::Run => AttemptError::unreadable(reason),
                    // It has another one, and not this.
                    Start::Attach => AttemptError::lost(reason),
                });
            }
            self.lease.renew();
            // That it is alive is its word, and no news.
            self.made_progress |= event.seq().is_some();
            self.last_seq = event.seq().unwrap_or(0).max(self.last_seq);
            if let JobEvent::Result(last) = event {
                return validate_result(self.job, *last);
            }
        }
    }

    /// Reads a plain answer; nothing where the command still runs.
    async fn read_document(
        &mut self,
        client: &NodeClient<'_>,
        start: Start,
        answer: PendingDocument,
    ) -> Result<Option<ResultEvent>, AttemptError> {
        if start == Start::Run {
            self.lease.mark_command_ran();
        }
        let answer = self.wait_probing(client, answer.read()).await;
        let answer = answer.map_err(|error| AttemptError::unread(&error, start))?;
        self.record_alive();
        let expected = ExpectedAttempt {
            task_id: self.job.task_id,
            job_id: self.job.id,
            attempt: self.job.attempt,
            started_at: self.began,
            ended_at: Time::now(),
        };
        let result = answer.result(expected);
        let result = result.map_err(|reason| match start {
            Start::Run => AttemptError::unreadable(&reason),
            Start::Attach => AttemptError::passing(reason),
        })?;
        let last = result.map(|result| {
            let outline = Outline::new();
            let seq = 1;
            validate_result(
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
    async fn wait_probing<T>(
        &mut self,
        client: &NodeClient<'_>,
        answer: impl Future<Output = T>,
    ) -> T {
        let mut answer = pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                is_alive = probe(client) => {
                    if is_alive {
                        self.record_alive();
                    } else {
                        self.record_silence();
                    }
                }
            }
        }
    }

    /// The node is there, and has sent nothing of the attempt.
    fn record_alive(&self) {
        self.lease.renew();
        let runs = TaskState::new(TaskStatus::Running, self.job.attempt);
        self.watch.publish(runs);
    }

    /// The node does not answer.
    fn record_silence(&self) {
        self.lease.mark_silent();
        if self.lease.silence() >= SILENT_AFTER {
            self.watch.publish(TaskState {
                is_unreachable: true,
                ..running_state(self.job)
            });
        }
    }
}

/// Asks the node of an attempt to run it, or after it where that was asked before: its course behind event
/// number `after`.
pub(super) fn request_job<'a>(
    client: &NodeClient<'a>,
    job: &RunningJob,
    start: Start,
    after: u64,
) -> PendingResponse<'a> {
    match start {
        Start::Run => client.run(job),
        Start::Attach => client.attach(job.id, job.attempt, after),
    }
}

/// Whether a node is there, after a while.
pub(super) async fn probe(client: &NodeClient<'_>) -> bool {
    tokio::time::sleep(PROBE_INTERVAL).await;
    client.is_alive().await
}

/// What a refusal means. A node that lives and can't be asked about its jobs will never tell.
async fn classify_attach_error(
    client: &NodeClient<'_>,
    error: &CallError,
    start: Start,
) -> AttemptError {
    if start == Start::Attach && error.is_unsupported() && client.is_alive().await {
        return AttemptError::lost(
            "the connection to its node broke off, and that node can't be asked again",
        );
    }
    classify_error(error, start)
}

/// The node of an attempt, as it is known now.
pub(super) async fn load_node(state: &AppState, job: &RunningJob) -> Result<Node, AttemptError> {
    let found = state.store.node_get(job.node_id).await;
    found
        .map_err(|error| AttemptError::passing(error.to_string()))?
        .ok_or_else(|| AttemptError::lost("its node was forgotten"))
}

/// The Worker API of a node, where anybody knows where that is.
pub(super) fn connect_node<'a>(
    state: &'a AppState,
    node: &Node,
    start: Start,
) -> Result<NodeClient<'a>, AttemptError> {
    state.node_client(node).ok_or_else(|| {
        let reason = Reason::from("it has not said where its Worker API is");
        AttemptError {
            outcome: (start == Start::Run).then(|| AttemptOutcome::NotStarted(reason.clone())),
            reason,
        }
    })
}

/// Once asked to, tells the node to end the attempt until it has made_progress; and gives the attempt up when the
/// node tells no end in time, whether it had heard or not.
async fn cancel_on_request(
    state: &AppState,
    job: &RunningJob,
    mut cancel: watch::Receiver<bool>,
) -> AttemptOutcome {
    if wait::until(&mut cancel, |cancel| *cancel).await.is_err() {
        // Nobody can request_job any more, so nobody will.
        return std::future::pending().await;
    }
    let told = async {
        let mut backoff = Backoff::new(INITIAL_RETRY_BACKOFF, MAX_CANCEL_BACKOFF);
        // A 404 may mean that our own request to run is still under way.
        while let Err(AttemptError { reason, .. }) = send_cancel(state, job).await {
            tracing::debug!(job = %job.id, %reason, "a cancel was not heard");
            tokio::time::sleep(backoff.next_delay()).await;
        }
        std::future::pending::<()>().await;
    };
    let _ = tokio::time::timeout(CANCEL_TIMEOUT, told).await;
    AttemptOutcome::Lost("it was to be canceled, and its node told no end".into())
}

async fn send_cancel(state: &AppState, job: &RunningJob) -> Result<(), AttemptError> {
    let node = load_node(state, job).await?;
    let client = connect_node(state, &node, Start::Attach)?;
    let canceled = client.cancel(job.id, job.attempt).await;
    canceled.map_err(|error| AttemptError::passing(Reason::from_call_error(&error)))
}
