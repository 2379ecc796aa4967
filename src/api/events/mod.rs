//! Events of a running job (contract, section 4).
//!
//! Events of an attempt are numbered from 1 and keep their numbers: in the log on the node's disk, on the wire,
//! and in the stored result. A reader that has seen event *n* can therefore resume after it from any of these,
//! without gap or duplicate. Where output is missing, a [`gap`](JobEvent::Gap) says how much, and has the number
//! of the last event that it replaces. Text and bytes of the same output have the same numbers; see [`LogRecord`].

mod egress;
mod frames;
mod json_text;
mod log;
mod record;
mod selection;
mod utf8_decoder;

pub use egress::{EgressEvent, EgressVerdict, MAX_EGRESS_EVENTS};
pub use frames::{FrameDecoder, InvalidLog, LOG_MEDIA_TYPE, write_end, write_record, write_start};
pub use json_text::JsonText;
pub use log::{MAX_SEQ, Outline, OutputLog, omission_line};
pub use record::{
    LogRecord, OutputChunk, RECORD_OUTPUT_BYTES, RecordContent, incomplete_tail, prefix_with_text,
};
pub use selection::{LogPart, LogSelector, MAX_TAIL_LINES, StreamFilter, TailLines, TailScan};
pub use utf8_decoder::Utf8Decoder;

use super::{jobs::JobResult, string_form::named_enum, time::Time};
use serde::{Deserialize, Serialize};

/// Limit on the output that a result keeps of each stream, in bytes of UTF-8.
pub const OUTPUT_LIMIT_BYTES: usize = 256 * 1024;
/// Part of that limit for the beginning of a longer stream; the rest is for its end.
pub const HEAD_LIMIT_BYTES: usize = 64 * 1024;

named_enum! {
    /// Encoding of output for a reader.
    #[derive(Default)]
    pub enum OutputEncoding {
        /// Text; bytes that are not UTF-8 are replaced by U+FFFD.
        #[default]
        Text,
        /// Bytes as they are, in base64.
        Base64,
    }
}

/// Output in the encoding that a reader asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OutputData {
    /// Text.
    #[serde(rename = "data")]
    Text(String),
    /// Bytes in base64, with padding.
    #[serde(rename = "data_base64")]
    Base64(String),
}

/// Output stream of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// Event of a job; a line of the Worker API's `application/x-ndjson` answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// Step before the start of the command, such as the pull of its image.
    Status {
        /// Attempt of the job.
        attempt: u32,
        /// Number of the event within the attempt, from 1.
        seq: u64,
        /// Description in one line.
        detail: String,
    },
    /// Start of the command.
    Started {
        /// Attempt of the job.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
    },
    /// Output on stdout.
    Stdout {
        /// Attempt of the job.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// Output: `data`, text in which bytes that are not UTF-8 are replaced by U+FFFD, or `data_base64`, bytes.
        #[serde(flatten)]
        data: OutputData,
        /// Time at the node; unknown for output that an earlier release recorded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<Time>,
    },
    /// Output on stderr.
    Stderr {
        /// Attempt of the job.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// Output, as for stdout.
        #[serde(flatten)]
        data: OutputData,
        /// Time at the node; unknown for output that an earlier release recorded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<Time>,
    },
    /// Output that is not kept.
    Gap {
        /// Attempt of the job.
        attempt: u32,
        /// Number of the last event that is missing.
        seq: u64,
        /// Stream of the output.
        stream: Stream,
        /// Size of the missing output, in bytes.
        bytes: u64,
    },
    /// Decision of the proxy through which the job reaches hosts, or the end of what was let through.
    Egress {
        /// Attempt of the job.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// Time at the node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<Time>,
        /// What happened, in fields beside these.
        #[serde(flatten)]
        egress: EgressEvent,
    },
    /// End of the job; the last event.
    Result(Box<ResultEvent>),
    /// Keep-alive while nothing else happens.
    Alive,
    /// Event of a later release.
    #[serde(other)]
    Unknown,
}

impl JobEvent {
    /// Output event of a stream.
    pub fn output(
        attempt: u32,
        seq: u64,
        stream: Stream,
        data: OutputData,
        time: Option<Time>,
    ) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout {
                attempt,
                seq,
                data,
                time,
            },
            Stream::Stderr => Self::Stderr {
                attempt,
                seq,
                data,
                time,
            },
        }
    }

    /// Attempt of the job; `None` where the event has none.
    pub fn attempt(&self) -> Option<u32> {
        match self {
            Self::Status { attempt, .. }
            | Self::Started { attempt, .. }
            | Self::Stdout { attempt, .. }
            | Self::Stderr { attempt, .. }
            | Self::Gap { attempt, .. }
            | Self::Egress { attempt, .. } => Some(*attempt),
            Self::Result(last) => Some(last.result.attempt),
            Self::Alive | Self::Unknown => None,
        }
    }

    /// Number of the event; `None` where it has none.
    pub fn seq(&self) -> Option<u64> {
        match self {
            Self::Status { seq, .. }
            | Self::Started { seq, .. }
            | Self::Stdout { seq, .. }
            | Self::Stderr { seq, .. }
            | Self::Gap { seq, .. }
            | Self::Egress { seq, .. } => Some(*seq),
            Self::Result(last) => Some(last.seq),
            Self::Alive | Self::Unknown => None,
        }
    }
}

/// Last event of a job: its result, with a number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResultEvent {
    /// Number of the event within the attempt.
    pub seq: u64,
    /// Events that the texts of the result consist of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outline: Outline,
    /// Result, whose fields stand beside `event` and `seq`.
    #[serde(flatten)]
    pub result: JobResult,
}
