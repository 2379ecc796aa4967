//! Output of a job as far as its result keeps it, with the numbers of its events.
//!
//! Of a stream within [`OUTPUT_LIMIT_BYTES`] the log keeps everything; of a longer one the head, up to
//! [`HEAD_LIMIT_BYTES`], and the tail. What is missing in between becomes one gap, and one line of the text. An event is
//! a range of the kept text, so that a job that prints single bytes costs a few bytes per event, not a string; each
//! event is kept whole or not at all.

use super::{HEAD_LIMIT_BYTES, LogRecord, OUTPUT_LIMIT_BYTES, OutputChunk, RecordContent, Stream};
use crate::api::jobs::Truncated;
use std::collections::VecDeque;

/// Events of an output log without their texts: `(kind, number)` pairs in order. Kind 0 is the start; 1 and 2 are
/// `number` bytes of stdout and stderr; 3 and 4 a gap of `number` bytes in them; 5 is `number` event numbers of
/// which nothing is kept.
pub type Outline = Vec<(u8, u64)>;

/// Largest event number: 18 digits.
pub const MAX_SEQ: u64 = 999_999_999_999_999_999;

/// Longest line that stands for missing output.
const OMISSION_LINE_BYTES: usize = 80;
/// Limit on the tail of a stream of which something is missing.
const TAIL_LIMIT_BYTES: usize = OUTPUT_LIMIT_BYTES - HEAD_LIMIT_BYTES - OMISSION_LINE_BYTES;
/// Evicted text that is kept until it is worth to move the rest.
const COMPACT_BYTES: usize = 64 * 1024;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// Text that stands in a result for `bytes` of output that it doesn't keep.
pub fn omission_line(bytes: u64) -> String {
    format!("\n[... {bytes} bytes omitted; see the log of the task ...]\n")
}

/// Event of one stream.
#[derive(Clone, Copy)]
struct EventMark {
    seq: u64,
    /// Position of its text in the stream's tail or head.
    start: u64,
    /// Length of its text.
    length: u32,
    /// Length of its output, in bytes as printed.
    bytes: u32,
}

/// Kept output of one attempt.
#[derive(Default)]
pub struct OutputLog {
    streams: [KeptText; 2],
    started: Option<u64>,
    last_seq: u64,
}

#[derive(Default)]
struct KeptText {
    head: String,
    head_marks: Vec<EventMark>,
    /// Whether the head takes no more.
    is_head_closed: bool,
    /// Text of the tail, behind what was evicted of it lately.
    tail: String,
    tail_marks: VecDeque<EventMark>,
    /// Position of the first byte of `tail`.
    tail_at: u64,
    /// Bytes of the latest events, which only begin a character; they count with the event that completes it.
    unfinished: usize,
    /// Missing output, in bytes as printed.
    dropped: u64,
    /// Number of the last event whose output was dropped.
    last_dropped: u64,
}

impl OutputLog {
    /// Records the start of the command as the next event.
    pub fn mark_started(&mut self) {
        let seq = self.number();
        self.started.get_or_insert(seq);
    }

    /// Appends output as the next event: its text, and its size as the command printed it.
    pub fn push(&mut self, stream: Stream, text: &str, bytes: usize) {
        let seq = self.number();
        self.streams[stream as usize].keep(seq, text, bytes);
    }

    /// Skips the number of an event of which nothing is kept.
    pub fn skip_event(&mut self) {
        self.number();
    }

    /// Number of bytes of text that the head of a stream still takes; 0 once it is closed. A caller that numbers events
    /// splits one that crosses it, so that the head is as long as it may be.
    pub fn head_room(&self, stream: Stream) -> usize {
        let kept = &self.streams[stream as usize];
        if kept.is_head_closed {
            return 0;
        }
        HEAD_LIMIT_BYTES - kept.head.len()
    }

    /// Appends a record with the number that it has; `false` where its number was seen before or is invalid.
    pub fn append(&mut self, record: &LogRecord) -> bool {
        let seq = record.seq;
        if !(self.last_seq + 1..=MAX_SEQ).contains(&seq) {
            return false;
        }
        self.last_seq = seq;
        match &record.content {
            RecordContent::Started => {
                self.started.get_or_insert(seq);
            }
            RecordContent::Output(chunk) => {
                self.streams[chunk.stream as usize].keep(seq, &chunk.text(), chunk.bytes.len());
            }
            RecordContent::Gap { stream, bytes } => {
                self.streams[*stream as usize].drop_before(seq, *bytes);
            }
            RecordContent::Status(_) | RecordContent::Egress(_) => {}
        }
        true
    }

    fn number(&mut self) -> u64 {
        self.last_seq = self.last_seq.saturating_add(1);
        self.last_seq
    }

    /// Number of the newest event; 0 while there is none.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// First event after the number `after`.
    pub fn record_after(&self, after: u64) -> Option<LogRecord> {
        let started = self.started.filter(|seq| *seq > after);
        let started = started.map(|seq| (seq, RecordContent::Started));
        let output = STREAMS.into_iter().filter_map(|stream| {
            let (seq, what) = self.streams[stream as usize].event_after(after)?;
            Some((seq, what.into_content(stream)))
        });
        let (seq, content) = started
            .into_iter()
            .chain(output)
            .min_by_key(|(seq, _)| *seq)?;
        Some(LogRecord {
            seq,
            time: None,
            content,
        })
    }

    /// Outline of the log, to be stored beside its two texts for [`restore`](Self::restore).
    pub fn outline(&self) -> Outline {
        let mut events: Vec<(u64, (u8, u64))> = Vec::new();
        events.extend(self.started.map(|seq| (seq, (0, 0))));
        for stream in STREAMS {
            let kept = &self.streams[stream as usize];
            let text = |mark: &EventMark| (mark.seq, (1 + stream as u8, u64::from(mark.length)));
            events.extend(kept.marks().map(text));
            if kept.dropped > 0 {
                events.push((kept.last_dropped, (3 + stream as u8, kept.dropped)));
            }
        }
        events.sort_unstable_by_key(|(seq, _)| *seq);
        let (mut outline, mut last) = (Outline::new(), 0);
        for (seq, event) in events {
            if seq > last + 1 {
                outline.push((5, seq - last - 1));
            }
            last = seq;
            outline.push(event);
        }
        outline
    }

    /// Log with the same events as the one that `outline` was made of. Where outline and texts do not match, each
    /// text becomes one event.
    pub fn restore(outline: &[(u8, u64)], stdout: &str, stderr: &str) -> Self {
        Self::assemble(outline, stdout, stderr).unwrap_or_else(|| {
            let mut log = Self::default();
            for (stream, text) in STREAMS.into_iter().zip([stdout, stderr]) {
                if !text.is_empty() {
                    let seq = log.number();
                    log.streams[stream as usize].restore(seq, text);
                }
            }
            log
        })
    }

    fn assemble(outline: &[(u8, u64)], stdout: &str, stderr: &str) -> Option<Self> {
        let (mut log, mut rest) = (Self::default(), [stdout, stderr]);
        for &(kind, number) in outline {
            let stream = usize::from(kind.wrapping_sub(1) % 2);
            let (kept, rest) = (&mut log.streams[stream], &mut rest[stream]);
            match kind {
                0 if log.started.is_none() => log.mark_started(),
                1 | 2 if number > 0 => {
                    let (text, behind) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                    log.last_seq += 1;
                    kept.restore(log.last_seq, text);
                    *rest = behind;
                }
                3 | 4 if kept.dropped == 0 => {
                    log.last_seq += 1;
                    kept.drop_bytes(log.last_seq, number.max(1));
                    // A result of an earlier release has no such line, and nothing behind the gap.
                    *rest = rest
                        .strip_prefix(&*omission_line(kept.dropped))
                        .unwrap_or(rest);
                }
                5 => {
                    let last = log.last_seq.checked_add(number)?;
                    log.last_seq = Some(last).filter(|last| *last <= MAX_SEQ)?;
                }
                _ => return None,
            }
        }
        (rest == ["", ""]).then_some(log)
    }

    /// Kept text of a stream, with a line for what is missing.
    pub fn text(&self, stream: Stream) -> String {
        let kept = &self.streams[stream as usize];
        let mut text = kept.head.clone();
        if kept.dropped > 0 {
            text.push_str(&omission_line(kept.dropped));
        }
        text.push_str(kept.tail_text());
        text
    }

    /// Streams whose output is incomplete.
    pub fn truncated(&self) -> Truncated {
        let [stdout, stderr] = &self.streams;
        Truncated {
            stdout: stdout.dropped > 0,
            stderr: stderr.dropped > 0,
        }
    }
}

/// Event of a stream.
enum StreamEvent<'a> {
    Text(&'a str),
    Gap(u64),
}

impl StreamEvent<'_> {
    fn into_content(self, stream: Stream) -> RecordContent {
        match self {
            Self::Text(text) => RecordContent::Output(OutputChunk::from_text(stream, text)),
            Self::Gap(bytes) => RecordContent::Gap { stream, bytes },
        }
    }
}

impl KeptText {
    /// Keeps an event whole: in the head where it fits, else in the tail.
    fn keep(&mut self, seq: u64, text: &str, bytes: usize) {
        self.unfinished += bytes;
        if text.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.unfinished);
        self.is_head_closed |= text.len() > HEAD_LIMIT_BYTES - self.head.len();
        if self.is_head_closed {
            self.push_tail(seq, text, bytes);
            self.evict();
        } else {
            self.push_head(seq, text, bytes);
        }
    }

    /// Keeps an event of a log that was within its limits.
    fn restore(&mut self, seq: u64, text: &str) {
        if self.dropped > 0 {
            self.push_tail(seq, text, text.len());
        } else {
            self.push_head(seq, text, text.len());
        }
        self.is_head_closed = true;
    }

    fn push_head(&mut self, seq: u64, text: &str, bytes: usize) {
        let start = self.head.len() as u64;
        self.head.push_str(text);
        self.head_marks.extend(mark(seq, start, text, bytes));
    }

    fn push_tail(&mut self, seq: u64, text: &str, bytes: usize) {
        let start = self.tail_at + self.tail.len() as u64;
        self.tail.push_str(text);
        self.tail_marks.extend(mark(seq, start, text, bytes));
    }

    /// Drops the oldest events of the tail while it is too long.
    fn evict(&mut self) {
        let limit = if self.dropped > 0 {
            TAIL_LIMIT_BYTES
        } else {
            OUTPUT_LIMIT_BYTES - self.head.len()
        };
        if self.tail_text().len() <= limit {
            return;
        }
        while self.tail_text().len() > TAIL_LIMIT_BYTES {
            let Some(oldest) = self.tail_marks.pop_front() else {
                break;
            };
            self.drop_bytes(oldest.seq, u64::from(oldest.bytes));
        }
        self.compact();
    }

    /// Drops the tail, and counts `bytes` more that are missing behind it.
    fn drop_before(&mut self, seq: u64, bytes: u64) {
        self.is_head_closed = true;
        while let Some(oldest) = self.tail_marks.pop_front() {
            self.drop_bytes(oldest.seq, u64::from(oldest.bytes));
        }
        self.drop_bytes(seq, bytes);
        self.compact();
    }

    fn drop_bytes(&mut self, seq: u64, bytes: u64) {
        self.dropped = self.dropped.saturating_add(bytes);
        self.last_dropped = seq;
    }

    /// Text of the tail that was not evicted.
    fn tail_text(&self) -> &str {
        &self.tail[self.evicted()..]
    }

    /// Length of the evicted text at the start of `tail`.
    fn evicted(&self) -> usize {
        match self.tail_marks.front() {
            // Never further than `tail` is long, which is far below usize::MAX.
            Some(first) => (first.start - self.tail_at) as usize,
            None => self.tail.len(),
        }
    }

    fn compact(&mut self) {
        let evicted = self.evicted();
        if evicted >= COMPACT_BYTES {
            self.tail.drain(..evicted);
            self.tail_at += evicted as u64;
        }
    }

    fn marks(&self) -> impl Iterator<Item = &EventMark> {
        self.head_marks.iter().chain(&self.tail_marks)
    }

    /// First event after the number `after`.
    fn event_after(&self, after: u64) -> Option<(u64, StreamEvent<'_>)> {
        let text = |text, mark: &EventMark, base| {
            let start = (mark.start - base) as usize;
            let text: &str = text;
            StreamEvent::Text(&text[start..start + mark.length as usize])
        };
        let at = self.head_marks.partition_point(|mark| mark.seq <= after);
        if let Some(mark) = self.head_marks.get(at) {
            return Some((mark.seq, text(&self.head, mark, 0)));
        }
        if self.dropped > 0 && self.last_dropped > after {
            return Some((self.last_dropped, StreamEvent::Gap(self.dropped)));
        }
        let at = self.tail_marks.partition_point(|mark| mark.seq <= after);
        let mark = self.tail_marks.get(at)?;
        Some((mark.seq, text(&self.tail, mark, self.tail_at)))
    }
}

/// Mark of an event; `None` for one without text.
fn mark(seq: u64, start: u64, text: &str, bytes: usize) -> Option<EventMark> {
    (!text.is_empty()).then_some(EventMark {
        seq,
        start,
        // Records are bounded far below u32::MAX.
        length: text.len() as u32,
        bytes: bytes as u32,
    })
}

#[cfg(test)]
mod tests;
