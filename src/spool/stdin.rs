//! Stdin of a job on disk: bytes that its worker received, and its shim has not passed on yet.
//!
//! ```text
//! stdin            the bytes, each at its offset; of live stdin those that were passed on are punched out
//! stdin.received   how much was received, and the last piece; written by the worker, only for live stdin
//! stdin.passed     how much was passed on; written by the shim
//! ```
//!
//! Live stdin arrives in pieces, each with the offset of its first byte. A piece counts once its record is written,
//! after its bytes: a worker that is killed in between gets the piece again. A repeated piece is recognized by its
//! offset, length and hash, so that a sender may always send the last one again, and of two senders one is refused.
//! [`decide`] is that decision; it is pure.

use crate::{
    digest::sha256_hex,
    files::{Durability, replace_file},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

const BYTES_FILE: &str = "stdin";
const RECEIVED_FILE: &str = "stdin.received";
const PASSED_FILE: &str = "stdin.passed";
/// Bytes that may wait for the command; more have to wait with their sender.
pub(super) const MAX_WAITING_BYTES: u64 = 4 << 20;
/// Bytes that are passed on before their room on disk is freed.
const PUNCH_BYTES: u64 = 1 << 20;
const HASH_BYTES: usize = 64;
const RECEIVED_BYTES: usize = 17 + HASH_BYTES;
const PASSED_BYTES: usize = 9;

/// Piece of live stdin.
#[derive(Debug)]
pub struct Piece {
    /// Offset of its first byte.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether stdin ends behind it.
    pub is_last: bool,
}

/// Answer to a piece of live stdin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PieceOutcome {
    /// It was received, now or before.
    Accepted,
    /// The command reads no more.
    Closed,
    /// Stdin has ended already.
    Ended,
    /// It doesn't begin where the bytes before it end.
    Misplaced,
    /// So much waits for the command that there is no room for it.
    Full,
    /// The job takes no live stdin.
    NotLive,
}

/// Record of what was received.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Received {
    /// Offset and length of the last piece.
    offset: u64,
    length: u64,
    sha256: String,
    has_ended: bool,
}

/// Record of what was passed on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Passed {
    bytes: u64,
    is_closed: bool,
}

/// Decision on a piece.
#[derive(PartialEq, Eq, Debug)]
enum Decision {
    /// Write it.
    Append,
    /// Write nothing.
    Answer(PieceOutcome),
}

impl Received {
    fn total(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Record of a file; `None` where the job takes no live stdin.
    fn read(dir: &Path) -> io::Result<Option<Self>> {
        let Some(bytes) = read_record::<RECEIVED_BYTES>(&dir.join(RECEIVED_FILE))? else {
            return Ok(None);
        };
        let number = |at: usize| number_at(&bytes, at);
        Ok(Some(Self {
            offset: number(0),
            length: number(8),
            has_ended: bytes[16] == 1,
            sha256: String::from_utf8_lossy(&bytes[17..]).into_owned(),
        }))
    }

    fn encode(&self) -> Vec<u8> {
        let numbers = [self.offset, self.length].map(u64::to_le_bytes).concat();
        let end = [u8::from(self.has_ended)];
        [&numbers[..], &end, self.sha256.as_bytes()].concat()
    }
}

impl Passed {
    fn read(dir: &Path) -> io::Result<Self> {
        let record = read_record::<PASSED_BYTES>(&dir.join(PASSED_FILE))?;
        Ok(record.map_or_else(Self::default, |bytes| Self {
            bytes: number_at(&bytes, 0),
            is_closed: bytes[8] == 1,
        }))
    }
}

fn number_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// Decides on a piece that ends up as `next`.
fn decide(received: &Received, passed: Passed, next: &Received) -> Decision {
    let total = received.total();
    let place = |record: &Received| (record.offset, record.length);
    let is_repeated = place(next) == place(received)
        && next.sha256 == received.sha256
        && (!next.has_ended || received.has_ended);
    if passed.is_closed {
        return Decision::Answer(PieceOutcome::Closed);
    }
    if is_repeated {
        return Decision::Answer(PieceOutcome::Accepted);
    }
    if received.has_ended {
        return Decision::Answer(PieceOutcome::Ended);
    }
    // An end that was left out of the last piece.
    let is_late_end =
        next.has_ended && place(next) == place(received) && next.sha256 == received.sha256;
    if is_late_end {
        return Decision::Append;
    }
    if next.offset != total {
        return Decision::Answer(PieceOutcome::Misplaced);
    }
    if next.length == 0 && !next.has_ended {
        return Decision::Answer(PieceOutcome::Accepted);
    }
    let waiting = total.saturating_sub(passed.bytes);
    if next.length > 0 && waiting + next.length > MAX_WAITING_BYTES {
        return Decision::Answer(PieceOutcome::Full);
    }
    Decision::Append
}

/// Makes a job take live stdin. Before it is accepted.
pub(super) fn create_live(dir: &Path) -> io::Result<()> {
    fs::write(dir.join(BYTES_FILE), b"")?;
    let none = Received {
        sha256: sha256_hex(b""),
        ..Received::default()
    };
    fs::write(dir.join(RECEIVED_FILE), none.encode())
}

/// Path of the stdin of a job, for one that is whole before the job starts.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(BYTES_FILE)
}

/// Receives a piece of live stdin. Answers the offset behind all that was received, too. Only one call at a time.
pub(super) fn receive(dir: &Path, piece: &Piece) -> io::Result<(PieceOutcome, u64)> {
    let Some(received) = Received::read(dir)? else {
        return Ok((PieceOutcome::NotLive, 0));
    };
    let next = Received {
        offset: piece.offset,
        length: piece.bytes.len() as u64,
        sha256: sha256_hex(&piece.bytes),
        has_ended: piece.is_last,
    };
    match decide(&received, Passed::read(dir)?, &next) {
        Decision::Answer(outcome) => Ok((outcome, received.total())),
        Decision::Append => {
            let ended = Ok((PieceOutcome::Ended, received.total()));
            let bytes = match OpenOptions::new().write(true).open(path(dir)) {
                // The command has ended just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return ended,
                opened => opened?,
            };
            bytes.write_all_at(&piece.bytes, piece.offset)?;
            write_record(&dir.join(RECEIVED_FILE), &next.encode())?;
            if !path(dir).try_exists()? {
                // So late that the record may be there again.
                remove(dir)?;
                return ended;
            }
            Ok((PieceOutcome::Accepted, next.total()))
        }
    }
}

/// Removes what is left of the stdin of a job that has ended, the bytes first: a piece that comes at the same time looks
/// for them at last. One that comes later finds that the job takes none.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    for name in [BYTES_FILE, PASSED_FILE, RECEIVED_FILE] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Reader of the stdin of a job, for its shim.
pub struct StdinReader {
    dir: PathBuf,
    bytes: File,
    passed: Passed,
    punched: u64,
}

impl StdinReader {
    /// Reader of the stdin in a spool; `None` where it has none. The one that is read is not replaced meanwhile.
    pub(super) fn open(dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match OpenOptions::new().read(true).write(true).open(path(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let passed = Passed::read(dir)?;
        Ok(Some(Self {
            dir: dir.to_owned(),
            bytes,
            passed,
            punched: passed.bytes,
        }))
    }

    /// Offset behind the last byte that is there, and whether stdin ends with it.
    pub fn available(&self) -> io::Result<(u64, bool)> {
        match Received::read(&self.dir)? {
            Some(received) => Ok((received.total(), received.has_ended)),
            None => Ok((self.bytes.metadata()?.len(), true)),
        }
    }

    /// Bytes from an offset on, which are there.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.bytes.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Records that the bytes before this offset were passed on, and frees their room.
    pub fn record_passed(&mut self, bytes: u64) -> io::Result<()> {
        self.passed.bytes = bytes;
        if bytes - self.punched >= PUNCH_BYTES {
            // A filesystem that can't frees it with the file.
            punch(&self.bytes, self.punched, bytes - self.punched);
            self.punched = bytes;
        }
        self.write_passed()
    }

    /// Records that the command reads no more.
    pub fn record_closed(&mut self) -> io::Result<()> {
        self.passed.is_closed = true;
        self.write_passed()
    }

    fn write_passed(&self) -> io::Result<()> {
        let Passed { bytes, is_closed } = self.passed;
        let record = [&bytes.to_le_bytes()[..], &[u8::from(is_closed)]].concat();
        write_record(&self.dir.join(PASSED_FILE), &record)
    }
}

#[cfg(target_os = "linux")]
fn punch(file: &File, offset: u64, length: u64) {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = fallocate(file, flags, offset, length) {
        tracing::debug!(%error, "room of stdin that was passed on can't be freed");
    }
}

#[cfg(not(target_os = "linux"))]
fn punch(_: &File, _: u64, _: u64) {}

/// Record of a file of fixed size; `None` where there is none.
fn read_record<const N: usize>(path: &Path) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    match File::open(path) {
        Ok(mut file) => file.read_exact(&mut bytes).map(|()| Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a record: a reader finds the one before or this one. Written in place, it could be a part of each.
fn write_record(path: &Path, record: &[u8]) -> io::Result<()> {
    replace_file(path, record, Durability::Process)
}

#[cfg(test)]
mod tests;
