//! Logs of tasks: as one JSON document, or as server-sent events.

use super::{AppState, authenticate};
use crate::{
    api::{
        problem::{Problem, ProblemKind},
        tasks::LogCursor,
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    orchestrator::logs::{self, LogUpdate, StreamFilter},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::sync::Arc;

/// Comment that keeps an idle connection alive.
const KEEP_ALIVE: &[u8] = b": still here\n\n";

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    // Subscribed before the authentication, so that no end of the session is missed.
    let revocations = state.identity.revocations();
    let caller = authenticate(&state, &request).await?;
    let name: String = request.param("id", "task")?;
    let filter = request
        .query_as("stream", "all, stdout or stderr")?
        .unwrap_or(StreamFilter::All);
    let follow = request.query_as("follow", "true or false")?;
    let cursor = last_event_id(&request)?;
    if follow.unwrap_or(false) || request.accepts("text/event-stream") {
        let follower = logs::follow(&state, caller, revocations, name, filter, cursor).await?;
        let events = follower.updates().map(render);
        return Ok(response::stream("text/event-stream", events));
    }
    response::ok(&logs::collect(&state, &caller, name, filter).await?)
}

fn render(update: LogUpdate) -> Bytes {
    match update {
        LogUpdate::Event(event) => {
            response::sse_event(&event.cursor.to_string(), event.name, &event.data)
        }
        LogUpdate::Idle => Bytes::from_static(KEEP_ALIVE),
    }
}

/// Position of a reader that reconnects; the start for others.
fn last_event_id(request: &Request) -> Result<LogCursor, Problem> {
    let id = request.headers().get("last-event-id");
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return Ok(LogCursor::default());
    };
    let cursor = id.to_str().ok().and_then(|id| id.parse().ok());
    cursor.ok_or_else(|| {
        Problem::new(
            ProblemKind::InvalidRequest,
            "header Last-Event-ID: expected the id of an earlier event, or nothing",
        )
    })
}
