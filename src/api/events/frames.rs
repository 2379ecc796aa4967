//! A log as one stream of bytes: from a node to its orchestrator, and kept there.
//!
//! ```text
//! "cynlogs1"  attempt u32
//! record      letter  seq u64  time i64 (milliseconds)  length u32  content
//! …
//! end         '.'     last seq u64, time 0, length 0
//! ```
//!
//! Numbers are little endian. A stream without its end is cut off, and counts as none.

use super::{EgressEvent, LogRecord, MAX_SEQ, OutputChunk, RecordContent, Stream};
use crate::api::time::Time;

/// Media type of the form.
pub const LOG_MEDIA_TYPE: &str = "application/vnd.cynode.log";

const MAGIC: &[u8; 8] = b"cynlogs1";
const START_BYTES: usize = MAGIC.len() + 4;
const FRAME_HEADER_BYTES: usize = 1 + 8 + 8 + 4;
/// Longest content; that of the records of an earlier release.
const MAX_CONTENT_BYTES: usize = 4 * 1024 * 1024 + 16;
/// Time of a record without one.
const NO_TIME: i64 = i64::MIN;

const STATUS: u8 = b'i';
const STARTED: u8 = b's';
const STDOUT: u8 = b'O';
const STDERR: u8 = b'E';
const GAP: u8 = b'g';
/// Event of the proxy; the content is JSON.
const EGRESS: u8 = b'n';
const END: u8 = b'.';

/// Appends the start of the stream of an attempt.
pub fn write_start(attempt: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&attempt.to_le_bytes());
}

/// Appends a record.
pub fn write_record(record: &LogRecord, out: &mut Vec<u8>) {
    let mut content = Vec::new();
    let letter = match &record.content {
        RecordContent::Status(detail) => {
            content.extend_from_slice(detail.as_bytes());
            STATUS
        }
        RecordContent::Started => STARTED,
        RecordContent::Output(chunk) => {
            chunk.write_to(&mut content);
            match chunk.stream {
                Stream::Stdout => STDOUT,
                Stream::Stderr => STDERR,
            }
        }
        RecordContent::Gap { stream, bytes } => {
            content.push(*stream as u8);
            content.extend_from_slice(&bytes.to_le_bytes());
            GAP
        }
        RecordContent::Egress(event) => {
            // Nothing in it can fail to be JSON.
            content = serde_json::to_vec(event).unwrap_or_default();
            EGRESS
        }
    };
    let time = record.time.map_or(NO_TIME, Time::as_millis);
    write_frame(letter, record.seq, time, &content, out);
}

/// Appends the end, behind the record with the number `last_seq`.
pub fn write_end(last_seq: u64, out: &mut Vec<u8>) {
    write_frame(END, last_seq, 0, &[], out);
}

fn write_frame(letter: u8, seq: u64, time: i64, content: &[u8], out: &mut Vec<u8>) {
    out.push(letter);
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&time.to_le_bytes());
    // Bounded where the content is made.
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(content);
}

/// Fault of a stream that is not in this form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it is not a log: {0}")]
pub struct InvalidLog(&'static str);

/// Decoder of a stream that comes in pieces, cut anywhere. It never holds more than one record and one piece.
#[derive(Default)]
pub struct FrameDecoder {
    bytes: Vec<u8>,
    /// Number of bytes from the start that are decoded.
    decoded: usize,
    attempt: Option<u32>,
    last_seq: u64,
    has_ended: bool,
}

impl FrameDecoder {
    /// Appends a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.drain(..self.decoded);
        self.decoded = 0;
        self.bytes.extend_from_slice(piece);
    }

    /// Attempt of the log, once its start was decoded.
    pub fn attempt(&self) -> Option<u32> {
        self.attempt
    }

    /// Whether the whole stream was decoded.
    pub fn is_complete(&self) -> bool {
        self.has_ended
    }

    /// Next record; `None` until all of it has come, and behind the end.
    pub fn next_record(&mut self) -> Result<Option<LogRecord>, InvalidLog> {
        if self.attempt.is_none() && !self.read_start()? {
            return Ok(None);
        }
        let rest = &self.bytes[self.decoded..];
        if self.has_ended {
            return self.check_end();
        }
        let Some((header, rest)) = rest.split_at_checked(FRAME_HEADER_BYTES) else {
            return Ok(None);
        };
        let (letter, seq) = (header[0], number(&header[1..9]));
        let time = i64::from_le_bytes(number(&header[9..17]).to_le_bytes());
        let length = number(&header[17..]) as usize;
        if length > MAX_CONTENT_BYTES {
            return Err(InvalidLog("a record is too long"));
        }
        let Some(content) = rest.get(..length) else {
            return Ok(None);
        };
        if seq > MAX_SEQ || (letter != END && seq <= self.last_seq) {
            return Err(InvalidLog("its records are out of order"));
        }
        self.has_ended = letter == END;
        let content = decode_content(letter, content)?;
        self.last_seq = seq;
        self.decoded += FRAME_HEADER_BYTES + length;
        let Some(content) = content else {
            return self.check_end();
        };
        let time = Some(time).filter(|time| *time != NO_TIME);
        Ok(Some(LogRecord {
            seq,
            time: time.map(Time::from_millis),
            content,
        }))
    }

    /// Nothing, as must be behind the end.
    fn check_end(&self) -> Result<Option<LogRecord>, InvalidLog> {
        if self.decoded < self.bytes.len() {
            return Err(InvalidLog("something follows its end"));
        }
        Ok(None)
    }

    fn read_start(&mut self) -> Result<bool, InvalidLog> {
        let Some(start) = self.bytes.get(..START_BYTES) else {
            return Ok(false);
        };
        let attempt = start
            .strip_prefix(MAGIC)
            .ok_or(InvalidLog("its start is another one"))?;
        self.attempt = Some(number(attempt) as u32);
        self.decoded = START_BYTES;
        Ok(true)
    }
}

/// Content of a record; `None` for the end.
fn decode_content(letter: u8, content: &[u8]) -> Result<Option<RecordContent>, InvalidLog> {
    let output = |stream| {
        let chunk = OutputChunk::read_from(stream, content);
        chunk
            .map(RecordContent::Output)
            .ok_or(InvalidLog("a piece of output is too short"))
    };
    Ok(Some(match (letter, content) {
        (STATUS, detail) => RecordContent::Status(String::from_utf8_lossy(detail).into_owned()),
        (STARTED, []) => RecordContent::Started,
        (STDOUT, _) => output(Stream::Stdout)?,
        (STDERR, _) => output(Stream::Stderr)?,
        (GAP, [stream @ 0..=1, bytes @ ..]) if bytes.len() == 8 => RecordContent::Gap {
            stream: [Stream::Stdout, Stream::Stderr][usize::from(*stream)],
            bytes: number(bytes),
        },
        (EGRESS, event) => {
            let event = serde_json::from_slice::<EgressEvent>(event);
            RecordContent::Egress(
                event.map_err(|_| InvalidLog("an event of the proxy is malformed"))?,
            )
        }
        (END, []) => return Ok(None),
        _ => return Err(InvalidLog("a record is of no known kind")),
    }))
}

/// Number in up to 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::events::EgressVerdict;

    fn records() -> Vec<LogRecord> {
        let record = |seq, time, content| LogRecord { seq, time, content };
        let chunk = OutputChunk {
            stream: Stream::Stderr,
            carry: vec![0xC3],
            bytes: vec![0xA9, 0, 255],
            is_last: true,
        };
        let gap = RecordContent::Gap {
            stream: Stream::Stderr,
            bytes: u64::MAX,
        };
        let host = Some("a.example".to_owned());
        let egress = EgressEvent::new(EgressVerdict::Ended, host, Some(443));
        vec![
            record(1, None, RecordContent::Status("pulling".to_owned())),
            record(2, Some(Time::from_millis(-5)), RecordContent::Started),
            record(7, Some(Time::from_millis(9)), gap),
            record(8, None, RecordContent::Output(chunk)),
            record(
                9,
                Some(Time::from_millis(10)),
                RecordContent::Egress(egress),
            ),
            record(
                10,
                None,
                RecordContent::Output(OutputChunk::from_text(Stream::Stdout, "")),
            ),
        ]
    }

    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        write_start(7, &mut bytes);
        for record in records() {
            write_record(&record, &mut bytes);
        }
        write_end(10, &mut bytes);
        bytes
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<(Vec<LogRecord>, FrameDecoder), InvalidLog> {
        let (mut decoder, mut records) = (FrameDecoder::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(record) = decoder.next_record()? {
                records.push(record);
            }
        }
        Ok((records, decoder))
    }

    #[test]
    fn stream_decodes_alike_however_split() {
        for piece in 1..40 {
            let (decoded, decoder) = decode(&stream(), piece).unwrap();
            assert_eq!(decoded, records());
            assert_eq!((decoder.attempt(), decoder.is_complete()), (Some(7), true));
        }
    }

    #[test]
    fn cut_stream_is_incomplete() {
        let bytes = stream();
        for end in 0..bytes.len() {
            assert!(!decode(&bytes[..end], 64).unwrap().1.is_complete(), "{end}");
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let bytes = stream();
        assert!(decode(&[&bytes[..], b"x"].concat(), 64).is_err());
        assert!(decode(b"cynlogs2....", 64).is_err());
        for event in ["{}", "", "{\"verdict\": \"other\"}"] {
            let mut other = Vec::new();
            write_start(7, &mut other);
            write_frame(EGRESS, 1, 0, event.as_bytes(), &mut other);
            assert!(decode(&other, 64).is_err(), "{event}");
        }
        for at in [START_BYTES, START_BYTES + FRAME_HEADER_BYTES - 1] {
            let mut other = bytes.clone();
            other[at] = 0xFF;
            assert!(decode(&other, 64).is_err(), "{at}");
        }
    }
}
