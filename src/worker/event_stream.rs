//! What a reader of a job is told: the events of its log, then its result, as lines of JSON.
//!
//! Each reader goes through the log on disk at their own pace and is woken when there is more; a
//! slow one slows nobody. While nothing happens, an `alive` event now and then shows that the
//! connection is no dead one; who follows only the course of a job gets the first one at once.

use super::ledger::Job;
use crate::{api::events::JobEvent, spool::LogReader};
use bytes::Bytes;
use std::{io, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Text that is read at a time.
const READ_BYTES: usize = 256 * 1024;
/// How long a stream may be silent.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// What a reader wants to be told.
#[derive(Clone, Copy)]
pub(super) struct EventQuery {
    /// Events behind this number.
    pub(super) after: u64,
    /// What the command prints; else only its start and its result.
    pub(super) output: bool,
    /// Of that only what a result keeps.
    pub(super) kept: bool,
    /// What is yet to come; else only what is there.
    pub(super) follow: bool,
}

struct EventStream {
    job: Arc<Job>,
    changed: watch::Receiver<()>,
    query: EventQuery,
    reader: Option<LogReader>,
    /// When it is told that the job is alive, if nothing else is told before.
    keepalive_at: Instant,
}

/// The events that `query` asks for.
pub(super) fn open(
    job: Arc<Job>,
    query: EventQuery,
) -> impl futures_util::Stream<Item = Bytes> + Send {
    let spool = job.spool.path().to_owned();
    let reader = LogReader::open(spool, job.accepted.attempt, query.after);
    let reader = match query.kept {
        true => reader.kept_only(),
        false => reader,
    };
    let reader = match query.follow {
        true => Ok(reader),
        false => reader.until_now(),
    };
    // Who asks only after the course wants to know most of all whether there still is one.
    let first_interval = if query.output {
        KEEPALIVE_INTERVAL
    } else {
        Duration::ZERO
    };
    let stream = EventStream {
        changed: job.subscribe(),
        job,
        query,
        reader: reader.ok(),
        keepalive_at: Instant::now() + first_interval,
    };
    futures_util::stream::unfold(Some(stream), async |stream| stream?.next().await)
}

impl EventStream {
    async fn next(mut self) -> Option<(Bytes, Option<Self>)> {
        loop {
            self.changed.mark_unchanged();
            // In this order: all that was printed is in the log before there is a result.
            let has_ended = self.job.has_ended();
            match self.read().await {
                Ok(events) if events.is_empty() => {}
                Ok(events) => return Some(self.emit(&events)),
                Err(error) => {
                    tracing::error!(job = %self.job.accepted.job_id, %error, "a job's log can't be read");
                    return None;
                }
            }
            if has_ended {
                let result = self.job.read_result().await?;
                // A number past the end will never come.
                return (result.seq > self.query.after)
                    .then(|| (encode(&[JobEvent::Result(Box::new(result))]), None));
            }
            if !self.query.follow {
                return None;
            }
            // From the last line on, also while there is much that isn't asked for.
            let change = tokio::time::timeout_at(self.keepalive_at, self.changed.changed());
            if change.await.is_err() || self.keepalive_at <= Instant::now() {
                return Some(self.emit(&[JobEvent::Alive]));
            }
        }
    }

    fn emit(mut self, events: &[JobEvent]) -> (Bytes, Option<Self>) {
        self.keepalive_at = Instant::now() + KEEPALIVE_INTERVAL;
        (encode(events), Some(self))
    }

    /// Off the runtime's threads: it reads files.
    async fn read(&mut self) -> io::Result<Vec<JobEvent>> {
        let output = self.query.output;
        let mut reader = self.reader.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (reader, events) = tokio::task::spawn_blocking(move || {
            let events = reader.read(READ_BYTES, output);
            (reader, events)
        })
        .await?;
        self.reader = Some(reader);
        events
    }
}

fn encode(events: &[JobEvent]) -> Bytes {
    let mut lines = Vec::new();
    for event in events {
        // Nothing in an event can fail to be JSON.
        if serde_json::to_writer(&mut lines, event).is_ok() {
            lines.push(b'\n');
        }
    }
    lines.into()
}
