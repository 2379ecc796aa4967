//! Output of a task that has ended: the kept log, or, where there is none, the part in the result.

use super::{
    AppState,
    archive::reader::{ArchiveReader, ReadError},
};
use crate::{
    api::{
        TaskId,
        error::ApiError,
        events::{LogPart, LogRecord, LogSelector, OutputLog, TailScan},
        jobs::Truncated,
        tasks::{JobView, LogCursor},
        time::Time,
    },
    errors,
};
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// Notices to readers who get less than the whole log.
const DAMAGED_NOTICE: &str = "the kept log can't be read (the orchestrator's log says why); this is the part of the \
                              output that the result keeps";
const PART_NOTICE: &str =
    "no log is kept of this task (any more); this is the part of the output that the result keeps";
const EVENTS_NOTICE: &str = "no log is kept (any more), so what was asked of hosts is not known; the requests are only counted";

/// Output of the last attempt of a task.
pub(super) struct KeptLog {
    /// Number of the attempt.
    pub(super) attempt: u32,
    /// Streams of which not everything is kept.
    pub(super) truncated: Truncated,
    /// Reason why the reader gets less than was kept, or less than was printed.
    pub(super) notice: Option<&'static str>,
    /// Reason why the reader gets no event of the proxy.
    pub(super) events_notice: Option<&'static str>,
    source: Source,
}

enum Source {
    /// `None` while it is read.
    Archive(Option<ArchiveReader>),
    Result {
        log: Box<OutputLog>,
        selector: LogSelector,
        after: u64,
    },
}

impl KeptLog {
    /// Part of the output after `cursor`.
    pub(super) async fn open(
        state: &Arc<AppState>,
        task: TaskId,
        part: LogPart,
        cursor: LogCursor,
    ) -> Result<Self, ApiError> {
        let jobs = state.store.task_jobs(task).await?;
        let Some(job) = jobs.last() else {
            return Ok(Self::empty());
        };
        let after = match job.attempt == cursor.attempt {
            true => cursor.seq,
            false => 0,
        };
        let (archive, id, attempt) = (Arc::clone(&state.log_archive), job.id, job.attempt);
        let opened = spawn_blocking(move || archive.reader(id, attempt, part, after)).await;
        let damage = match opened.map_err(ApiError::internal)? {
            Ok(Some(reader)) => {
                return Ok(Self {
                    attempt,
                    truncated: reader.truncated,
                    notice: None,
                    events_notice: None,
                    source: Source::Archive(Some(reader)),
                });
            }
            Ok(None) => None,
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(job = %id, error, "kept log can't be read; the result's part is shown");
                Some(DAMAGED_NOTICE)
            }
        };
        let outline = state.store.job_outline(task).await?;
        Ok(Self::of_result(job, &outline, part, after, damage))
    }

    fn empty() -> Self {
        Self {
            attempt: 0,
            truncated: Truncated::default(),
            notice: None,
            events_notice: None,
            source: Source::Archive(None),
        }
    }

    fn of_result(
        job: &JobView,
        outline: &[(u8, u64)],
        part: LogPart,
        after: u64,
        damage: Option<&'static str>,
    ) -> Self {
        let Some(result) = &job.result_object else {
            return Self {
                attempt: job.attempt,
                ..Self::empty()
            };
        };
        let log = if is_before(result.ended_at, part.since) {
            OutputLog::default()
        } else {
            OutputLog::restore(outline, &result.stdout, &result.stderr)
        };
        let truncated = result.truncated;
        let has_more = truncated.stdout || truncated.stderr;
        let part = LogPart {
            tail: part.tail.filter(|_| after == 0),
            ..part
        };
        let selector = match TailScan::new(part) {
            Some(mut scan) => {
                let mut seq = 0;
                while let Some(record) = log.record_after(seq) {
                    seq = record.seq;
                    scan.observe(&record);
                }
                scan.finish()
            }
            None => LogSelector::new(part),
        };
        Self {
            attempt: job.attempt,
            truncated,
            notice: damage.or(has_more.then_some(PART_NOTICE)),
            events_notice: result.has_egress().then_some(EVENTS_NOTICE),
            source: Source::Result {
                log: Box::new(log),
                selector,
                after,
            },
        }
    }

    /// The next records; none at the end.
    pub(super) async fn read(&mut self) -> Result<Vec<LogRecord>, ReadError> {
        match &mut self.source {
            Source::Archive(reader) => {
                let Some(mut open) = reader.take() else {
                    return Ok(Vec::new());
                };
                let read = spawn_blocking(move || open.read().map(|records| (open, records)));
                let (open, records) = read.await.map_err(std::io::Error::from)??;
                *reader = Some(open);
                Ok(records)
            }
            Source::Result {
                log,
                selector,
                after,
            } => {
                while let Some(record) = log.record_after(*after) {
                    *after = record.seq;
                    if let Some(record) = selector.select(record) {
                        return Ok(vec![record]);
                    }
                }
                Ok(Vec::new())
            }
        }
    }
}

/// Whether a time lies before the earliest that is wanted.
fn is_before(time: Time, since: Option<Time>) -> bool {
    since.is_some_and(|since| time < since)
}
