//! What a reader of a job is told: the events of its log, then its result, as lines of JSON.
//!
//! Each reader goes through the log on disk at their own pace and is woken when there is more; a
//! slow one slows nobody. While nothing happens, an `alive` event now and then shows that the
//! connection is no dead one; who follows only the course of a job gets the first one at once.

use super::ledger::Job;
use crate::{api::events::JobEvent, spool::Reader};
use bytes::Bytes;
use std::{io, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Text that is read at a time.
const PIECE: usize = 256 * 1024;
/// How long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(5);

/// What a reader wants to be told.
#[derive(Clone, Copy)]
pub(super) struct Telling {
    /// Events behind this number.
    pub(super) after: u64,
    /// What the command prints; else only its start and its result.
    pub(super) output: bool,
    /// Of that only what a result keeps.
    pub(super) kept: bool,
    /// What is yet to come; else only what is there.
    pub(super) follow: bool,
}

struct Listener {
    job: Arc<Job>,
    news: watch::Receiver<()>,
    telling: Telling,
    reader: Option<Reader>,
    /// When it is told that the job is alive, if nothing else is told before.
    alive_at: Instant,
}

/// The events that `telling` asks for.
pub(super) fn lines(
    job: Arc<Job>,
    telling: Telling,
) -> impl futures_util::Stream<Item = Bytes> + Send {
    let spool = job.spool.path().to_owned();
    let reader = Reader::open(spool, job.accepted.attempt, telling.after);
    let reader = match telling.kept {
        true => reader.only_kept(),
        false => reader,
    };
    let reader = match telling.follow {
        true => Ok(reader),
        false => reader.up_to_now(),
    };
    // Who asks only after the course wants to know most of all whether there still is one.
    let first_silence = if telling.output {
        SILENCE
    } else {
        Duration::ZERO
    };
    let listener = Listener {
        news: job.news(),
        job,
        telling,
        reader: reader.ok(),
        alive_at: Instant::now() + first_silence,
    };
    futures_util::stream::unfold(Some(listener), async |listener| listener?.next().await)
}

impl Listener {
    async fn next(mut self) -> Option<(Bytes, Option<Self>)> {
        loop {
            self.news.mark_unchanged();
            // In this order: all that was printed is in the log before there is a result.
            let has_ended = self.job.has_ended();
            match self.read().await {
                Ok(events) if events.is_empty() => {}
                Ok(events) => return Some(self.told(&events)),
                Err(error) => {
                    tracing::error!(job = %self.job.accepted.job_id, %error, "a job's log can't be read");
                    return None;
                }
            }
            if has_ended {
                let result = self.job.result().await?;
                // A number past the end will never come.
                return (result.seq > self.telling.after)
                    .then(|| (encode(&[JobEvent::Result(Box::new(result))]), None));
            }
            if !self.telling.follow {
                return None;
            }
            // From the last line on, also while there is much that isn't asked for.
            let silence = tokio::time::timeout_at(self.alive_at, self.news.changed());
            if silence.await.is_err() || self.alive_at <= Instant::now() {
                return Some(self.told(&[JobEvent::Alive]));
            }
        }
    }

    fn told(mut self, events: &[JobEvent]) -> (Bytes, Option<Self>) {
        self.alive_at = Instant::now() + SILENCE;
        (encode(events), Some(self))
    }

    /// Off the runtime's threads: it reads files.
    async fn read(&mut self) -> io::Result<Vec<JobEvent>> {
        let output = self.telling.output;
        let mut reader = self.reader.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (reader, events) = tokio::task::spawn_blocking(move || {
            let events = reader.read(PIECE, output);
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
