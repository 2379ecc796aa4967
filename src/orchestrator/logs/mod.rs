//! Use cases of logs: the output of a task, as a document ([`collect`]) or as events ([`stream`]); and the
//! [events of a sandbox](sandbox_events) that stays.
//!
//! While an attempt runs, its node has the output, and readers get it from there; after its end it is in the
//! [`archive`], and the store keeps a bounded part with the result. Events are numbered alike in all three, as text and as
//! bytes: the [`LogCursor`] `<attempt>-<seq>` of the last event is enough to go on without a gap or a duplicate.

pub(super) mod archive;
mod document;
mod follower;
mod kept;
mod limits;
mod sandbox_events;
mod streamer;

pub(super) use follower::{LogFollower, LogUpdate};
pub(super) use limits::LogLimits;
pub(super) use sandbox_events::sandbox_events;
pub(super) use streamer::LogEvent;

use super::{
    AppState,
    node_client::{EventSelection, NodeCallError, NodeEvents},
    task_watch::LogSource,
    tasks,
};
use crate::{
    api::{
        TaskId,
        error::ApiError,
        problem::{Problem, ProblemKind},
        tasks::{LogCursor, Task},
    },
    http::log_query::LogQuery,
    identity::Caller,
    store::StoreError,
};
use bytes::Bytes;
use document::Document;
use std::{sync::Arc, time::Duration};
use streamer::LogStreamer;
use tokio::{sync::watch, time::timeout};

/// Longest wait for a node to answer, and for each further event that it has already.
const NODE_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the next part of the output of a document.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds after which a node that does not answer may be asked again.
const NODE_UNREACHABLE_RETRY_SECONDS: u64 = 5;

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

/// Collects the output of a task so far into a document.
///
/// Fails with 503 while the node that has it does not answer, or too many logs are read at once.
pub(super) async fn collect(
    state: &Arc<AppState>,
    caller: &Caller,
    name: String,
    query: LogQuery,
) -> Result<impl futures_util::Stream<Item = Bytes> + Send + use<>, ApiError> {
    let id = tasks::find(state, caller, name).await?.id;
    // The watch comes before the look at the store: an end in between shows in the watch.
    let watch = state.jobs.watches.for_task(id);
    let permit = state.log_limits.acquire_read(caller.user.id).await?;
    let task = stored_task(state, id).await?;
    let mut current = *watch.subscribe().borrow();
    if task.status.is_final() {
        current.status = task.status;
    }
    Document::new(state, id, current, query, permit)
        .start()
        .await
}

/// Sends the output of a task from `cursor` on as events: with `follow` to its end, else what there is. The caller's
/// session ends the stream; `revocations` has to be subscribed before the caller is authenticated, so that no end is
/// missed.
pub(super) async fn stream(
    state: &Arc<AppState>,
    caller: Caller,
    revocations: watch::Receiver<()>,
    name: String,
    query: LogQuery,
    cursor: LogCursor,
    follow: bool,
) -> Result<LogFollower, ApiError> {
    let id = tasks::find(state, &caller, name).await?.id;
    open_stream(state, (caller, revocations), id, query, cursor, follow).await
}

/// Sends the log of a task or of a sandbox on as events, to a caller who may read it.
async fn open_stream(
    state: &Arc<AppState>,
    (caller, revocations): (Caller, watch::Receiver<()>),
    id: TaskId,
    query: LogQuery,
    cursor: LogCursor,
    follow: bool,
) -> Result<LogFollower, ApiError> {
    // The watch comes before the look at the store: an end in between shows in the watch.
    let watch = state.jobs.watches.for_task(id);
    let task = stored_task(state, id).await?;
    let permit = state.log_limits.acquire_follow(caller.user.id)?;
    let mut streamer = LogStreamer::new(Arc::clone(state), id, watch, query, cursor);
    if !follow && !task.status.is_final() {
        streamer.open_snapshot().await?;
    }
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
    Ok(task.ok_or_else(|| Problem::unknown_task(&id.to_string()))?)
}

/// Refusal of a reader who does not wait for a node that does not answer.
fn unreachable_node() -> Problem {
    let detail = "the node that has this log does not answer at present, and keeps it. Try again, or follow the log \
                  (follow=true, --follow), which waits for the node";
    Problem::new(ProblemKind::Unavailable, detail).retry_after(NODE_UNREACHABLE_RETRY_SECONDS)
}

/// Requests the events of a job from its node, from the one after `after` on.
async fn open_events(
    state: &AppState,
    source: LogSource,
    after: u64,
    follow: bool,
    query: &LogQuery,
) -> Result<NodeEvents, NodeLogError> {
    let node = state.store.node_get(source.node).await?;
    let node = node.ok_or(NodeLogError::Forgotten)?;
    let client = state.node_client(&node).ok_or(NodeLogError::NoAddress)?;
    let selection = EventSelection::Output {
        follow,
        encoding: query.encoding,
        part: query.part,
    };
    let events = client.read_events(source.job, source.attempt, after, selection);
    let events = timeout(NODE_ANSWER_TIMEOUT, events).await;
    Ok(events.map_err(|_| NodeLogError::Timeout)??)
}
