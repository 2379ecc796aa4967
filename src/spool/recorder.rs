//! Recorder of an attempt: its events, and in the end its result.

use super::{
    AcceptedJob, LogReader, Spool,
    log::{RecordKind, encode_egress},
    writer::{LogWriter, record_length},
};
use crate::api::{
    PAYLOAD_VERSION,
    events::{
        EgressEvent, MAX_EGRESS_EVENTS, OutputChunk, OutputLog, RecordContent, ResultEvent, Stream,
        Utf8Decoder, prefix_with_text,
    },
    jobs::{Effective, JobError, JobErrorKind, JobInference, JobResult, Outcome},
    sandboxes::EndReason,
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
    /// Use of a model by the job.
    pub inference: Option<JobInference>,
    /// Reason for which a sandbox that stays ended.
    pub session: Option<EndReason>,
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
            inference: None,
            session: None,
        }
    }

    /// End on request or at the time limit.
    pub fn stopped(status: Outcome) -> Self {
        Self {
            status,
            exit_code: None,
            error: None,
            oom: None,
            inference: None,
            session: None,
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
            inference: None,
            session: None,
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
    /// Events of the proxy in the log.
    egress_events: u64,
}

impl JobRecorder {
    /// Opens the log of a job; it keeps the last `limit` bytes.
    pub fn open(spool: &Spool, accepted: AcceptedJob, limit: u64) -> io::Result<Self> {
        let mut kept = OutputLog::default();
        let mut decoders = [Utf8Decoder::default(), Utf8Decoder::default()];
        let mut writer = LogWriter::open(spool.path().to_owned(), limit)?;
        let mut reader = LogReader::open(spool.path().to_owned(), 0);
        let mut egress_events = 0;
        loop {
            // A part that can't be read keeps no job from its end.
            let records = reader.read(READ_BYTES, true).unwrap_or_else(|error| {
                tracing::warn!(job = %accepted.job_id, %error, "part of a job's log can't be read");
                Vec::new()
            });
            if records.is_empty() {
                break;
            }
            for record in &records {
                kept.append(record);
                writer.replay(record);
                match &record.content {
                    RecordContent::Output(chunk) => {
                        decoders[chunk.stream as usize] = chunk.decoder_behind();
                    }
                    RecordContent::Egress(_) => egress_events += 1,
                    _ => {}
                }
            }
        }
        if let Some(position) = reader.position() {
            writer.resume(position)?;
        }
        Ok(Self {
            accepted,
            writer,
            kept,
            decoders,
            started_at: reader.started_at(),
            egress_events,
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

    /// Appends an event of the proxy, unless there are as many as a log takes; the last says so.
    pub fn append_egress(&mut self, mut event: EgressEvent) {
        if self.egress_events >= MAX_EGRESS_EVENTS {
            return;
        }
        self.egress_events += 1;
        if self.egress_events == MAX_EGRESS_EVENTS {
            event.mark_last();
        }
        self.kept.skip_event();
        let content = encode_egress(&event, Time::now());
        self.writer.append(RecordKind::Egress, &content);
    }

    /// Appends output of the command: bytes at once, so that a reader of bytes waits for none, in records that end
    /// between characters where that is possible.
    pub fn append_output(&mut self, stream: Stream, mut bytes: &[u8]) {
        let time = Time::now();
        while !bytes.is_empty() {
            let (record, rest) = bytes.split_at(self.record_length(stream, bytes));
            self.push(stream, record, false, time);
            bytes = rest;
        }
    }

    /// Number of bytes that make up the next record. A record that crosses the end of the result's head is cut there,
    /// so that a result keeps each event whole or not at all.
    fn record_length(&self, stream: Stream, bytes: &[u8]) -> usize {
        let length = record_length(bytes);
        let room = self.kept.head_room(stream);
        if room == 0 || 3 * length <= room {
            return length;
        }
        let carry = self.decoders[stream as usize].pending();
        let text = [carry, &bytes[..length]].concat();
        let prefix = prefix_with_text(&text, room);
        match prefix.saturating_sub(carry.len()) {
            0 => length,
            prefix => prefix.min(length),
        }
    }

    fn push(&mut self, stream: Stream, bytes: &[u8], is_last: bool, time: Time) {
        let decoder = &mut self.decoders[stream as usize];
        let chunk = OutputChunk {
            stream,
            carry: decoder.pending().to_vec(),
            bytes: bytes.to_vec(),
            is_last,
        };
        let mut text = decoder.decode(bytes);
        if is_last {
            text.push_str(decoder.finish());
        }
        self.kept.push(stream, &text, bytes.len());
        self.writer.append_output(&chunk, time);
    }

    /// Result of the attempt, once no more output can come.
    pub fn take_result(&mut self, end: JobEnd, effective: Option<Effective>) -> ResultEvent {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.decoders[stream as usize].pending().is_empty() {
                self.push(stream, &[], true, Time::now());
            }
        }
        let ended_at = Time::now();
        let result = JobResult {
            version: PAYLOAD_VERSION,
            task_id: self.accepted.task_id,
            job_id: self.accepted.job_id,
            attempt: self.accepted.attempt,
            status: end.status,
            exit_code: end.exit_code,
            stdout: self.kept.text(Stream::Stdout),
            stderr: self.kept.text(Stream::Stderr),
            started_at: self.started_at.unwrap_or(ended_at),
            ended_at,
            truncated: self.kept.truncated(),
            effective,
            error: end.error,
            oom_killed: end.oom.is_some(),
            reason: match end.session {
                Some(reason) => Some(<&str>::from(reason).to_owned()),
                None => end.oom,
            },
            inference: end.inference,
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
