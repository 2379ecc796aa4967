//! What a job tells while it runs: numbered events, from its node to whoever reads along.
//!
//! Events of an attempt are numbered from 1 as they happen, and keep their numbers for ever: in
//! the log on the node's disk, on the wire, and in what is stored of the job in the end. So a reader
//! who has seen event *n* can go on after it at any of these places, without a gap and without a
//! double. Where something is missing, a [`gap`](JobEvent::Gap) says how much, and bears the
//! number of the last event that it stands for.

mod log;
mod utf8_decoder;

pub use log::{MAX_SEQ, Outline, OutputLog};
pub use utf8_decoder::Utf8Decoder;

use super::jobs::JobResult;
use serde::{Deserialize, Serialize};

/// Bytes of UTF-8 text that a result keeps of each stream.
pub const OUTPUT_LIMIT_BYTES: usize = 256 * 1024;

/// One of a command's two output streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// One line of the Worker API's `application/x-ndjson` answer (contract, section 4).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// What the node does before the command runs, such as fetching its image.
    Status {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the event within the attempt, from 1.
        seq: u64,
        /// For people, one line.
        detail: String,
    },
    /// The command runs.
    Started {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
    },
    /// The command printed on stdout.
    Stdout {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// What was printed; bytes that aren't UTF-8 are replaced by U+FFFD.
        data: String,
    },
    /// The command printed on stderr.
    Stderr {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the event within the attempt.
        seq: u64,
        /// What was printed.
        data: String,
    },
    /// Output that is not kept any more.
    Gap {
        /// Which attempt this is about.
        attempt: u32,
        /// Number of the last event that is missing.
        seq: u64,
        /// Whose output.
        stream: Stream,
        /// How much of it, in bytes of UTF-8.
        bytes: u64,
    },
    /// The job has ended; the last event.
    Result(Box<ResultEvent>),
    /// Nothing has happened for a while, and the connection is no dead one.
    Alive,
    /// Something that a later release may tell.
    #[serde(other)]
    Unknown,
}

impl JobEvent {
    /// What the command printed on `stream`.
    pub fn output(attempt: u32, seq: u64, stream: Stream, data: String) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout { attempt, seq, data },
            Stream::Stderr => Self::Stderr { attempt, seq, data },
        }
    }

    /// Which attempt it is about; `None` where it tells none.
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

    /// Its number; `None` where it has none.
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

/// The last event of a job: its result, numbered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResultEvent {
    /// Number of the event within the attempt.
    pub seq: u64,
    /// How the result's texts came as events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outline: Outline,
    /// The result, its fields beside `event` and `seq`.
    #[serde(flatten)]
    pub result: JobResult,
}
