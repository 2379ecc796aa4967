//! Event stream of a job: the events of its log, then its result, as lines of JSON.
//!
//! Each stream reads the log on disk at its own pace and is woken when there is more; a
//! slow reader delays no other. While nothing happens, an `alive` event now and then shows that the
//! connection works; a stream without output gets the first one at once.

use super::{ledger::Job, log_part::PartReader};
use crate::api::events::{JobEvent, LogPart, OutputEncoding};
use bytes::Bytes;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// Longest time without an event.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Events that a caller wants.
#[derive(Clone, Copy)]
pub(super) struct EventQuery {
    /// Number of the last event that the caller has.
    pub(super) after: u64,
    /// Whether to send the output, too; else only start and result.
    pub(super) output: bool,
    /// Whether to wait for events to come; else only those that are there.
    pub(super) follow: bool,
    /// Encoding of the output.
    pub(super) encoding: OutputEncoding,
    /// Part of the output.
    pub(super) part: LogPart,
}

struct EventStream {
    job: Arc<Job>,
    changed: watch::Receiver<()>,
    query: EventQuery,
    /// Reader of the log; `None` after an error.
    reader: Option<PartReader>,
    /// Time of the next `alive` event, unless there is another event before.
    keepalive_at: Instant,
}

/// Opens the stream of the events of a query.
pub(super) fn open(
    job: Arc<Job>,
    query: EventQuery,
) -> impl futures_util::Stream<Item = Bytes> + Send {
    let spool = job.spool.path().to_owned();
    // A caller that wants no output wants to know, most of all, whether the job is still there.
    let first_interval = if query.output {
        KEEPALIVE_INTERVAL
    } else {
        Duration::ZERO
    };
    let stream = EventStream {
        changed: job.subscribe(),
        reader: Some(PartReader::new(spool, query)),
        job,
        query,
        keepalive_at: Instant::now() + first_interval,
    };
    futures_util::stream::unfold(Some(stream), async |stream| stream?.next().await)
}

impl EventStream {
    /// The next lines, and the stream behind them; `None` behind the result, and after an error.
    async fn next(mut self) -> Option<(Bytes, Option<Self>)> {
        loop {
            self.changed.mark_unchanged();
            // In this order: all output is in the log before there is a result.
            let has_ended = self.job.has_ended();
            match self.read().await {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => return Some(self.emit(lines)),
                Err(error) => {
                    tracing::error!(job = %self.job.accepted.job_id, %error, "log of a job unreadable");
                    return None;
                }
            }
            if has_ended {
                let result = self.job.read_result().await?;
                // A caller may name a number past the end.
                return (result.seq > self.query.after)
                    .then(|| (encode([JobEvent::Result(Box::new(result))]).into(), None));
            }
            if !self.query.follow {
                return None;
            }
            // Counted from the last line, also while there is much output that the caller does not want.
            let change = timeout_at(self.keepalive_at, self.changed.changed());
            if change.await.is_err() || self.keepalive_at <= Instant::now() {
                return Some(self.emit(encode([JobEvent::Alive])));
            }
        }
    }

    fn emit(mut self, lines: Vec<u8>) -> (Bytes, Option<Self>) {
        self.keepalive_at = Instant::now() + KEEPALIVE_INTERVAL;
        (lines.into(), Some(self))
    }

    /// Lines of the events that are in the log and were not read yet; none when there are none.
    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let (attempt, encoding) = (self.job.accepted.attempt, self.query.encoding);
        let mut reader = self.reader.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (reader, lines) = spawn_blocking(move || {
            let mut lines = Vec::new();
            while lines.is_empty() {
                let Some(records) = reader.read()? else { break };
                let events = records.into_iter();
                let events = events.filter_map(|record| record.into_event(attempt, encoding));
                lines = encode(events);
            }
            io::Result::Ok((reader, lines))
        })
        .await??;
        self.reader = Some(reader);
        Ok(lines)
    }
}

fn encode(events: impl IntoIterator<Item = JobEvent>) -> Vec<u8> {
    let mut lines = Vec::new();
    for event in events {
        // Nothing in an event can fail to be JSON.
        if serde_json::to_writer(&mut lines, &event).is_ok() {
            lines.push(b'\n');
        }
    }
    lines
}
