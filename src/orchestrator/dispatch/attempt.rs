//! One attempt at its node, from the request to the result.
//!
//! [`follow_attempt`] is the sequence: request, follow the events, and after a cut request the rest, until
//! there is a result, or an answer that is an outcome by itself. Beside it two clocks run: the time limit of the
//! job, and, once a user cancels it, the time that the node has to end it.

use super::{
    InitialRequest, Start,
    expiry::given_up,
    lease::Lease,
    outcome::{AttemptError, AttemptOutcome, validate_result},
    request::{connect, request_job},
    running_state,
    send::{MAX_ROUNDS, Observers, not_started, send_contents},
};
use crate::{
    api::{
        TaskId,
        events::{JobEvent, Outline, ResultEvent},
        job_document::ExpectedAttempt,
        jobs::DEFAULT_GRACE_SECONDS,
        tasks::TaskStatus,
        time::Time,
    },
    backoff::Backoff,
    errors,
    orchestrator::{
        AppState,
        active_jobs::Cancellation,
        node_client::{
            self, JobResponse, NodeCallError, NodeCallErrorKind, NodeClient, NodeEvents,
            PendingDocument,
        },
        sandboxes, task_log,
        task_watch::{TaskState, TaskWatch},
    },
    store::RunningJob,
    wait,
};
use std::{pin::pin, sync::atomic::AtomicU64, time::Duration};
use tokio::sync::watch;

/// Time that a node has to end a canceled job, beyond the grace of its command.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);
/// Backoff between calls that cancel an attempt.
const INITIAL_CANCEL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_CANCEL_BACKOFF: Duration = Duration::from_secs(1);
/// Silence after which users see that the node does not answer.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(5);

/// Follows an attempt to its outcome.
///
/// An attempt without a result is lost when it is [given up](given_up), and a canceled one after [`cancel_timeout`].
pub(super) async fn follow_attempt<'a>(
    state: &'a AppState,
    job: &'a RunningJob,
    request: InitialRequest<'a>,
    watch: &'a TaskWatch,
    cancellation: watch::Receiver<Cancellation>,
    lease: &'a Lease,
) -> AttemptOutcome {
    let seconds_sending = AtomicU64::new(0);
    let follower = AttemptFollower {
        state,
        seconds_sending: &seconds_sending,
        job,
        watch,
        lease,
        // The start of an attempt that is attached to was logged when it was first accepted.
        is_logged: request.start == Start::Attach,
        request,
        is_node_recorded: false,
        is_store_failing: false,
        requested_at: Time::now(),
        last_seq: 0,
        made_progress: false,
    };
    let outcome = tokio::select! {
        outcome = follower.follow() => outcome,
        outcome = cancel_on_request(state, job, cancellation) => outcome,
        reason = given_up(state, job, lease, &seconds_sending) => AttemptOutcome::Lost(reason),
    };
    if lease.has_command_run() {
        outcome.after_command_ran()
    } else {
        outcome
    }
}

/// Exchange with the node of an attempt.
struct AttemptFollower<'a> {
    state: &'a AppState,
    /// Seconds for which files were sent to the node.
    seconds_sending: &'a AtomicU64,
    job: &'a RunningJob,
    watch: &'a TaskWatch,
    lease: &'a Lease,
    request: InitialRequest<'a>,
    /// Start of the attempt, for a document that names none.
    requested_at: Time,
    /// Number of the newest event.
    last_seq: u64,
    /// Whether the latest exchange brought a new event.
    made_progress: bool,
    /// Whether the span has the node's slug.
    is_node_recorded: bool,
    /// Whether the log says that the node accepted the attempt.
    is_logged: bool,
    /// Whether the latest read of the store failed.
    is_store_failing: bool,
}

impl AttemptFollower<'_> {
    /// Asks the node until there is an outcome.
    async fn follow(mut self) -> AttemptOutcome {
        let mut backoff = node_client::retry_backoff();
        loop {
            self.made_progress = false;
            let error = match self.follow_once().await {
                Ok(last) => return AttemptOutcome::Ended(Box::new(last)),
                Err(error) => error,
            };
            self.record_error(&error);
            if let Some(outcome) = error.outcome {
                return outcome;
            }
            // A stream without a new event must not be requested again without a pause.
            if self.made_progress {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Records an exchange without a result. A store that can't be read says nothing about the node, whose lease
    /// must not run for it; of several failures in a row only the first is a warning.
    fn record_error(&mut self, error: &AttemptError) {
        let is_first = !std::mem::replace(&mut self.is_store_failing, error.store_error.is_some());
        let reason = &error.reason;
        match &error.store_error {
            Some(cause) if is_first => {
                let error = errors::chain(cause.as_ref());
                tracing::warn!(%reason, error, "node can't be asked about its job");
            }
            Some(_) => tracing::debug!(%reason, "node can't be asked about its job; retrying"),
            None if error.outcome.is_some() => {}
            None => {
                self.record_silence();
                tracing::debug!(%reason, "node does not answer; retrying");
            }
        }
    }

    /// One exchange, from the request to the result. May be repeated.
    async fn follow_once(&mut self) -> Result<ResultEvent, AttemptError> {
        let job = self.job;
        let client = connect(self.state, job, self.request.start).await?;
        if !std::mem::replace(&mut self.is_node_recorded, true) {
            tracing::Span::current().record("node", client.slug());
        }
        let mut backoff = node_client::retry_backoff();
        let mut rounds = 0;
        loop {
            let pending = match self.request.pending.take() {
                Some(pending) => pending,
                None => {
                    let start = self.request.start;
                    request_job(self.state, &client, job, start, self.last_seq).await?
                }
            };
            let start = self.request.start.take();
            match self.wait_probing(&client, pending).await {
                Ok(JobResponse::Stream(events)) => {
                    self.record_accepted();
                    self.watch.publish(running_state(job));
                    return self.read_events(start, events).await;
                }
                Ok(JobResponse::Document(document)) => {
                    self.record_accepted();
                    if let Some(last) = self.read_document(&client, start, document).await? {
                        return Ok(last);
                    }
                }
                Err(error)
                    if error.kind == NodeCallErrorKind::ContentMissing && start == Start::Run =>
                {
                    rounds += 1;
                    if rounds > MAX_ROUNDS {
                        return Err(not_started("it loses the job's files again and again"));
                    }
                    let observers = Observers {
                        lease: self.lease,
                        watch: self.watch,
                        seconds: self.seconds_sending,
                    };
                    let missing = &error.missing;
                    send_contents(self.state, &client, job, missing, Some(observers)).await?;
                    // The node refused, so it has nothing of the attempt.
                    self.request.start = Start::Run;
                    continue;
                }
                Err(error) => return Err(request_error(&client, error, start).await),
            }
            // The job runs at a worker without events, so only another question finds its end.
            tokio::time::sleep(backoff.next_delay()).await;
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
            let Some(event) = event.map_err(|error| AttemptError::of_read(error, start))? else {
                return Err(AttemptError::transient("the events ended without a result"));
            };
            let other = event.attempt().filter(|number| *number != self.job.attempt);
            if other.is_some() {
                let reason = "its events are of another attempt";
                return Err(match start {
                    Start::Run => AttemptError::unreadable(reason),
                    // The node has another attempt, and not this one.
                    Start::Attach => AttemptError::lost(reason),
                });
            }
            self.lease.renew();
            // An event without a number only says that the node is alive.
            self.made_progress |= event.seq().is_some();
            self.last_seq = event.seq().unwrap_or(0).max(self.last_seq);
            if let JobEvent::Started { .. } = event {
                self.record_started();
            }
            if let JobEvent::Result(last) = event {
                events.finish();
                return validate_result(self.job, *last);
            }
        }
    }

    /// Reads a document; `None` while the command still runs.
    async fn read_document(
        &mut self,
        client: &NodeClient<'_>,
        start: Start,
        document: PendingDocument,
    ) -> Result<Option<ResultEvent>, AttemptError> {
        if start == Start::Run {
            self.lease.mark_command_ran();
        }
        let document = self.wait_probing(client, document.read()).await;
        let document = document.map_err(|error| AttemptError::of_read(error, start))?;
        self.record_alive();
        let result = document.result(ExpectedAttempt {
            task_id: self.job.task_id,
            job_id: self.job.id,
            attempt: self.job.attempt,
            started_at: self.requested_at,
            ended_at: Time::now(),
        });
        let result = result.map_err(|error| AttemptError::of_document(&error, start))?;
        let last = result.map(|result| ResultEvent {
            seq: 1,
            outline: Outline::new(),
            result,
        });
        last.map(|last| validate_result(self.job, last)).transpose()
    }

    /// Waits for an answer that some workers send only when the job ends, and probes meanwhile whether the node is
    /// alive.
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
                is_alive = client.probe_later() => {
                    if is_alive {
                        self.record_alive();
                    } else {
                        self.record_silence();
                    }
                }
            }
        }
    }

    /// Records that the node has the attempt.
    fn record_accepted(&mut self) {
        self.state.nodes.backoff.clear(self.job.node_id);
        if !std::mem::replace(&mut self.is_logged, true) {
            task_log::started();
        }
    }

    /// Records that the command has started, or that the sandbox runs.
    fn record_started(&self) {
        self.watch.publish(TaskState {
            has_started: true,
            ..running_state(self.job)
        });
        if self.job.is_sandbox {
            sandboxes::record_start(self.state, self.job);
        }
    }

    /// Records that the node is alive, and sent nothing of the attempt.
    fn record_alive(&self) {
        self.lease.renew();
        let running = TaskState::new(TaskStatus::Running, self.job.attempt);
        self.watch.publish(running);
    }

    /// Records that the node does not answer.
    fn record_silence(&self) {
        self.lease.mark_silent();
        if self.lease.silence() >= UNREACHABLE_AFTER {
            self.watch.publish(TaskState {
                is_unreachable: true,
                ..running_state(self.job)
            });
        }
    }
}

/// Meaning of a failed request.
async fn request_error(
    client: &NodeClient<'_>,
    error: NodeCallError,
    start: Start,
) -> AttemptError {
    // A worker that is alive and has no such call will never report the end.
    if start == Start::Attach && client.lacks_call(&error).await {
        return AttemptError::lost(
            "the connection to its node broke off, and that node has no call to ask for the job",
        );
    }
    AttemptError::of_request(error, start)
}

/// Once a user cancels the job, has the node end the attempt; gives the attempt up when the node reports no end in
/// time, whether it received the call or not.
async fn cancel_on_request(
    state: &AppState,
    job: &RunningJob,
    mut cancellation: watch::Receiver<Cancellation>,
) -> AttemptOutcome {
    let requested = wait::until(&mut cancellation, |request| *request > Cancellation::None);
    if requested.await.is_err() {
        // The job is not registered any more, so no cancel can come.
        return std::future::pending().await;
    }
    let canceled = async {
        let mut backoff = Backoff::new(INITIAL_CANCEL_BACKOFF, MAX_CANCEL_BACKOFF);
        loop {
            let request = *cancellation.borrow_and_update();
            // After a 404, too: the request that runs the job may still be under way. So a failure is no warning.
            if let Err(AttemptError { reason, .. }) = send_cancel(state, job, request).await {
                tracing::debug!(%reason, "node did not cancel the attempt; retrying");
                tokio::time::sleep(backoff.next_delay()).await;
            } else if cancellation.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let limit = cancel_timeout(state, job.task_id).await;
    let _: Result<(), _> = tokio::time::timeout(limit, canceled).await;
    AttemptOutcome::Lost("it was canceled, and its node reported no end".into())
}

/// Time that a node has to end the canceled job of a task, with the grace of its command.
pub(in crate::orchestrator) async fn cancel_timeout(state: &AppState, task: TaskId) -> Duration {
    let sandbox = state.store.task_sandbox(task).await;
    // Where the store can't be read, the end can't be stored, either.
    let grace = sandbox.ok().and_then(|sandbox| sandbox.grace_seconds);
    CANCEL_TIMEOUT + Duration::from_secs(grace.unwrap_or(DEFAULT_GRACE_SECONDS).into())
}

async fn send_cancel(
    state: &AppState,
    job: &RunningJob,
    request: Cancellation,
) -> Result<(), AttemptError> {
    let client = connect(state, job, Start::Attach).await?;
    let is_forced = request == Cancellation::Forced;
    let canceled = client.cancel(job.id, job.attempt, is_forced).await;
    canceled.map_err(|error| AttemptError::transient(error.reason))
}
