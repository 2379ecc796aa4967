//! Output of execs: as server-sent events, or as one JSON document, in the form of the logs of tasks.

mod document;

use super::{
    exec::exec_id,
    execs::{self, ExecFollower, RECORD_GONE},
    session_long,
};
use crate::{
    api::{
        events::{JobEvent, LogRecord, OutputData, OutputEncoding},
        problem::Problem,
        sandboxes::exec::Exec,
        tasks::LogCursor,
        time::Time,
    },
    http::{
        log_query::{self, KEEP_ALIVE, LogQuery},
        request::Request,
        response::{self, Reply, Response},
    },
    worker::{api::Api, event_stream::EventQuery, ledger::Job, log_part::PartReader},
};
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use std::{io, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Time without an event after which it is sent. Proxies cut connections that are silent for longer.
const IDLE_INTERVAL: Duration = Duration::from_secs(15);

/// Output that a reader wants.
#[derive(Clone, Copy)]
pub(super) struct ExecLogQuery {
    events: EventQuery,
    /// Whether each line of a document begins with its time.
    timestamps: bool,
}

impl ExecLogQuery {
    /// Same query of a reader that waits for events to come.
    pub(super) fn followed(mut self) -> Self {
        self.events.follow = true;
        self
    }
}

pub(super) async fn get(api: Arc<Api>, request: Request) -> Reply {
    let job = session_long(&api, &request).await?;
    answer(job, &request).await
}

pub(super) async fn answer(job: Arc<Job>, request: &Request) -> Reply {
    let mut query = query(request, job.accepted.attempt)?;
    let follow: Option<bool> = request.query_as("follow", "true or false")?;
    let exec = execs::find(&job, exec_id(request)?).await?;
    if follow.unwrap_or(false) || request.accepts("text/event-stream") {
        // A reader of output can come back.
        request.mark_preemptible();
        query.events.follow = follow.unwrap_or(true);
        return Ok(events(job, exec, query));
    }
    let document = document::open(job, exec, query);
    Ok(response::stream("application/json", document))
}

/// Output that a request asks for.
pub(super) fn query(request: &Request, attempt: u32) -> Result<ExecLogQuery, Problem> {
    let LogQuery {
        encoding,
        part,
        timestamps,
    } = LogQuery::of(request)?;
    let cursor = log_query::last_event_id(request)?;
    Ok(ExecLogQuery {
        events: EventQuery {
            // The execs of another attempt are gone, so this is one of the same id that began again.
            after: if cursor.attempt == attempt {
                cursor.seq
            } else {
                0
            },
            output: true,
            follow: false,
            encoding,
            part,
        },
        timestamps,
    })
}

/// Events of an exec: `started`, its output, `warning` before the end of the sandbox, and, once it has ended, `exit`.
pub(super) fn events(job: Arc<Job>, exec: Exec, query: ExecLogQuery) -> Response {
    let follower = ExecFollower::new(job, exec);
    let reader = PartReader::new(follower.spool().path().to_owned(), query.events);
    let stream = EventStream {
        follower,
        reader: Some(reader),
        query: query.events,
        last_seq: query.events.after,
        has_started: query.events.after > 0,
    };
    let chunks = futures_util::stream::unfold(Some(stream), async |stream| stream?.next().await);
    response::stream("text/event-stream", chunks)
}

struct EventStream {
    follower: ExecFollower,
    /// Reader of the log; `None` after an error.
    reader: Option<PartReader>,
    query: EventQuery,
    last_seq: u64,
    /// Whether the reader knows of the start.
    has_started: bool,
}

impl EventStream {
    /// The next events, and the stream behind them; no stream behind the last, and nothing after an error.
    async fn next(mut self) -> Option<(Bytes, Option<Self>)> {
        if !self.has_started {
            self.has_started = true;
            let started = self.event("started", self.follower.exec());
            return Some((started, Some(self)));
        }
        loop {
            let (records, end) = match self.read().await {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let gone = json!({ "detail": RECORD_GONE });
                    return Some((self.event("warning", &gone), None));
                }
                Err(error) => {
                    let exec = self.follower.exec().exec_id;
                    tracing::error!(%exec, %error, "log of an exec unreadable");
                    return None;
                }
            };
            if !records.is_empty() {
                let events = self.render(records);
                if !events.is_empty() {
                    return Some((events, Some(self)));
                }
                continue;
            }
            if let Some(end) = end {
                return Some((self.event("exit", &end), None));
            }
            if !self.query.follow {
                return None;
            }
            if timeout(IDLE_INTERVAL, self.follower.changed())
                .await
                .is_err()
            {
                return Some((Bytes::from_static(KEEP_ALIVE), Some(self)));
            }
        }
    }

    /// The next records of the part that is asked for, none once all were read; and the end of the exec.
    async fn read(&mut self) -> io::Result<(Vec<LogRecord>, Option<Exec>)> {
        let mut reader = self.reader.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let read = self.follower.look(move |_, _| {
            let mut records = Vec::new();
            while records.is_empty() {
                let Some(read) = reader.read()? else { break };
                records = read;
            }
            Ok((reader, records))
        });
        let ((reader, records), end) = read.await?;
        self.reader = Some(reader);
        Ok((records, end))
    }

    fn render(&mut self, records: Vec<LogRecord>) -> Bytes {
        let mut rendered = Vec::new();
        for record in records {
            self.last_seq = record.seq;
            let event = record.into_event(self.follower.attempt(), self.query.encoding);
            let bytes = match event {
                Some(JobEvent::Stdout { data, time, .. }) => {
                    self.event("stdout", &OutputFields { data, time })
                }
                Some(JobEvent::Stderr { data, time, .. }) => {
                    self.event("stderr", &OutputFields { data, time })
                }
                Some(JobEvent::Gap { stream, bytes, .. }) => {
                    self.event("gap", &json!({ "stream": stream, "bytes": bytes }))
                }
                Some(JobEvent::Status { detail, .. }) => {
                    self.event("warning", &json!({ "detail": detail }))
                }
                _ => continue,
            };
            rendered.extend_from_slice(&bytes);
        }
        rendered.into()
    }

    fn event(&self, name: &str, data: &impl Serialize) -> Bytes {
        let cursor = LogCursor {
            attempt: self.follower.attempt(),
            seq: self.last_seq,
        };
        response::sse_event(&cursor.to_string(), name, data)
    }
}

/// Data of an event of output.
#[derive(Serialize)]
struct OutputFields {
    #[serde(flatten)]
    data: OutputData,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Time>,
}

/// Suffix of the fields of a document in an encoding.
fn field_suffix(encoding: OutputEncoding) -> &'static str {
    match encoding {
        OutputEncoding::Text => "",
        OutputEncoding::Base64 => "_base64",
    }
}
