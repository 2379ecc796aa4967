//! Handlers of the Worker API about the output of jobs: events as lines of JSON, and the whole log as bytes.

use super::{
    api::Api,
    event_stream::{self, EventQuery},
    ledger::Job,
    log_part,
};
use crate::{
    api::{
        events::{LOG_MEDIA_TYPE, LogPart},
        problem::Problem,
    },
    http::{
        budget::Account,
        request::Request,
        response::{self, Reply},
    },
};
use futures_util::StreamExt as _;
use std::sync::Arc;

/// Valid numbers of lines.
const TAIL_EXPECTED: &str = "a number of lines up to 100000";

/// The whole log of a job as bytes, for the orchestrator to keep.
pub(super) async fn get(api: Arc<Api>, request: Request) -> Reply {
    let job = api.job(&request).await?;
    request.authorize(Account::SoleClient)?;
    let frames = log_part::frames(job.spool.path().to_owned(), job.accepted.attempt);
    // The job, and with it the directory, stays until the log was sent.
    let frames = frames.map(move |bytes| (bytes, Arc::clone(&job)).0);
    Ok(response::stream(LOG_MEDIA_TYPE, frames))
}

/// Selection of events that a request asks for.
pub(super) fn event_query(request: &Request) -> Result<EventQuery, Problem> {
    let flag = |name: &str, default| {
        let flag = request.query_as(name, "true or false")?;
        Ok::<bool, Problem>(flag.unwrap_or(default))
    };
    Ok(EventQuery {
        after: request
            .query_as("after", "the number of an event")?
            .unwrap_or(0),
        output: flag("output", true)?,
        follow: flag("follow", true)?,
        encoding: request
            .query_as("encoding", "text or base64")?
            .unwrap_or_default(),
        part: LogPart {
            streams: request
                .query_as("stream", "all, stdout or stderr")?
                .unwrap_or_default(),
            since: request.query_as("since", "a time in RFC 3339")?,
            tail: request.query_as("tail", TAIL_EXPECTED)?,
        },
    })
}

/// Stream of a job's events.
pub(super) fn stream(job: Arc<Job>, query: EventQuery) -> Reply {
    Ok(response::stream(
        "application/x-ndjson",
        event_stream::open(job, query),
    ))
}
