//! Recorder of an attempt: its events, and in the end its result.

use super::{AcceptedJob, LogReader, Spool, log::RecordKind, writer::LogWriter};
use crate::api::{
    PAYLOAD_VERSION,
    events::{OutputLog, ResultEvent, Stream, Utf8Decoder},
    jobs::{Effective, JobError, JobErrorKind, JobResult, Outcome},
    time::Time,
};
use std::io;

/// Bytes that are read of a log at a time.
const READ_BYTES: usize = 256 * 1024;

/// Longest error message, in bytes; less than an orchestrator accepts.
const MAX_MESSAGE_BYTES: usize = 12 * 1024;

/// End of an attempt, without its output.
#[derive(Clone, Debug)]
pub struct JobEnd {
    /// Outcome.
    pub status: Outcome,
    /// Exit code, where the command ended by itself.
    pub exit_code: Option<i32>,
    /// Error, where something else ended it.
    pub error: Option<JobError>,
    /// Explanation, where the kernel killed a process of the sandbox for want of memory.
    pub oom: Option<String>,
}

impl JobEnd {
    /// End of a command with this code.
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
            oom: None,
        }
    }

    /// End on request or at the time limit.
    pub fn stopped(status: Outcome) -> Self {
        Self {
            status,
            exit_code: None,
            error: None,
            oom: None,
        }
    }

    /// End by an error.
    pub fn failed(kind: JobErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        Self {
            status: Outcome::Failed,
            exit_code: None,
            error: Some(JobError { kind, message }),
            oom: None,
        }
    }
}

/// The only writer of an attempt's log. Continues where an earlier one ended.
pub struct JobRecorder {
    accepted: AcceptedJob,
    writer: LogWriter,
    kept: OutputLog,
    decoders: [Utf8Decoder; 2],
    started_at: Option<Time>,
}

impl JobRecorder {
    /// Opens the log of a job; it keeps the last `limit` bytes.
    pub fn open(spool: &Spool, accepted: AcceptedJob, limit: u64) -> io::Result<Self> {
        let mut kept = OutputLog::default();
        let mut writer = LogWriter::open(spool.path().to_owned(), limit)?;
        let mut reader = LogReader::open(spool.path().to_owned(), accepted.attempt, 0);
        loop {
            // A part that can't be read keeps no job from its end.
            let events = reader.read(READ_BYTES, true).unwrap_or_else(|error| {
                tracing::warn!(job = %accepted.job_id, %error, "part of a job's log can't be read");
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

    /// Appends the progress of what is done before the command runs.
    pub fn append_status(&mut self, detail: &str) {
        self.kept.skip_event();
        self.writer.append(RecordKind::Status, detail.as_bytes());
    }

    /// Records that the command runs.
    pub fn mark_started(&mut self) {
        let now = Time::now();
        self.started_at = Some(now);
        self.kept.mark_started();
        self.writer
            .append(RecordKind::Started, &now.as_millis().to_le_bytes());
    }

    /// Appends output of the command.
    pub fn append_output(&mut self, stream: Stream, bytes: &[u8]) {
        let text = self.decoders[stream as usize].decode(bytes);
        self.push(stream, &text);
    }

    /// Appends text, cut at the result's limit, so that a result keeps each event whole or not at all.
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

    /// Result of the attempt, once no more output can come.
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
            oom_killed: end.oom.is_some(),
            reason: end.oom,
            artifacts: Vec::new(),
            artifacts_skipped: None,
        };
        ResultEvent {
            seq: self.kept.last_seq() + 1,
            outline: self.kept.outline(),
            result,
        }
    }
}
