//! Events of a running job (contract, section 4).
//!
//! Events of an attempt are numbered from 1 and keep their numbers: in the log on the node's disk, on the wire,
//! and in the stored result. A reader that has seen event *n* can therefore resume after it from any of these,
//! without gap or duplicate. Where output is missing, a [`gap`](JobEvent::Gap) says how much, and has the number
//! of the last event that it replaces.

mod log;
mod utf8_decoder;

pub use log::{MAX_SEQ, Outline, OutputLog};
pub use utf8_decoder::Utf8Decoder;

use super::jobs::JobResult;
use serde::{Deserialize, Serialize};

/// Limit on the output that a result keeps of each stream, in bytes of UTF-8.
pub const OUTPUT_LIMIT_BYTES: usize = 256 * 1024;

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
        /// Output; bytes that are not UTF-8 are replaced by U+FFFD.
        data: String,
    },
    /// Output on stderr.
    Stderr {
        /// Attempt of the job.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// Output, as for stdout.
        data: String,
    },
    /// Output that is not kept.
    Gap {
        /// Attempt of the job.
        attempt: u32,
        /// Number of the last event that is missing.
        seq: u64,
        /// Stream of the output.
        stream: Stream,
        /// Size of the missing output, in bytes of UTF-8.
        bytes: u64,
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
    pub fn output(attempt: u32, seq: u64, stream: Stream, data: String) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout { attempt, seq, data },
            Stream::Stderr => Self::Stderr { attempt, seq, data },
        }
    }

    /// Attempt of the job; `None` where the event has none.
    pub fn attempt(&self) -> Option<u32> {
        match self {
            Self::Status { attempt, .. }
            | Self::Started { attempt, .. }
            | Self::Stdout { attempt, .. }
            | Self::Stderr { attempt, .. }
            | Self::Gap { attempt, .. } => Some(*attempt),
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
            | Self::Gap { seq, .. } => Some(*seq),
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
