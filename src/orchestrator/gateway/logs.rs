//! Logs of tasks: as one JSON document, or as server-sent events.

use super::{AppState, authenticate};
use crate::{
    api::api_keys::Scope,
    http::{
        log_query::{KEEP_ALIVE, LogQuery, last_event_id},
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
    orchestrator::logs::{self, LogUpdate},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::sync::Arc;

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    // Subscribed before the authentication, so that no end of the session is missed.
    let revocations = state.identity.revocations();
    let caller = authenticate(&state, &request, Access::Scope(Scope::Tasks)).await?;
    let name: String = request.param("id", "task")?;
    let query = LogQuery::of(&request)?;
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

/// Event as it is sent.
pub(super) fn render(update: LogUpdate) -> Bytes {
    match update {
        LogUpdate::Event(event) => {
            response::sse_event(&event.cursor.to_string(), event.name, &event.data)
        }
        LogUpdate::Idle => Bytes::from_static(KEEP_ALIVE),
    }
}
