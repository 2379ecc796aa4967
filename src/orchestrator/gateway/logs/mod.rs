//! What a task prints: all at once, or live as server-sent events.
//!
//! While an attempt runs its node has what it prints, and whoever reads asks for it there; what is
//! kept after its end is in the store. An event's id is its [`LogCursor`], `<attempt>-<seq>`. A reader
//! that comes back with it (`Last-Event-ID`) gets what follows, from the one or the other: the
//! numbers are the same.

mod limits;
mod sse_body;
mod streamer;

use super::{AppState, authenticate, tasks::find_task_for};
use crate::{
    api::{
        TaskId,
        error::ApiError,
        events::{OutputLog, Stream},
        problem::{Problem, ProblemKind},
        tasks::{LogCursor, Task, TaskLogs},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    orchestrator::{
        node_client::{EventSelection, NodeEvents},
        task_watch::{LogSource, TaskState},
    },
};
pub(in crate::orchestrator) use limits::LogLimits;
use sse_body::SseBody;
use std::{str::FromStr, sync::Arc, time::Duration};
use streamer::LogStreamer;
use tokio::time::timeout;

/// How long a node may take to answer, and to send the next piece of what it has.
const NODE_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take for all that there is.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(30);
/// When a node that doesn't answer may be asked again, in seconds.
const NODE_UNREACHABLE_RETRY_SECONDS: u64 = 5;

/// `?stream=`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamFilter {
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

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    // Before anything else, so that no end of the session goes unheard.
    let revocations = state.identity.revocations();
    let caller = authenticate(&state, &request).await?;
    let id = find_task_for(&state, &request, &caller).await?.id;
    let filter = request
        .query_as("stream", "all, stdout or stderr")?
        .unwrap_or(StreamFilter::All);
    let follow = request
        .query_as("follow", "true or false")?
        .unwrap_or(false);
    let place = last_place(&request)?;
    // First the entry, then a look at the store: a task that ends in between is told through the
    // entry, and one that had ended before is in the store.
    let live = state.jobs.watches.for_task(id);
    let task = stored_task(&state, id).await?;
    let user = caller.user.id;
    if follow || request.accepts("text/event-stream") {
        let following = state.log_limits.acquire_follow(user)?;
        let streamer = LogStreamer::new(Arc::clone(&state), id, live, filter, place);
        let reader = SseBody::new(
            |chunks| streamer.run(task.status, chunks),
            state,
            caller,
            revocations,
            following,
        );
        return Ok(response::stream("text/event-stream", reader.chunks()));
    }
    let _turn = state.log_limits.acquire_read(user).await?;
    // After the turn, filter may have been a while.
    let task = stored_task(&state, id).await?;
    let current = *live.subscribe().borrow();
    let log = collect_output(&state, &task, current, filter).await?;
    let of = |stream| {
        if filter.has(stream) {
            log.text(stream).to_owned()
        } else {
            String::new()
        }
    };
    response::ok(&TaskLogs {
        task_id: id,
        stdout: of(Stream::Stdout),
        stderr: of(Stream::Stderr),
        truncated: Some(log.truncated()).filter(|filter| filter.stdout || filter.stderr),
    })
}

/// Where the reader was before, should it say so.
fn last_place(request: &Request) -> Result<LogCursor, Problem> {
    let Some(id) = request.headers().get("last-event-id") else {
        return Ok(LogCursor::default());
    };
    if id.is_empty() {
        return Ok(LogCursor::default());
    }
    let place = id.to_str().ok().and_then(|id| id.parse().ok());
    place.ok_or_else(|| {
        Problem::new(
            ProblemKind::InvalidRequest,
            "header Last-Event-ID: expected the id of an earlier event, or nothing",
        )
    })
}

async fn stored_task(state: &AppState, id: TaskId) -> Result<Task, ApiError> {
    let task = state.store.task_get(id, None).await?;
    Ok(task.ok_or_else(|| Problem::not_found("task"))?)
}

/// What is kept of a task's last attempt, and filter that is.
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

/// What a task has collect_output by now, as much as a result would keep of it.
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
        let asked = timeout(
            COLLECT_TIMEOUT,
            fetch_output(state, source, current.attempt, filter),
        )
        .await;
        match asked.unwrap_or_else(|_| Err("it has much to say, or is slow".to_owned())) {
            Ok(log) => return Ok(log),
            Err(reason) => {
                tracing::debug!(task = %task.id, reason, "a node does not tell what it has of a job");
            }
        }
        // It may have ended meanwhile, and its node have forgotten it.
        if !stored_task(state, task.id).await?.status.is_final() {
            let text = "the node that runs this task does not answer at present; what it collect_output is kept there. \
                        Try again, or follow it (follow=true, --follow), filter waits for the node";
            return Err(Problem::new(ProblemKind::Unavailable, text)
                .retry_after(NODE_UNREACHABLE_RETRY_SECONDS)
                .into());
        }
    }
    Ok(stored_log(state, task.id).await?.1)
}

/// What a node has of a job that runs.
async fn fetch_output(
    state: &AppState,
    source: LogSource,
    attempt: u32,
    filter: StreamFilter,
) -> Result<OutputLog, String> {
    let mut events = ask(state, source, 0, EventSelection::Kept).await?;
    let mut log = OutputLog::default();
    loop {
        let event = timeout(NODE_ANSWER_TIMEOUT, events.next())
            .await
            .map_err(|_| "it stopped in the middle")?
            .map_err(|error| error.to_string())?;
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

/// Asks a node what it has of a job.
async fn ask(
    state: &AppState,
    source: LogSource,
    after: u64,
    wanted: EventSelection,
) -> Result<NodeEvents, String> {
    let node = state
        .store
        .node_get(source.node)
        .await
        .map_err(|error| error.to_string())?
        .ok_or("it was forgotten")?;
    let client = state
        .node_client(&node)
        .ok_or("it has not said where its Worker API is")?;
    timeout(
        NODE_ANSWER_TIMEOUT,
        client.read_events(source.job, source.attempt, after, wanted),
    )
    .await
    .map_err(|_| "it does not answer")?
    .map_err(|error| error.to_string())
}
