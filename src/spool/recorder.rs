//! Writes down what becomes of an attempt: its events, and its result in the end.

use super::{Accepted, Reader, Spool, log::Kind, writer::Writer};
use crate::api::{
    PAYLOAD_VERSION,
    events::{Decoder, OutputLog, ResultEvent, Stream},
    jobs::{Effective, JobError, JobErrorKind, JobResult, Outcome},
    time::Time,
};
use std::io;

/// What is read of a log at a time.
const PIECE: usize = 256 * 1024;

/// Longest word on what went wrong, in bytes; less than an orchestrator believes.
const MAX_MESSAGE: usize = 12 * 1024;

/// How an attempt ended, beside what it printed.
#[derive(Clone, Debug)]
pub struct Ending {
    /// How.
    pub status: Outcome,
    /// With which code, where its command ended by itself.
    pub exit_code: Option<i32>,
    /// Why, where something else ended it.
    pub error: Option<JobError>,
}

impl Ending {
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
    pub fn trouble(kind: JobErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self {
            status: Outcome::Failed,
            exit_code: None,
            error: Some(JobError { kind, message }),
        }
    }
}

/// The only writer of an attempt's log; goes on where an earlier one ended.
pub struct Recorder {
    accepted: Accepted,
    writer: Writer,
    kept: OutputLog,
    decoders: [Decoder; 2],
    started_at: Option<Time>,
}

impl Recorder {
    /// Takes up the log of what was accepted; it keeps the last `limit` bytes.
    pub fn open(spool: &Spool, accepted: Accepted, limit: u64) -> io::Result<Self> {
        let mut kept = OutputLog::default();
        let mut writer = Writer::open(spool.path().to_owned(), limit)?;
        let mut reader = Reader::open(spool.path().to_owned(), accepted.attempt, 0);
        loop {
            // What can't be read any more is no reason not to go on.
            let events = reader.read(PIECE, true).unwrap_or_else(|error| {
                tracing::warn!(job = %accepted.job_id, %error, "a part of a job's log can't be read");
                Vec::new()
            });
            if events.is_empty() {
                break;
            }
            for event in &events {
                kept.take(event);
                writer.recall(event);
            }
        }
        if let Some(position) = reader.position() {
            writer.resume(position)?;
        }
        Ok(Self {
            accepted,
            writer,
            kept,
            decoders: [Decoder::default(), Decoder::default()],
            started_at: reader.started_at(),
        })
    }

    /// Something to tell before the command runs.
    pub fn status(&mut self, detail: &str) {
        self.kept.skip();
        self.writer.append(Kind::Status, detail.as_bytes());
    }

    /// The command runs.
    pub fn started(&mut self) {
        let now = Time::now();
        self.started_at = Some(now);
        self.kept.started();
        self.writer
            .append(Kind::Started, &now.as_millis().to_le_bytes());
    }

    /// The command printed these bytes.
    pub fn print(&mut self, stream: Stream, bytes: &[u8]) {
        let text = self.decoders[stream as usize].decode(bytes);
        self.push(stream, &text);
    }

    /// Cut where the result's limit is, so that each event is kept whole there or not at all.
    fn push(&mut self, stream: Stream, text: &str) {
        let (kept, rest) = text.split_at(self.kept.fits(stream, text));
        for part in [kept, rest] {
            if !part.is_empty() {
                self.kept.push(stream, part);
                self.writer.append(Kind::Output(stream), part.as_bytes());
            }
        }
    }

    /// The result, now that no more output will come.
    pub fn finish(&mut self, ending: Ending, effective: Option<Effective>) -> ResultEvent {
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
            status: ending.status,
            exit_code: ending.exit_code,
            stdout: self.kept.text(Stream::Stdout).to_owned(),
            stderr: self.kept.text(Stream::Stderr).to_owned(),
            started_at: self.started_at.unwrap_or(ended_at),
            ended_at,
            truncated: self.kept.truncated(),
            effective,
            error: ending.error,
        };
        ResultEvent {
            seq: self.kept.last_seq() + 1,
            outline: self.kept.outline(),
            result,
        }
    }
}
