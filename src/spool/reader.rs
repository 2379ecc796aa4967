//! Readers of a job's log, each at its own pace, while the log is written or afterwards.

use super::log::{
    self, HEADER_BYTES, MAX_CONTENT_BYTES, RECORD_HEADER_BYTES, RecordKind, SegmentHeader,
    StreamTotals,
};
use crate::api::{
    events::{JobEvent, OUTPUT_LIMIT_BYTES, Stream},
    time::Time,
};
use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

/// Reader of a log's events from a number on. A segment that is open stays readable when it is deleted.
pub struct LogReader {
    directory: PathBuf,
    attempt: u32,
    open: Option<OpenSegment>,
    /// Number up to which events are skipped.
    after: u64,
    /// Totals that were read or are missing.
    printed: [StreamTotals; 2],
    started_at: Option<Time>,
    /// Index of a segment and the position in it at which to stop.
    until: Option<(u64, u64)>,
    /// Whether output that a result doesn't keep is skipped.
    kept_only: bool,
}

struct Record {
    seq: u64,
    kind: RecordKind,
    length: u64,
    /// Empty for output that was not asked for.
    content: Vec<u8>,
}

struct OpenSegment {
    file: File,
    index: u64,
    at: u64,
    next_seq: u64,
}

impl LogReader {
    /// Reader of this attempt's events after number `after`.
    pub fn open(directory: PathBuf, attempt: u32, after: u64) -> Self {
        Self {
            directory,
            attempt,
            open: None,
            after,
            printed: [StreamTotals::default(); 2],
            started_at: None,
            until: None,
            kept_only: false,
        }
    }

    /// Reads of the output only as much as a result keeps: the beginning of each stream, then one gap for the rest, and
    /// nothing more once both are that long.
    pub fn kept_only(self) -> Self {
        Self {
            kept_only: true,
            ..self
        }
    }

    /// Reads up to the present end of the log, however fast it grows.
    pub fn until_now(mut self) -> io::Result<Self> {
        let last = log::segments(&self.directory)?.pop();
        let length =
            |index| Ok::<_, io::Error>(log::segment_path(&self.directory, index).metadata()?.len());
        self.until = Some(match last {
            Some(index) => (index, length(index)?),
            None => (0, 0),
        });
        Ok(self)
    }

    /// Segment that is being read, and the position in it.
    pub(super) fn position(&self) -> Option<(u64, u64)> {
        self.open.as_ref().map(|open| (open.index, open.at))
    }

    /// Time at which the command was started, where this reader has read it.
    pub fn started_at(&self) -> Option<Time> {
        self.started_at
    }

    /// The next events, with about `enough` bytes of text; none when all were read. Without `output` the command's
    /// output is skipped.
    pub fn read(&mut self, enough: usize, output: bool) -> io::Result<Vec<JobEvent>> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < enough || (self.kept_only && events.is_empty()) {
            if self.kept_only && self.exceeds_kept() == [true; 2] {
                break;
            }
            let Some(record) = self.next_record(&mut events, output)? else {
                break;
            };
            bytes += RECORD_HEADER_BYTES + record.length as usize;
            events.extend(self.decode_event(record, output));
        }
        Ok(events)
    }

    /// Whether more was read of each stream than a result keeps.
    fn exceeds_kept(&self) -> [bool; 2] {
        self.printed
            .map(|printed| printed.bytes > OUTPUT_LIMIT_BYTES as u64)
    }

    fn decode_event(&mut self, record: Record, output: bool) -> Option<JobEvent> {
        let Record {
            seq,
            kind,
            length,
            content,
        } = record;
        let attempt = self.attempt;
        let was_long = self.exceeds_kept();
        if let RecordKind::Output(stream) = kind {
            let printed = &mut self.printed[stream as usize];
            printed.bytes += length;
            printed.last_seq = seq;
        }
        if kind == RecordKind::Started {
            let millis = content.as_slice().try_into().map(i64::from_le_bytes);
            self.started_at = millis.ok().map(Time::from_millis);
        }
        let text = || String::from_utf8_lossy(&content).into_owned();
        match kind {
            _ if seq <= self.after => None,
            RecordKind::Started => Some(JobEvent::Started { attempt, seq }),
            RecordKind::Status => Some(JobEvent::Status {
                attempt,
                seq,
                detail: text(),
            }),
            RecordKind::Output(stream) if self.kept_only && was_long[stream as usize] => None,
            RecordKind::Output(stream)
                if self.kept_only && output && self.exceeds_kept()[stream as usize] =>
            {
                let bytes = length;
                Some(JobEvent::Gap {
                    attempt,
                    seq,
                    stream,
                    bytes,
                })
            }
            RecordKind::Output(stream) if output => {
                Some(JobEvent::output(attempt, seq, stream, text()))
            }
            RecordKind::Output(_) => None,
        }
    }

    /// The next whole record. Output that is missing before it becomes gaps among `events`.
    fn next_record(
        &mut self,
        events: &mut Vec<JobEvent>,
        output: bool,
    ) -> io::Result<Option<Record>> {
        loop {
            let unwanted = match output {
                true if self.kept_only => self.exceeds_kept(),
                _ => [!output; 2],
            };
            let Some(open) = &mut self.open else {
                match self.first_segment()? {
                    Some(index) => self.open_segment(index, events, output)?,
                    None => return Ok(None),
                }
                continue;
            };
            let here = (open.index, open.at);
            if self.until.is_some_and(|until| here >= until) {
                return Ok(None);
            }
            if let Some(record) = open.next_record(unwanted)? {
                return Ok(Some(record));
            }
            let next = log::segments(&self.directory)?
                .into_iter()
                .find(|index| *index > open.index);
            let Some(next) = next else {
                return Ok(None);
            };
            // Records that were written just before the next segment was begun.
            match open.next_record(unwanted)? {
                Some(record) => return Ok(Some(record)),
                None => self.open_segment(next, events, output)?,
            }
        }
    }

    /// Last segment that begins before the first event to read, so that little has to be skipped.
    fn first_segment(&self) -> io::Result<Option<u64>> {
        let segments = log::segments(&self.directory)?;
        let mut first = segments.first().copied();
        for &index in segments.iter().skip(1) {
            // One that is deleted just now is not the one to begin with.
            let Ok(file) = File::open(log::segment_path(&self.directory, index)) else {
                continue;
            };
            match header(&file)? {
                Some(header) if header.first_seq <= self.after.saturating_add(1) => {
                    first = Some(index)
                }
                _ => break,
            }
        }
        Ok(first)
    }

    fn open_segment(
        &mut self,
        index: u64,
        events: &mut Vec<JobEvent>,
        output: bool,
    ) -> io::Result<()> {
        let file = match File::open(log::segment_path(&self.directory, index)) {
            Ok(file) => file,
            // It was the oldest, and was deleted just now: look again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(header) = header(&file)? else {
            // Power failed while it was begun. The next header says what is missing.
            let (at, next_seq) = (HEADER_BYTES as u64, self.after);
            self.open = Some(OpenSegment {
                file,
                index,
                at,
                next_seq,
            });
            return Ok(());
        };
        let mut gaps = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let attempt = self.attempt;
            let (before, seen) = (
                header.before[stream as usize],
                self.printed[stream as usize],
            );
            if output && before.last_seq > self.after.max(seen.last_seq) {
                let bytes = before.bytes - seen.bytes.min(before.bytes);
                let seq = before.last_seq;
                gaps.push(JobEvent::Gap {
                    attempt,
                    seq,
                    stream,
                    bytes,
                });
            }
        }
        gaps.sort_by_key(JobEvent::seq);
        events.extend(gaps);
        self.printed = header.before;
        self.open = Some(OpenSegment {
            file,
            index,
            at: HEADER_BYTES as u64,
            next_seq: header.first_seq,
        });
        Ok(())
    }
}

impl OpenSegment {
    /// The next record, if all of it is there; without its content for output of an unwanted stream.
    fn next_record(&mut self, unwanted: [bool; 2]) -> io::Result<Option<Record>> {
        let mut start = [0; RECORD_HEADER_BYTES];
        if !read_whole(&self.file, &mut start, self.at)? {
            return Ok(None);
        }
        let [letter, length @ ..] = start;
        let length = u32::from_le_bytes(length) as usize;
        let Some(kind) = RecordKind::of(letter).filter(|_| length <= MAX_CONTENT_BYTES) else {
            // Power failed while it was written; nothing follows it in this segment.
            return Ok(None);
        };
        let is_wanted = !matches!(kind, RecordKind::Output(stream) if unwanted[stream as usize]);
        let mut content = vec![0; if is_wanted { length } else { 0 }];
        let end = self.at + (RECORD_HEADER_BYTES + length) as u64;
        if !is_wanted && self.file.metadata()?.len() < end {
            return Ok(None);
        }
        if !read_whole(
            &self.file,
            &mut content,
            self.at + RECORD_HEADER_BYTES as u64,
        )? {
            return Ok(None);
        }
        self.at = end;
        let seq = self.next_seq;
        self.next_seq += 1;
        let length = length as u64;
        Ok(Some(Record {
            seq,
            kind,
            length,
            content,
        }))
    }
}

fn header(file: &File) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; HEADER_BYTES];
    Ok(read_whole(file, &mut bytes, 0)?
        .then(|| SegmentHeader::decode(&bytes))
        .flatten())
}

/// Fills the buffer; false where the file ends before.
fn read_whole(file: &File, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
