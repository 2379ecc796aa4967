//! Logs of tasks: as one JSON document, or as server-sent events.

use super::{AppState, authenticate};
use crate::{
    api::{
        api_keys::Scope,
        events::LogPart,
        problem::{Problem, ProblemKind},
        tasks::{LogCursor, Since},
        time::Time,
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
    orchestrator::logs::{self, LogQuery, LogUpdate},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::sync::Arc;

/// Comment that keeps an idle connection alive.
const KEEP_ALIVE: &[u8] = b": still here\n\n";

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    // Subscribed before the authentication, so that no end of the session is missed.
    let revocations = state.identity.revocations();
    let caller = authenticate(&state, &request, Access::Scope(Scope::Tasks)).await?;
    let name: String = request.param("id", "task")?;
    let query = log_query(&request)?;
    let follow = request.query_as("follow", "true or false")?;
    let cursor = last_event_id(&request)?;
    let accepts_events = request.accepts("text/event-stream");
    if follow.unwrap_or(false) || accepts_events {
        let follow = follow.unwrap_or(true);
        let stream = logs::stream(&state, caller, revocations, name, query, cursor, follow);
        let events = stream.await?.updates().map(render);
        return Ok(response::stream("text/event-stream", events));
    }
    let document = logs::collect(&state, &caller, name, query).await?;
    Ok(response::stream("application/json", document))
}

fn log_query(request: &Request) -> Result<LogQuery, Problem> {
    let since =
        request.query_as::<Since>("since", "a time in RFC 3339, or a duration such as 10m")?;
    let tail = request.query_as("tail", "a number of lines up to 100000")?;
    let timestamps = request.query_as("timestamps", "true or false")?;
    Ok(LogQuery {
        encoding: request
            .query_as("encoding", "text or base64")?
            .unwrap_or_default(),
        part: LogPart {
            streams: request
                .query_as("stream", "all, stdout or stderr")?
                .unwrap_or_default(),
            since: since.map(|since| since.at(Time::now())),
            tail,
        },
        timestamps: timestamps.unwrap_or(false),
    })
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
