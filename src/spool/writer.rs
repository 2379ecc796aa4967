//! Writer of a job's log.

use super::log::{self, RECORD_HEADER_BYTES, RecordKind, SegmentHeader, StreamTotals};
use crate::{
    api::{
        events::{
            LogRecord, OutputChunk, RECORD_OUTPUT_BYTES, RecordContent, Stream, incomplete_tail,
        },
        time::Time,
    },
    disk_space::free_bytes,
};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
};

/// Segments of a full log.
const MAX_SEGMENTS: u64 = 8;
/// Smallest size of a segment, so that a record always fits.
const MIN_SEGMENT_BYTES: u64 = 64 * 1024;

/// Room that has to stay free on the disk for a segment to be begun, so that results have room.
const RESERVED_BYTES: u64 = 32 * 1024 * 1024;

/// Number of bytes of output that make up the next record: it ends between characters where that is possible.
pub(super) fn record_length(bytes: &[u8]) -> usize {
    let bytes = &bytes[..bytes.len().min(RECORD_OUTPUT_BYTES)];
    match bytes.len() - incomplete_tail(bytes) {
        0 => bytes.len(),
        whole => whole,
    }
}

/// Writer that appends records, and deletes a segment when the log is full: the oldest but for the first, which holds
/// the output that a result keeps. A record that can't be written, on a full disk, is dropped and shows as a gap:
/// appending never fails.
pub(super) struct LogWriter {
    directory: PathBuf,
    segment_bytes: u64,
    /// Open segment and its size; `None` when the next record begins a new one.
    open: Option<(File, u64)>,
    next_index: u64,
    last_seq: u64,
    printed: [StreamTotals; 2],
}

impl LogWriter {
    /// Writer of a log of `limit` bytes. Records that are in `directory` already have to be
    /// [replayed](Self::replay), and the last segment [resumed](Self::resume).
    pub(super) fn open(directory: PathBuf, limit: u64) -> io::Result<Self> {
        let next_index = log::segments(&directory)?.last().map_or(0, |last| last + 1);
        Ok(Self {
            segment_bytes: (limit / MAX_SEGMENTS).max(MIN_SEGMENT_BYTES),
            open: None,
            next_index,
            last_seq: 0,
            printed: [StreamTotals::default(); 2],
            directory,
        })
    }

    /// Counts a record that is in the log already.
    pub(super) fn replay(&mut self, record: &LogRecord) {
        self.last_seq = record.seq;
        match &record.content {
            RecordContent::Output(chunk) => self.count(chunk.stream, chunk.bytes.len() as u64),
            RecordContent::Gap { stream, bytes } => self.count(*stream, *bytes),
            RecordContent::Status(_) | RecordContent::Started | RecordContent::Egress(_) => {}
        }
    }

    /// Continues in the segment of an earlier writer, behind its last whole record. Else each writer would begin one,
    /// and the first output would not be in the one that stays.
    pub(super) fn resume(&mut self, (index, end): (u64, u64)) -> io::Result<()> {
        if index + 1 != self.next_index {
            return Ok(());
        }
        let path = log::segment_path(&self.directory, index);
        let file = File::options().append(true).open(path)?;
        // One without a header was begun when the power failed.
        if file.metadata()?.len() >= end {
            file.set_len(end)?;
            self.open = Some((file, end));
        }
        Ok(())
    }

    fn count(&mut self, stream: Stream, bytes: u64) {
        let printed = &mut self.printed[stream as usize];
        printed.bytes += bytes;
        printed.last_seq = self.last_seq;
    }

    /// Appends output.
    pub(super) fn append_output(&mut self, chunk: &OutputChunk, time: Time) {
        let header = self.next_header();
        self.last_seq += 1;
        self.count(chunk.stream, chunk.bytes.len() as u64);
        let content = log::encode_output(chunk, time);
        self.append_at(&header, RecordKind::Output(chunk.stream), &content);
    }

    /// Appends a record that is not output.
    pub(super) fn append(&mut self, kind: RecordKind, content: &[u8]) {
        let header = self.next_header();
        self.last_seq += 1;
        self.append_at(&header, kind, content);
    }

    /// Header of a segment that begins with the next record.
    fn next_header(&self) -> SegmentHeader {
        SegmentHeader {
            first_seq: self.last_seq + 1,
            before: self.printed,
        }
    }

    fn append_at(&mut self, header: &SegmentHeader, kind: RecordKind, content: &[u8]) {
        if let Err(error) = self.write(header, kind, content) {
            // The next record begins a segment, whose header says what is missing.
            if self.open.take().is_some() {
                tracing::warn!(%error, "output can't be stored and is dropped until there is room");
            }
        }
    }

    fn write(
        &mut self,
        header: &SegmentHeader,
        kind: RecordKind,
        content: &[u8],
    ) -> io::Result<()> {
        let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + content.len());
        record.push(kind.letter());
        record.extend_from_slice(&(content.len() as u32).to_le_bytes());
        record.extend_from_slice(content);
        let (file, size) = match &mut self.open {
            Some(open) if open.1 + record.len() as u64 <= self.segment_bytes => open,
            _ => {
                let file = self.start_segment(header)?;
                self.open.insert((file, log::HEADER_BYTES as u64))
            }
        };
        if let Err(error) = file.write_all(&record) {
            // Nothing may follow a record that was written in part.
            file.set_len(*size)?;
            return Err(error);
        }
        *size += record.len() as u64;
        Ok(())
    }

    fn start_segment(&mut self, header: &SegmentHeader) -> io::Result<File> {
        self.open = None;
        if free_bytes(&self.directory)? < RESERVED_BYTES + self.segment_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = log::segment_path(&self.directory, self.next_index);
        // Under its name only once it has its header.
        let temporary = self.directory.join(".log");
        let mut file = File::create(&temporary)?;
        file.write_all(&header.encode())?;
        fs::rename(temporary, path)?;
        self.next_index += 1;
        if let Some(oldest @ 1..) = self.next_index.checked_sub(MAX_SEGMENTS) {
            match fs::remove_file(log::segment_path(&self.directory, oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(file)
    }
}
