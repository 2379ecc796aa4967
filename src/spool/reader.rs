//! Readers of a job's log, each at its own pace, while the log is written or afterwards.

use super::log::{
    self, HEADER_BYTES, MAX_CONTENT_BYTES, OUTPUT_PREFIX_BYTES, RECORD_HEADER_BYTES, RecordKind,
    SegmentHeader, StreamTotals,
};
use crate::api::{
    events::{LogRecord, OutputChunk, RecordContent, Stream},
    time::Time,
};
use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

/// Reader of a log's records from a number on. A segment that is open stays readable when it is deleted.
pub struct LogReader {
    directory: PathBuf,
    open: Option<OpenSegment>,
    /// Number up to which records are skipped.
    after: u64,
    /// Totals that were read or are missing.
    printed: [StreamTotals; 2],
    started_at: Option<Time>,
    /// Index of a segment and the position in it at which to stop.
    until: Option<(u64, u64)>,
}

struct RawRecord {
    seq: u64,
    kind: RecordKind,
    length: u64,
    /// Of output that was not asked for only as much as tells its size.
    content: Vec<u8>,
}

struct OpenSegment {
    file: File,
    index: u64,
    at: u64,
    next_seq: u64,
}

impl LogReader {
    /// Reader of the records after number `after`.
    pub fn open(directory: PathBuf, after: u64) -> Self {
        Self {
            directory,
            open: None,
            after,
            printed: [StreamTotals::default(); 2],
            started_at: None,
            until: None,
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

    /// The next records, with about `enough` bytes of output; none when all were read. Without `output` the command's
    /// output is skipped, and with it the events of its proxy.
    pub fn read(&mut self, enough: usize, output: bool) -> io::Result<Vec<LogRecord>> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < enough {
            let Some(record) = self.next_record(&mut records, output)? else {
                break;
            };
            let length = RECORD_HEADER_BYTES + record.length as usize;
            // Skipped records don't count: no record means that all were read.
            if let Some(record) = self.decode(record, output) {
                bytes += length;
                records.push(record);
            }
        }
        Ok(records)
    }

    fn decode(&mut self, record: RawRecord, output: bool) -> Option<LogRecord> {
        let RawRecord {
            seq,
            kind,
            length,
            content,
        } = record;
        if let RecordKind::Output(stream) | RecordKind::Text(stream) = kind {
            let printed = &mut self.printed[stream as usize];
            printed.bytes += output_bytes(kind, length, &content);
            printed.last_seq = seq;
        }
        if kind == RecordKind::Started {
            let millis = content.as_slice().try_into().map(i64::from_le_bytes);
            self.started_at = millis.ok().map(Time::from_millis);
        }
        if seq <= self.after {
            return None;
        }
        let (time, content) = match kind {
            RecordKind::Started => (self.started_at, RecordContent::Started),
            RecordKind::Status => {
                let detail = String::from_utf8_lossy(&content).into_owned();
                (None, RecordContent::Status(detail))
            }
            RecordKind::Output(_) | RecordKind::Text(_) | RecordKind::Egress if !output => {
                return None;
            }
            RecordKind::Egress => {
                let (time, event) = log::decode_egress(&content)?;
                (Some(time), RecordContent::Egress(event))
            }
            RecordKind::Output(stream) => {
                let (time, chunk) = log::decode_output(stream, &content)?;
                (Some(time), RecordContent::Output(chunk))
            }
            RecordKind::Text(stream) => {
                let text = String::from_utf8_lossy(&content);
                let chunk = OutputChunk::from_text(stream, text);
                (None, RecordContent::Output(chunk))
            }
        };
        Some(LogRecord { seq, time, content })
    }

    /// The next whole record. Output that is missing before it becomes gaps among `records`.
    fn next_record(
        &mut self,
        records: &mut Vec<LogRecord>,
        output: bool,
    ) -> io::Result<Option<RawRecord>> {
        loop {
            let Some(open) = &mut self.open else {
                match self.first_segment()? {
                    Some(index) => self.open_segment(index, records, output)?,
                    None => return Ok(None),
                }
                continue;
            };
            let here = (open.index, open.at);
            if self.until.is_some_and(|until| here >= until) {
                return Ok(None);
            }
            if let Some(record) = open.next_record(output)? {
                return Ok(Some(record));
            }
            let next = log::segments(&self.directory)?
                .into_iter()
                .find(|index| *index > open.index);
            let Some(next) = next else {
                return Ok(None);
            };
            // Records that were written just before the next segment was begun.
            match open.next_record(output)? {
                Some(record) => return Ok(Some(record)),
                None => self.open_segment(next, records, output)?,
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
        records: &mut Vec<LogRecord>,
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
            let (before, seen) = (
                header.before[stream as usize],
                self.printed[stream as usize],
            );
            if output && before.last_seq > self.after.max(seen.last_seq) {
                let bytes = before.bytes - seen.bytes.min(before.bytes);
                gaps.push(LogRecord {
                    seq: before.last_seq,
                    time: None,
                    content: RecordContent::Gap { stream, bytes },
                });
            }
        }
        gaps.sort_by_key(|gap| gap.seq);
        records.extend(gaps);
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
    /// The next record, if all of it is there; without the whole content for output that is not wanted.
    fn next_record(&mut self, output: bool) -> io::Result<Option<RawRecord>> {
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
        let is_output = matches!(kind, RecordKind::Output(_) | RecordKind::Text(_));
        let wanted = if is_output && !output {
            length.min(OUTPUT_PREFIX_BYTES)
        } else {
            length
        };
        let end = self.at + (RECORD_HEADER_BYTES + length) as u64;
        if wanted < length && self.file.metadata()?.len() < end {
            return Ok(None);
        }
        let mut content = vec![0; wanted];
        let content_at = self.at + RECORD_HEADER_BYTES as u64;
        if !read_whole(&self.file, &mut content, content_at)? {
            return Ok(None);
        }
        self.at = end;
        let seq = self.next_seq;
        self.next_seq += 1;
        Ok(Some(RawRecord {
            seq,
            kind,
            length: length as u64,
            content,
        }))
    }
}

/// Bytes of output in a record of this length, whose content begins with these bytes.
fn output_bytes(kind: RecordKind, length: u64, content: &[u8]) -> u64 {
    if let RecordKind::Text(_) = kind {
        return length;
    }
    let prefix = &content[..content.len().min(OUTPUT_PREFIX_BYTES)];
    let carry = prefix.last().map_or(0, |flags| u64::from(flags & 3));
    length.saturating_sub(OUTPUT_PREFIX_BYTES as u64 + carry)
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
