//! Events of a sandbox that stays: what its commands asked hosts for. What they print is in logs of their own, at its node.

use super::{AppState, LogEvent, LogUpdate, open_stream};
use crate::{
    api::{
        error::ApiError,
        sandboxes::SandboxStatus,
        tasks::{LogCursor, TaskStatus},
    },
    http::log_query::LogQuery,
    identity::Caller,
    orchestrator::sandboxes,
};
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize as _;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::watch;

/// Sends the events of a sandbox from `cursor` on: with `follow` to its end, else those so far. The caller's session ends
/// the stream; `revocations` has to be subscribed before the caller is authenticated.
pub(in crate::orchestrator) async fn sandbox_events(
    state: &Arc<AppState>,
    caller: Caller,
    revocations: watch::Receiver<()>,
    name: String,
    cursor: LogCursor,
    follow: bool,
) -> Result<impl Stream<Item = LogUpdate> + Send + use<>, ApiError> {
    let id = sandboxes::find(state, &caller, name).await?.id;
    let (caller, query) = ((caller, revocations), LogQuery::default());
    let stream = open_stream(state, caller, id, query, cursor, follow);
    let updates = stream.await?.updates();
    Ok(updates.filter_map(async |update| shown(update)))
}

/// Update as a reader of a sandbox gets it: without the states that it goes through, which are those of a task.
fn shown(update: LogUpdate) -> Option<LogUpdate> {
    match update {
        LogUpdate::Event(event) if event.name == "end" => {
            let status = TaskStatus::deserialize(&event.data["status"]);
            let status = status.map_or(SandboxStatus::Ended, sandbox_status);
            let data = json!({ "status": status });
            Some(LogUpdate::Event(LogEvent { data, ..event }))
        }
        LogUpdate::Event(event) if event.name == "status" => {
            let data = json!({ "detail": event.data.get("detail")? });
            Some(LogUpdate::Event(LogEvent { data, ..event }))
        }
        update => Some(update),
    }
}

fn sandbox_status(status: TaskStatus) -> SandboxStatus {
    match status {
        TaskStatus::Queued => SandboxStatus::Queued,
        TaskStatus::Running => SandboxStatus::Running,
        _ => SandboxStatus::Ended,
    }
}
