//! Readers of a kept log. Each reads the file twice: once to check it and to find what was asked for, and once to send
//! it. So a damaged file is noticed before a reader got any of it, and no log is ever whole in memory.

use super::LogArchive;
use crate::api::{
    JobId,
    events::{
        FrameDecoder, InvalidLog, LogPart, LogRecord, LogSelector, RecordContent, Stream, TailScan,
    },
    jobs::Truncated,
};
use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
};
use zstd::stream::read::Decoder;

/// Bytes that are read at a time.
const READ_BYTES: usize = 128 * 1024;
/// Largest window of a file of ours, as a binary logarithm: a damaged file must not cost more memory.
const MAX_WINDOW_LOG: u32 = 20;

/// Failure to read a kept log.
#[derive(Debug, thiserror::Error)]
pub(in crate::orchestrator::logs) enum ReadError {
    #[error("the file can't be read")]
    Io(#[from] io::Error),
    #[error("the file is damaged")]
    Invalid(#[from] InvalidLog),
    #[error("the file ends early")]
    Incomplete,
}

/// Part of a kept log, record by record.
pub(in crate::orchestrator::logs) struct ArchiveReader {
    records: Records,
    selector: LogSelector,
    after: u64,
    /// Streams of which the log does not have everything.
    pub(in crate::orchestrator::logs) truncated: Truncated,
}

impl LogArchive {
    /// Reader of a part of a log after the record `after`; `None` where none of this attempt is kept.
    pub(in crate::orchestrator::logs) fn reader(
        &self,
        job: JobId,
        attempt: u32,
        part: LogPart,
        after: u64,
    ) -> Result<Option<ArchiveReader>, ReadError> {
        let file = match File::open(self.path(job)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // A reader that has a part of the log already goes on behind it.
        let part = LogPart {
            tail: part.tail.filter(|_| after == 0),
            ..part
        };
        let Some((selector, truncated)) = scan(file.try_clone()?, attempt, part)? else {
            return Ok(None);
        };
        Ok(Some(ArchiveReader {
            records: Records::open(file)?,
            selector,
            after,
            truncated,
        }))
    }
}

/// Reads the whole log once; `None` where it is of another attempt, as of one that was tried again.
fn scan(
    file: File,
    attempt: u32,
    part: LogPart,
) -> Result<Option<(LogSelector, Truncated)>, ReadError> {
    let mut records = Records::open(file)?;
    let (mut tail, mut truncated) = (TailScan::new(part), Truncated::default());
    while let Some(record) = records.next()? {
        if let RecordContent::Gap { stream, .. } = record.content {
            match stream {
                Stream::Stdout => truncated.stdout = true,
                Stream::Stderr => truncated.stderr = true,
            }
        }
        if let Some(tail) = &mut tail {
            tail.observe(&record);
        }
    }
    if records.frames.attempt() != Some(attempt) {
        return Ok(None);
    }
    let selector = tail.map_or_else(|| LogSelector::new(part), TailScan::finish);
    Ok(Some((selector, truncated)))
}

impl ArchiveReader {
    /// The next records; none at the end.
    pub(in crate::orchestrator::logs) fn read(&mut self) -> Result<Vec<LogRecord>, ReadError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < READ_BYTES {
            let Some(record) = self.records.next()? else {
                break;
            };
            if record.seq <= self.after {
                continue;
            }
            let Some(record) = self.selector.select(record) else {
                continue;
            };
            bytes += size_of::<LogRecord>() + text_bytes(&record.content);
            records.push(record);
        }
        Ok(records)
    }
}

/// Bytes of the texts of a record, which its node may have made as long as a record can be.
fn text_bytes(content: &RecordContent) -> usize {
    match content {
        RecordContent::Output(chunk) => chunk.bytes.len(),
        RecordContent::Status(detail) => detail.len(),
        RecordContent::Egress(event) => {
            let texts = [&event.host, &event.detail].into_iter().flatten();
            texts.map(String::len).sum()
        }
        RecordContent::Started | RecordContent::Gap { .. } => 0,
    }
}

/// All records of a file.
struct Records {
    file: Decoder<'static, io::BufReader<File>>,
    frames: FrameDecoder,
    buffer: Vec<u8>,
}

impl Records {
    fn open(mut file: File) -> io::Result<Self> {
        file.rewind()?;
        let mut decoder = Decoder::new(file)?;
        decoder.window_log_max(MAX_WINDOW_LOG)?;
        Ok(Self {
            file: decoder,
            frames: FrameDecoder::default(),
            buffer: vec![0; READ_BYTES],
        })
    }

    fn next(&mut self) -> Result<Option<LogRecord>, ReadError> {
        loop {
            if let Some(record) = self.frames.next_record()? {
                return Ok(Some(record));
            }
            match self.file.read(&mut self.buffer)? {
                0 if self.frames.is_complete() => return Ok(None),
                0 => return Err(ReadError::Incomplete),
                read => self.frames.push(&self.buffer[..read]),
            }
        }
    }
}
