//! Part of a log that a request asks for: the same parameters and the same header in every API with logs.

use super::request::Request;
use crate::api::{
    events::{LogPart, OutputEncoding},
    problem::{Problem, ProblemKind},
    tasks::{LogCursor, Since},
    time::Time,
};

/// Comment that keeps an idle stream of events alive.
pub const KEEP_ALIVE: &[u8] = b": still here\n\n";

/// Output that a reader wants.
#[derive(Clone, Copy, Default)]
pub struct LogQuery {
    /// Encoding of the output.
    pub encoding: OutputEncoding,
    /// Part of the output.
    pub part: LogPart,
    /// Whether each line of a document begins with its time.
    pub timestamps: bool,
}

impl LogQuery {
    /// Query of a request. Fails with 400 where a parameter is invalid.
    pub fn of(request: &Request) -> Result<Self, Problem> {
        let since =
            request.query_as::<Since>("since", "a time in RFC 3339, or a duration such as 10m")?;
        let tail = request.query_as("tail", "a number of lines up to 100000")?;
        let timestamps = request.query_as("timestamps", "true or false")?;
        Ok(Self {
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
}

/// Position of a reader that reconnects; the start for others. Fails with 400 on what was never the id of an event.
pub fn last_event_id(request: &Request) -> Result<LogCursor, Problem> {
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
