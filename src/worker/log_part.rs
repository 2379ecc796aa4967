//! Readers of a job's log for callers: the part that they ask for, and the whole log in one stream of bytes.
//!
//! All of this reads files: it runs on threads that may block.

use super::event_stream::EventQuery;
use crate::{
    api::events::{
        LogPart, LogRecord, LogSelector, TailScan, write_end, write_record, write_start,
    },
    spool::LogReader,
};
use bytes::Bytes;
use std::{io, path::PathBuf};
use tokio::task::spawn_blocking;

/// Bytes of output that are read at a time.
const READ_BYTES: usize = 256 * 1024;

/// Reader of a part of a log.
pub(super) struct PartReader {
    spool: PathBuf,
    query: EventQuery,
    /// Reader and selector, once the start of the part is known.
    open: Option<(LogReader, LogSelector)>,
}

impl PartReader {
    pub(super) fn new(spool: PathBuf, query: EventQuery) -> Self {
        Self {
            spool,
            query,
            open: None,
        }
    }

    /// The next records of the part, which may be none of those that were read; `None` when all were read.
    pub(super) fn read(&mut self) -> io::Result<Option<Vec<LogRecord>>> {
        let (reader, selector) = match &mut self.open {
            Some(open) => open,
            None => {
                let first = self.find_start()?;
                self.open.insert(first)
            }
        };
        let records = reader.read(READ_BYTES, self.query.output)?;
        if records.is_empty() {
            return Ok(None);
        }
        let selected = records
            .into_iter()
            .filter_map(|record| selector.select(record));
        Ok(Some(selected.collect()))
    }

    fn find_start(&self) -> io::Result<(LogReader, LogSelector)> {
        let EventQuery {
            after,
            follow,
            part,
            ..
        } = self.query;
        // A caller that has a part of the log already goes on behind it.
        let part = LogPart {
            tail: part.tail.filter(|_| after == 0),
            ..part
        };
        let selector = match TailScan::new(part) {
            Some(scan) => self.scan(scan)?,
            None => LogSelector::new(part),
        };
        let after = after.max(selector.first_seq().saturating_sub(1));
        let reader = LogReader::open(self.spool.clone(), after);
        Ok(match follow {
            true => (reader, selector),
            false => (reader.until_now()?, selector),
        })
    }

    fn scan(&self, mut scan: TailScan) -> io::Result<LogSelector> {
        let mut reader = LogReader::open(self.spool.clone(), 0).until_now()?;
        loop {
            let records = reader.read(READ_BYTES, true)?;
            if records.is_empty() {
                return Ok(scan.finish());
            }
            records.iter().for_each(|record| scan.observe(record));
        }
    }
}

/// The log as it is now, in the form of a [`FrameDecoder`](crate::api::events::FrameDecoder). Ends early, without the
/// end of that form, where it can't be read.
pub(super) fn frames(
    spool: PathBuf,
    attempt: u32,
) -> impl futures_util::Stream<Item = Bytes> + Send {
    let source = FrameSource {
        reader: LogReader::open(spool, 0),
        last_seq: None,
        attempt,
    };
    futures_util::stream::unfold(Some(source), async |source| {
        let read = spawn_blocking(move || source?.next().transpose()).await;
        match read.map_err(io::Error::from).and_then(Option::transpose) {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "log of a job can't be sent whole");
                None
            }
        }
    })
}

struct FrameSource {
    reader: LogReader,
    /// Number of the last record; `None` before the start of the form.
    last_seq: Option<u64>,
    attempt: u32,
}

impl FrameSource {
    /// The next bytes, and the source behind them; no source behind the end.
    fn next(mut self) -> io::Result<Option<(Bytes, Option<Self>)>> {
        let mut bytes = Vec::new();
        let last_seq = match self.last_seq {
            Some(last_seq) => last_seq,
            None => {
                write_start(self.attempt, &mut bytes);
                self.reader = self.reader.until_now()?;
                0
            }
        };
        let records = self.reader.read(READ_BYTES, true)?;
        records
            .iter()
            .for_each(|record| write_record(record, &mut bytes));
        let Some(last) = records.last() else {
            write_end(last_seq, &mut bytes);
            return Ok(Some((bytes.into(), None)));
        };
        self.last_seq = Some(last.seq);
        Ok(Some((bytes.into(), Some(self))))
    }
}
