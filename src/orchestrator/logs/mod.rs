//! Use cases of logs: the output of a task, as a whole ([`collect`]) or followed live ([`follow`]).
//!
//! While an attempt runs, its node has the output, and readers get it from there; after its end the store
//! keeps a bounded part. Events are numbered alike in both: the [`LogCursor`] `<attempt>-<seq>` of the last
//! event is enough to go on without a gap or a duplicate.

mod follower;
mod limits;
mod streamer;

pub(super) use follower::{LogFollower, LogUpdate};
pub(super) use limits::LogLimits;
pub(super) use streamer::LogEvent;

use super::{
    AppState,
    node_client::{EventSelection, NodeCallError, NodeEvents},
    task_watch::{LogSource, TaskState},
    tasks,
};
use crate::{
    api::{
        TaskId,
        error::ApiError,
        events::{OutputLog, Stream},
        problem::{Problem, ProblemKind},
        tasks::{LogCursor, Task, TaskLogs},
    },
    errors,
    identity::Caller,
    store::StoreError,
};
use std::{str::FromStr, sync::Arc, time::Duration};
use streamer::LogStreamer;
use tokio::{sync::watch, time::timeout};

/// Longest wait for a node to answer, and for each further event that it has already.
const NODE_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for all output that a node has so far.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds after which a node that does not answer may be asked again.
const NODE_UNREACHABLE_RETRY_SECONDS: u64 = 5;

/// Output streams that a reader wants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamFilter {
    All,
    Only(Stream),
}

impl FromStr for StreamFilter {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "all" => Ok(Self::All),
            "stdout" => Ok(Self::Only(Stream::Stdout)),
            "stderr" => Ok(Self::Only(Stream::Stderr)),
            _ => Err(()),
        }
    }
}

impl StreamFilter {
    fn has(self, stream: Stream) -> bool {
        self == Self::All || self == Self::Only(stream)
    }
}

/// Failure to read the output of a job from its node. It is logged, and never reaches the reader.
#[derive(Debug, thiserror::Error)]
enum NodeLogError {
    #[error("the store could not be read")]
    Store(#[from] StoreError),
    #[error("the node was forgotten")]
    Forgotten,
    #[error("the URL of the node's Worker API is unknown")]
    NoAddress,
    #[error("the node did not answer in time")]
    Timeout,
    #[error("the events of the job could not be read")]
    Call(#[from] NodeCallError),
    #[error("the events of the job ended without its result")]
    NoResult,
    #[error("the node sent events of another attempt")]
    OtherAttempt,
}

/// Collects the output of a task so far, as much as a result would keep of it.
///
/// Fails with 503 while the node that has it does not answer, or too many logs are read at once.
pub(super) async fn collect(
    state: &AppState,
    caller: &Caller,
    name: String,
    filter: StreamFilter,
) -> Result<TaskLogs, ApiError> {
    let id = tasks::find(state, caller, name).await?.id;
    // The watch comes before the look at the store: an end in between shows in the watch.
    let watch = state.jobs.watches.for_task(id);
    let _permit = state.log_limits.acquire_read(caller.user.id).await?;
    let task = stored_task(state, id).await?;
    let current = *watch.subscribe().borrow();
    let log = collect_output(state, &task, current, filter).await?;
    let text = |stream| {
        if filter.has(stream) {
            log.text(stream).to_owned()
        } else {
            String::new()
        }
    };
    Ok(TaskLogs {
        task_id: id,
        stdout: text(Stream::Stdout),
        stderr: text(Stream::Stderr),
        truncated: Some(log.truncated()).filter(|truncated| truncated.stdout || truncated.stderr),
    })
}

/// Follows the output of a task from `cursor` on, to its end. The caller's session ends the stream;
/// `revocations` has to be subscribed before the caller is authenticated, so that no end is missed.
pub(super) async fn follow(
    state: &Arc<AppState>,
    caller: Caller,
    revocations: watch::Receiver<()>,
    name: String,
    filter: StreamFilter,
    cursor: LogCursor,
) -> Result<LogFollower, ApiError> {
    let id = tasks::find(state, &caller, name).await?.id;
    // The watch comes before the look at the store: an end in between shows in the watch.
    let watch = state.jobs.watches.for_task(id);
    let task = stored_task(state, id).await?;
    let permit = state.log_limits.acquire_follow(caller.user.id)?;
    let streamer = LogStreamer::new(Arc::clone(state), id, watch, filter, cursor);
    Ok(LogFollower::new(
        streamer,
        task.status,
        Arc::clone(state),
        caller,
        revocations,
        permit,
    ))
}

async fn stored_task(state: &AppState, id: TaskId) -> Result<Task, ApiError> {
    let task = state.store.task_get(id, None).await?;
    Ok(task.ok_or_else(|| Problem::not_found("task"))?)
}

/// Number and stored output of a task's last attempt.
async fn stored_log(state: &AppState, id: TaskId) -> Result<(u32, OutputLog), ApiError> {
    let jobs = state.store.task_jobs(id).await?;
    let outline = state.store.job_outline(id).await?;
    let Some(job) = jobs.last() else {
        return Ok((0, OutputLog::default()));
    };
    let log = match &job.result_object {
        Some(result) => OutputLog::restore(&outline, &result.stdout, &result.stderr),
        None => OutputLog::default(),
    };
    Ok((job.attempt, log))
}

/// Output of a task so far: from its node while it runs, else from the store.
async fn collect_output(
    state: &AppState,
    task: &Task,
    current: TaskState,
    filter: StreamFilter,
) -> Result<OutputLog, ApiError> {
    if !task.status.is_final() && !current.status.is_final() {
        let Some(source) = current.source else {
            return Ok(OutputLog::default());
        };
        let fetched = fetch_output(state, source, current.attempt, filter);
        let fetched = timeout(COLLECT_TIMEOUT, fetched).await;
        let error = match fetched.unwrap_or(Err(NodeLogError::Timeout)) {
            Ok(log) => return Ok(log),
            Err(NodeLogError::Store(error)) => return Err(error.into()),
            // Any reader of a silent node's output can cause it again and again, so it is no warning.
            Err(error) => errors::chain(&error),
        };
        tracing::debug!(
            error,
            "output of a running task can't be read from its node"
        );
        // The task may have ended meanwhile, and its node have forgotten it.
        if !stored_task(state, task.id).await?.status.is_final() {
            let detail = "the node that runs this task does not answer at present; it keeps the output. \
                          Try again, or follow the log (follow=true, --follow), which waits for the node";
            let problem = Problem::new(ProblemKind::Unavailable, detail);
            return Err(problem.retry_after(NODE_UNREACHABLE_RETRY_SECONDS).into());
        }
    }
    Ok(stored_log(state, task.id).await?.1)
}

/// Output that the node of a running attempt has so far.
async fn fetch_output(
    state: &AppState,
    source: LogSource,
    attempt: u32,
    filter: StreamFilter,
) -> Result<OutputLog, NodeLogError> {
    let mut events = read_events(state, source, 0, EventSelection::Kept).await?;
    let mut log = OutputLog::default();
    loop {
        let event = timeout(NODE_ANSWER_TIMEOUT, events.next()).await;
        let event = event.map_err(|_| NodeLogError::Timeout)??;
        let Some(event) = event else { return Ok(log) };
        if event.attempt() == Some(attempt) {
            log.append(&event);
        }
        let full = log.truncated();
        let is_open = |stream, is_full: bool| filter.has(stream) && !is_full;
        if !is_open(Stream::Stdout, full.stdout) && !is_open(Stream::Stderr, full.stderr) {
            return Ok(log);
        }
    }
}

/// Requests the events of a job from its node, from the one after `after` on.
async fn read_events(
    state: &AppState,
    source: LogSource,
    after: u64,
    selection: EventSelection,
) -> Result<NodeEvents, NodeLogError> {
    let node = state.store.node_get(source.node).await?;
    let node = node.ok_or(NodeLogError::Forgotten)?;
    let client = state.node_client(&node).ok_or(NodeLogError::NoAddress)?;
    let events = client.read_events(source.job, source.attempt, after, selection);
    let events = timeout(NODE_ANSWER_TIMEOUT, events).await;
    Ok(events.map_err(|_| NodeLogError::Timeout)??)
}
