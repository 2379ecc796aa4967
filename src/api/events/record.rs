//! Records of a job's log: output as the command printed it, byte for byte, with a number and a time.
//!
//! A record is the unit of everything that a reader can ask for: each is one event with one number, whether the reader
//! wants text or bytes, so that a position in a log means the same in both. A character whose bytes come in two records
//! belongs to the text of the second one, which carries the bytes before ([`OutputChunk::carry`]). So each record can be
//! decoded alone, and a reader can begin at any of them.

use super::{EgressEvent, JobEvent, OutputData, OutputEncoding, Stream, Utf8Decoder};
use crate::api::time::Time;
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Most bytes of output in one record of ours.
pub const RECORD_OUTPUT_BYTES: usize = 16 * 1024;
/// Longest beginning of a character that is not complete.
const MAX_CARRY_BYTES: usize = 3;
/// Flag of a chunk behind which its stream ends.
const LAST_FLAG: u8 = 4;

/// Record of a job's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecord {
    /// Number of the record within its attempt, from 1.
    pub seq: u64,
    /// Time at the node; unknown for output that an earlier release recorded.
    pub time: Option<Time>,
    /// Content.
    pub content: RecordContent,
}

/// Content of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordContent {
    /// Progress of the node before the command runs, in one line.
    Status(String),
    /// The command runs.
    Started,
    /// The command printed.
    Output(OutputChunk),
    /// Output that is not kept; the record has the number of the last one that is missing.
    Gap {
        /// Stream of the output.
        stream: Stream,
        /// Size of the missing output, in bytes.
        bytes: u64,
    },
    /// The proxy decided, or what it let through has ended.
    Egress(EgressEvent),
}

/// Piece of output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputChunk {
    /// Stream of the output.
    pub stream: Stream,
    /// Bytes before this chunk that begin a character which it completes.
    pub carry: Vec<u8>,
    /// Bytes as the command printed them.
    pub bytes: Vec<u8>,
    /// Whether the stream ends behind this chunk, so that an incomplete character is a broken one.
    pub is_last: bool,
}

impl LogRecord {
    /// Event of this record for a reader that wants the output in an encoding; `None` where it has none, as a record
    /// that only begins a character has no text.
    pub fn into_event(self, attempt: u32, encoding: OutputEncoding) -> Option<JobEvent> {
        let Self { seq, time, content } = self;
        Some(match content {
            RecordContent::Status(detail) => JobEvent::Status {
                attempt,
                seq,
                detail,
            },
            RecordContent::Started => JobEvent::Started { attempt, seq },
            RecordContent::Gap { stream, bytes } => JobEvent::Gap {
                attempt,
                seq,
                stream,
                bytes,
            },
            RecordContent::Egress(egress) => JobEvent::Egress {
                attempt,
                seq,
                time,
                egress,
            },
            RecordContent::Output(chunk) => {
                let data = chunk.encode_for_reader(encoding)?;
                JobEvent::output(attempt, seq, chunk.stream, data, time)
            }
        })
    }
}

impl OutputChunk {
    /// Chunk of text that is valid by itself.
    pub fn from_text(stream: Stream, text: impl Into<String>) -> Self {
        Self {
            stream,
            carry: Vec::new(),
            bytes: text.into().into_bytes(),
            is_last: false,
        }
    }

    /// Text that this chunk completes; what is not UTF-8 is replaced by U+FFFD.
    pub fn text(&self) -> String {
        self.decode().0
    }

    /// Decoder of the next chunk of the stream.
    pub fn decoder_behind(&self) -> Utf8Decoder {
        self.decode().1
    }

    fn decode(&self) -> (String, Utf8Decoder) {
        let mut decoder = Utf8Decoder::default();
        let mut text = decoder.decode(&self.carry);
        text.push_str(&decoder.decode(&self.bytes));
        if self.is_last {
            text.push_str(decoder.finish());
        }
        (text, decoder)
    }

    fn encode_for_reader(&self, encoding: OutputEncoding) -> Option<OutputData> {
        match encoding {
            OutputEncoding::Text => Some(self.text())
                .filter(|text| !text.is_empty())
                .map(OutputData::Text),
            OutputEncoding::Base64 if self.bytes.is_empty() => None,
            OutputEncoding::Base64 => Some(OutputData::Base64(STANDARD.encode(&self.bytes))),
        }
    }

    /// Drops the first `count` bytes, which end between characters.
    pub fn skip(&mut self, count: usize) {
        self.carry.clear();
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Appends the form on disk and on the wire, without the stream: flags, carry, bytes.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let carry = &self.carry[..self.carry.len().min(MAX_CARRY_BYTES)];
        let flags = if self.is_last { LAST_FLAG } else { 0 };
        // At most 3.
        out.push(flags | carry.len() as u8);
        out.extend_from_slice(carry);
        out.extend_from_slice(&self.bytes);
    }

    /// Chunk from that form; `None` where it is not one.
    pub fn read_from(stream: Stream, content: &[u8]) -> Option<Self> {
        let (&flags, rest) = content.split_first()?;
        let (carry, bytes) = rest.split_at_checked(usize::from(flags) & MAX_CARRY_BYTES)?;
        Some(Self {
            stream,
            carry: carry.to_vec(),
            bytes: bytes.to_vec(),
            is_last: flags & LAST_FLAG != 0,
        })
    }
}

/// Number of bytes at the end of `bytes` that begin a character and don't complete it.
pub fn incomplete_tail(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(MAX_CARRY_BYTES).enumerate() {
        let length = match byte {
            0x80..=0xBF => continue,
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xFF => 4,
            _ => 1,
        };
        return if length > back + 1 { back + 1 } else { 0 };
    }
    0
}

/// Length of the longest beginning of `bytes` whose text has at most `room` bytes.
pub fn prefix_with_text(bytes: &[u8], room: usize) -> usize {
    const REPLACEMENT_BYTES: usize = char::REPLACEMENT_CHARACTER.len_utf8();
    let (mut at, mut left) = (0, room);
    for part in bytes.utf8_chunks() {
        let (valid, invalid) = (part.valid(), part.invalid());
        if valid.len() > left {
            return at + valid.floor_char_boundary(left);
        }
        (at, left) = (at + valid.len(), left - valid.len());
        if !invalid.is_empty() {
            if left < REPLACEMENT_BYTES {
                return at;
            }
            (at, left) = (at + invalid.len(), left - REPLACEMENT_BYTES);
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_character_is_found() {
        for (bytes, tail) in [
            (&b""[..], 0),
            (b"abc", 0),
            (b"a\xC3", 1),
            (b"a\xC3\xA9", 0),
            (b"\xE2\x82", 2),
            (b"\xF0\x9F\x98", 3),
            (b"\xF0\x9F\x98\x80", 0),
            (b"\x80\x80\x80\x80", 0),
        ] {
            assert_eq!(incomplete_tail(bytes), tail, "{bytes:?}");
        }
    }

    #[test]
    fn prefix_is_cut_between_characters() {
        for (bytes, room, prefix) in [
            ("aé€".as_bytes(), 2, 1),
            ("aé€".as_bytes(), 3, 3),
            ("aé€".as_bytes(), 9, 6),
            (b"a\xFFb", 3, 1),
            (b"a\xFFb", 4, 2),
        ] {
            assert_eq!(prefix_with_text(bytes, room), prefix, "{bytes:?} {room}");
        }
    }

    #[test]
    fn chunk_survives_round_trip() {
        let chunk = OutputChunk {
            stream: Stream::Stderr,
            carry: b"\xE2\x82".to_vec(),
            bytes: b"\xAC\x00\xC3".to_vec(),
            is_last: true,
        };
        assert_eq!(chunk.text(), "€\0\u{FFFD}");
        let mut form = Vec::new();
        chunk.write_to(&mut form);
        assert_eq!(OutputChunk::read_from(Stream::Stderr, &form), Some(chunk));
        assert_eq!(OutputChunk::read_from(Stream::Stderr, b""), None);
        assert_eq!(OutputChunk::read_from(Stream::Stderr, b"\x03ab"), None);
    }
}
