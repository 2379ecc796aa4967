//! Writes down what becomes of an attempt: its events, and its result in the end.

use super::{AcceptedJob, LogReader, Spool, log::RecordKind, writer::LogWriter};
use crate::api::{
    PAYLOAD_VERSION,
    events::{OutputLog, ResultEvent, Stream, Utf8Decoder},
    jobs::{Effective, JobError, JobErrorKind, JobResult, Outcome},
    time::Time,
};
use std::io;

/// What is read of a log at a time.
const READ_BYTES: usize = 256 * 1024;

/// Longest word on what went wrong, in bytes; less than an orchestrator believes.
const MAX_MESSAGE_BYTES: usize = 12 * 1024;

/// How an attempt ended, beside what it printed.
#[derive(Clone, Debug)]
pub struct JobEnd {
    /// How.
    pub status: Outcome,
    /// With which code, where its command ended by itself.
    pub exit_code: Option<i32>,
    /// Why, where something else ended it.
    pub error: Option<JobError>,
}

impl JobEnd {
    /// Its command ended with this code.
    pub fn exited(code: i32) -> Self {
        let status = if code == 0 {
            Outcome::Completed
        } else {
            Outcome::Failed
        };
        Self {
            status,
            exit_code: Some(code),
            error: None,
        }
    }

    /// It was ended on purpose.
    pub fn stopped(status: Outcome) -> Self {
        Self {
            status,
            exit_code: None,
            error: None,
        }
    }

    /// Trouble of this kind ended it.
    pub fn failed(kind: JobErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        Self {
            status: Outcome::Failed,
            exit_code: None,
            error: Some(JobError { kind, message }),
        }
    }
}

/// The only writer of an attempt's log; goes on where an earlier one ended.
pub struct JobRecorder {
    accepted: AcceptedJob,
    writer: LogWriter,
    kept: OutputLog,
    decoders: [Utf8Decoder; 2],
    started_at: Option<Time>,
}

impl JobRecorder {
    /// Takes up the log of what was accepted; it keeps the last `limit` bytes.
    pub fn open(spool: &Spool, accepted: AcceptedJob, limit: u64) -> io::Result<Self> {
        let mut kept = OutputLog::default();
        let mut writer = LogWriter::open(spool.path().to_owned(), limit)?;
        let mut reader = LogReader::open(spool.path().to_owned(), accepted.attempt, 0);
        loop {
            // What can't be read any more is no reason not to go on.
            let events = reader.read(READ_BYTES, true).unwrap_or_else(|error| {
                tracing::warn!(job = %accepted.job_id, %error, "a part of a job's log can't be read");
                Vec::new()
            });
            if events.is_empty() {
                break;
            }
            for event in &events {
                kept.append(event);
                writer.replay(event);
            }
        }
        if let Some(position) = reader.position() {
            writer.resume(position)?;
        }
        Ok(Self {
            accepted,
            writer,
            kept,
            decoders: [Utf8Decoder::default(), Utf8Decoder::default()],
            started_at: reader.started_at(),
        })
    }

    /// Something to tell before the command runs.
    pub fn append_status(&mut self, detail: &str) {
        self.kept.skip_event();
        self.writer.append(RecordKind::Status, detail.as_bytes());
    }

    /// The command runs.
    pub fn mark_started(&mut self) {
        let now = Time::now();
        self.started_at = Some(now);
        self.kept.mark_started();
        self.writer
            .append(RecordKind::Started, &now.as_millis().to_le_bytes());
    }

    /// The command printed these bytes.
    pub fn append_output(&mut self, stream: Stream, bytes: &[u8]) {
        let text = self.decoders[stream as usize].decode(bytes);
        self.push(stream, &text);
    }

    /// Cut where the result's limit is, so that each event is kept whole there or not at all.
    fn push(&mut self, stream: Stream, text: &str) {
        let (kept, rest) = text.split_at(self.kept.room_for(stream, text));
        for part in [kept, rest] {
            if !part.is_empty() {
                self.kept.push(stream, part);
                self.writer
                    .append(RecordKind::Output(stream), part.as_bytes());
            }
        }
    }

    /// The result, now that no more output will come.
    pub fn take_result(&mut self, end: JobEnd, effective: Option<Effective>) -> ResultEvent {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = self.decoders[stream as usize].finish();
            self.push(stream, rest);
        }
        self.kept.finish();
        let ended_at = Time::now();
        let result = JobResult {
            version: PAYLOAD_VERSION,
            task_id: self.accepted.task_id,
            job_id: self.accepted.job_id,
            attempt: self.accepted.attempt,
            status: end.status,
            exit_code: end.exit_code,
            stdout: self.kept.text(Stream::Stdout).to_owned(),
            stderr: self.kept.text(Stream::Stderr).to_owned(),
            started_at: self.started_at.unwrap_or(ended_at),
            ended_at,
            truncated: self.kept.truncated(),
            effective,
            error: end.error,
        };
        ResultEvent {
            seq: self.kept.last_seq() + 1,
            outline: self.kept.outline(),
            result,
        }
    }
}
