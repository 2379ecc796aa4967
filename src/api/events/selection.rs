//! Part of a log that a reader asks for: streams, a time, the last lines.

use super::{LogRecord, OutputChunk, RecordContent, Stream};
use crate::api::time::Time;
use std::{collections::VecDeque, str::FromStr};

/// Most lines that a reader can ask for from the end.
pub const MAX_TAIL_LINES: usize = 100_000;

/// Output streams that a reader wants.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum StreamFilter {
    /// Both.
    #[default]
    All,
    /// One.
    Only(Stream),
}

impl FromStr for StreamFilter {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "all" => Ok(Self::All),
            "stdout" => Ok(Self::Only(Stream::Stdout)),
            "stderr" => Ok(Self::Only(Stream::Stderr)),
            _ => Err(()),
        }
    }
}

impl StreamFilter {
    /// Name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Only(Stream::Stdout) => "stdout",
            Self::Only(Stream::Stderr) => "stderr",
        }
    }

    /// Whether a stream is wanted.
    pub fn has(self, stream: Stream) -> bool {
        self == Self::All || self == Self::Only(stream)
    }
}

/// Number of lines from the end of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TailLines(pub usize);

impl FromStr for TailLines {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let lines: usize = text.parse().map_err(|_| ())?;
        (lines <= MAX_TAIL_LINES).then_some(Self(lines)).ok_or(())
    }
}

/// Part of a log.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LogPart {
    /// Streams.
    pub streams: StreamFilter,
    /// Earliest time. Output whose time is unknown counts as later.
    pub since: Option<Time>,
    /// Number of lines from the end, both streams together.
    pub tail: Option<TailLines>,
}

impl LogPart {
    /// Whether a record stands in this part, but for its tail.
    fn has(&self, record: &LogRecord) -> bool {
        let is_recent = || {
            let since = self.since;
            since.is_none_or(|since| record.time.is_none_or(|time| time >= since))
        };
        match &record.content {
            RecordContent::Output(chunk) => self.streams.has(chunk.stream) && is_recent(),
            RecordContent::Gap { stream, .. } => self.streams.has(*stream),
            RecordContent::Status(_) | RecordContent::Started => true,
            // No part of any stream: whoever wants one stream alone does not want it.
            RecordContent::Egress(_) => self.streams == StreamFilter::All && is_recent(),
        }
    }
}

/// Start of the last line: number of a record, and the position in its bytes.
type LineStart = (u64, usize);

/// Search for the last lines of a log: [`observe`](Self::observe) all records, then [`finish`](Self::finish).
pub struct TailScan {
    part: LogPart,
    limit: usize,
    /// Starts of the last lines that ended, oldest first.
    lines: VecDeque<(Stream, LineStart)>,
    /// Start of the line of each stream that has not ended.
    open: [Option<LineStart>; 2],
    last_seq: u64,
}

impl TailScan {
    /// Scan for the tail of a part; `None` where the part has no tail.
    pub fn new(part: LogPart) -> Option<Self> {
        Some(Self {
            limit: part.tail?.0,
            part,
            lines: VecDeque::new(),
            open: [None; 2],
            last_seq: 0,
        })
    }

    /// Takes the next record of the log.
    pub fn observe(&mut self, record: &LogRecord) {
        self.last_seq = record.seq;
        let RecordContent::Output(chunk) = &record.content else {
            return;
        };
        if !self.part.has(record) {
            return;
        }
        let stream = chunk.stream;
        let mut at = 0;
        for line in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
            let start = *self.open[stream as usize].get_or_insert((record.seq, at));
            at += line.len();
            if line.ends_with(b"\n") {
                self.open[stream as usize] = None;
                self.add_line(stream, start);
            }
        }
    }

    fn add_line(&mut self, stream: Stream, start: LineStart) {
        self.lines.push_back((stream, start));
        if self.lines.len() > self.limit {
            self.lines.pop_front();
        }
    }

    /// Selector of the last lines, and of whatever follows them.
    pub fn finish(mut self) -> LogSelector {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(start) = self.open[stream as usize].take() {
                self.add_line(stream, start);
            }
        }
        let start = |stream| {
            let first = self.lines.iter().find(|(of, _)| *of == stream);
            first.map_or((self.last_seq + 1, 0), |(_, start)| *start)
        };
        LogSelector {
            part: self.part,
            starts: [start(Stream::Stdout), start(Stream::Stderr)],
            has_begun: false,
        }
    }
}

/// Selector of the records of a part.
#[derive(Clone)]
pub struct LogSelector {
    part: LogPart,
    starts: [LineStart; 2],
    /// Whether output of the part was selected. A gap before it is of no interest to a reader of the newest output.
    has_begun: bool,
}

impl LogSelector {
    /// Selector of a part without regard to its tail.
    pub fn new(part: LogPart) -> Self {
        Self {
            part,
            starts: [(0, 0); 2],
            has_begun: part.since.is_none(),
        }
    }

    /// Number of the first record that can stand in the part.
    pub fn first_seq(&self) -> u64 {
        let [(stdout, _), (stderr, _)] = self.starts;
        stdout.min(stderr)
    }

    /// The record as far as it stands in the part.
    pub fn select(&mut self, mut record: LogRecord) -> Option<LogRecord> {
        if !self.part.has(&record) {
            return None;
        }
        let seq = record.seq;
        match &mut record.content {
            RecordContent::Output(chunk) => {
                let (first, offset) = self.starts[chunk.stream as usize];
                if seq < first {
                    return None;
                }
                if seq == first && offset > 0 {
                    OutputChunk::skip(chunk, offset);
                }
                self.has_begun = true;
            }
            RecordContent::Gap { stream, .. } => {
                let (first, _) = self.starts[*stream as usize];
                if seq < first || !self.has_begun {
                    return None;
                }
            }
            RecordContent::Egress(_) if seq < self.first_seq() => return None,
            RecordContent::Status(_) | RecordContent::Started | RecordContent::Egress(_) => {}
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::events::{EgressEvent, EgressVerdict};

    fn log() -> Vec<LogRecord> {
        let output = |seq, stream, text: &str| LogRecord {
            seq,
            time: Some(Time::from_millis(seq as i64)),
            content: RecordContent::Output(OutputChunk::from_text(stream, text)),
        };
        vec![
            output(1, Stream::Stdout, "a\nb\nc"),
            output(2, Stream::Stderr, "x\ny\n"),
            output(3, Stream::Stdout, "d\ne\nf"),
            output(4, Stream::Stderr, "z"),
        ]
    }

    fn tail(part: LogPart) -> [String; 2] {
        let mut selector = match TailScan::new(part) {
            Some(mut scan) => {
                log().iter().for_each(|record| scan.observe(record));
                scan.finish()
            }
            None => LogSelector::new(part),
        };
        let mut texts = [String::new(), String::new()];
        for record in log() {
            if let Some(LogRecord {
                content: RecordContent::Output(chunk),
                ..
            }) = selector.select(record)
            {
                texts[chunk.stream as usize].push_str(&chunk.text());
            }
        }
        texts
    }

    #[test]
    fn tail_counts_lines_of_both_streams() {
        let part = |lines, streams| LogPart {
            streams,
            tail: Some(TailLines(lines)),
            since: None,
        };
        let all = |lines| tail(part(lines, StreamFilter::All));
        assert_eq!(all(0), ["", ""]);
        assert_eq!(all(1), ["", "z"]);
        assert_eq!(all(3), ["e\nf", "z"]);
        assert_eq!(all(4), ["cd\ne\nf", "z"]);
        assert_eq!(all(5), ["cd\ne\nf", "y\nz"]);
        assert_eq!(all(99), ["a\nb\ncd\ne\nf", "x\ny\nz"]);
        let only = tail(part(2, StreamFilter::Only(Stream::Stdout)));
        assert_eq!(only, ["e\nf", ""]);
    }

    #[test]
    fn events_of_proxy_belong_to_no_stream() {
        let event = |seq| LogRecord {
            seq,
            time: Some(Time::from_millis(seq as i64)),
            content: RecordContent::Egress(EgressEvent::new(EgressVerdict::Allowed, None, None)),
        };
        let has = |part, seq| LogSelector::new(part).select(event(seq)).is_some();
        assert!(has(LogPart::default(), 1));
        let stdout = LogPart {
            streams: StreamFilter::Only(Stream::Stdout),
            ..LogPart::default()
        };
        assert!(!has(stdout, 1));
        let since = LogPart {
            since: Some(Time::from_millis(5)),
            ..LogPart::default()
        };
        assert!(!has(since, 4) && has(since, 5));
        let last = LogPart {
            tail: Some(TailLines(1)),
            ..LogPart::default()
        };
        let mut scan = TailScan::new(last).unwrap();
        log().iter().for_each(|record| scan.observe(record));
        let mut selector = scan.finish();
        assert!(selector.select(event(3)).is_none(), "before the last line");
        assert!(selector.select(event(5)).is_some());
    }

    #[test]
    fn since_selects_by_time() {
        let since = |millis| LogPart {
            since: Some(Time::from_millis(millis)),
            ..LogPart::default()
        };
        assert_eq!(tail(since(0)), ["a\nb\ncd\ne\nf", "x\ny\nz"]);
        assert_eq!(tail(since(3)), ["d\ne\nf", "z"]);
        assert_eq!(tail(since(9)), ["", ""]);
        let last = LogPart {
            tail: Some(TailLines(2)),
            ..since(2)
        };
        assert_eq!(tail(last), ["f", "z"]);
    }
}
