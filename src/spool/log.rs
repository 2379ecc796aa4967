//! Format of a job's log on disk: segments of records. The first segment stays; of the others the oldest is deleted
//! when the log is full.
//!
//! A segment begins with a [`SegmentHeader`], which says how much was printed before it, so that a reader who finds the
//! ones before it deleted can tell how much is missing. A record is a letter, a length (u32, little endian) and so many
//! bytes. Records are numbered from the header's `first_seq` on. A record that was written in part doesn't count: its
//! writer is still at it, or was killed.
//!
//! Output is a time in milliseconds (i64, little endian) and a [chunk](OutputChunk::write_to). The release before wrote
//! it as text without a time, under other letters; both may stand in one log, because a shim of either release may be
//! followed by a worker of the other. An event of the proxy is such a time and JSON.

use crate::api::{
    events::{EgressEvent, OutputChunk, Stream},
    time::Time,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 48;
/// Bytes of a record before its content.
pub const RECORD_HEADER_BYTES: usize = 5;
/// Longest content of a record: as the release before wrote it, all of a pipe with every byte replaced.
pub const MAX_CONTENT_BYTES: usize = 4 * 1024 * 1024;

const MAGIC: u64 = u64::from_le_bytes(*b"cynlog 1");

/// Kind of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// Progress of the node before the command runs.
    Status,
    /// The command runs; the content is the time, in milliseconds.
    Started,
    /// The command printed.
    Output(Stream),
    /// The command printed; the content is text, without a time.
    Text(Stream),
    /// The proxy decided, or what it let through has ended.
    Egress,
}

impl RecordKind {
    /// Letter of this kind.
    pub fn letter(self) -> u8 {
        match self {
            Self::Status => b'i',
            Self::Started => b's',
            Self::Output(Stream::Stdout) => b'O',
            Self::Output(Stream::Stderr) => b'E',
            Self::Text(Stream::Stdout) => b'o',
            Self::Text(Stream::Stderr) => b'e',
            Self::Egress => b'n',
        }
    }

    /// Kind of this letter; `None` for an unknown one.
    pub fn of(letter: u8) -> Option<Self> {
        Some(match letter {
            b'i' => Self::Status,
            b's' => Self::Started,
            b'O' => Self::Output(Stream::Stdout),
            b'E' => Self::Output(Stream::Stderr),
            b'o' => Self::Text(Stream::Stdout),
            b'e' => Self::Text(Stream::Stderr),
            b'n' => Self::Egress,
            _ => return None,
        })
    }
}

/// Bytes of the time before a chunk or an event.
const TIME_BYTES: usize = 8;
/// Bytes of a record's content that tell how much of it is output: time, flags.
pub const OUTPUT_PREFIX_BYTES: usize = TIME_BYTES + 1;

/// Content of an output record.
pub fn encode_output(chunk: &OutputChunk, time: Time) -> Vec<u8> {
    let mut content = time.as_millis().to_le_bytes().to_vec();
    chunk.write_to(&mut content);
    content
}

/// Time and chunk of an output record; `None` where the content is not one.
pub fn decode_output(stream: Stream, content: &[u8]) -> Option<(Time, OutputChunk)> {
    let (time, chunk) = content.split_first_chunk::<TIME_BYTES>()?;
    let time = Time::from_millis(i64::from_le_bytes(*time));
    Some((time, OutputChunk::read_from(stream, chunk)?))
}

/// Content of a record of the proxy.
pub fn encode_egress(event: &EgressEvent, time: Time) -> Vec<u8> {
    let mut content = time.as_millis().to_le_bytes().to_vec();
    // Nothing in it can fail to be JSON.
    content.extend(serde_json::to_vec(event).unwrap_or_default());
    content
}

/// Time and event of such a record; `None` where the content is not one.
pub fn decode_egress(content: &[u8]) -> Option<(Time, EgressEvent)> {
    let (time, event) = content.split_first_chunk::<TIME_BYTES>()?;
    let time = Time::from_millis(i64::from_le_bytes(*time));
    Some((time, serde_json::from_slice(event).ok()?))
}

/// Amount of a stream, and the number of its last event.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct StreamTotals {
    /// Bytes.
    pub bytes: u64,
    /// Number of the last event, 0 while there is none.
    pub last_seq: u64,
}

/// Header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Number of its first record.
    pub first_seq: u64,
    /// Totals of stdout and stderr before it.
    pub before: [StreamTotals; 2],
}

impl SegmentHeader {
    /// Bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let [out, err] = self.before;
        let numbers = [
            MAGIC,
            self.first_seq,
            out.bytes,
            out.last_seq,
            err.bytes,
            err.last_seq,
        ];
        let mut bytes = [0; HEADER_BYTES];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Header from bytes; `None` when they are not one.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (numbers, _) = bytes.as_chunks::<8>();
        let number = |n: usize| u64::from_le_bytes(numbers[n]);
        let printed = |n| StreamTotals {
            bytes: number(n),
            last_seq: number(n + 1),
        };
        (number(0) == MAGIC).then(|| Self {
            first_seq: number(1),
            before: [printed(2), printed(4)],
        })
    }
}

/// Path of a segment.
pub fn segment_path(directory: &Path, index: u64) -> PathBuf {
    directory.join(format!("log.{index}"))
}

/// Indexes of all segments, oldest first.
pub fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("log."));
        found.extend(index.and_then(|index| index.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}
