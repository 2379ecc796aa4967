//! Messages between the shim of a sandbox and the init in it; plain bytes, so that init needs no parser.
//!
//! ```text
//! shim ──▶ init   hello: magic (3), version (1), device (8) and inode (8) of the node's PID namespace
//! both ways       message: type (1), exec id (4), length (4), so many bytes; numbers are little endian
//! ```
//!
//! Messages of several commands share one socket: each names the *exec* that it is about, a number that the shim
//! chooses, or 0 for the whole sandbox. Output never goes this way: the first command has the pipes that init was
//! started with, and every later one brings its own, as descriptors with the first byte of the request (unix(7)). So
//! the kernel holds up a command whose output is not read, and none of the others. The types:
//!
//! | to init | | from init | |
//! |---|---|---|---|
//! | 1 | run a command | 1 | refused: init does nothing in this sandbox |
//! | 2 | kill all and end | 2 | ready; the upper directory of the sandbox's root |
//! | 3 | inspect the sandbox | 3 | a view of the sandbox |
//! | 4 | bytes for a command's stdin; none: its end | 4 | the command runs |
//! | 5 | send a signal to a command's process group | 5 | the command ended |
//! | 6 | the size of a command's terminal | 6 | a request of this type is not supported |
//! | | | 9, 10 | a command's stdin took so many bytes; a command reads it no more |
//! | | | 11 | a signal is about to be sent to a command that has not ended |
//! | | | 12 | the kernel killed a process for want of memory |
//!
//! A request of an unknown type is skipped by its length and answered with `6`; an unknown report is skipped. Shim and
//! init are one binary, and differ in version only by mistake: init then refuses the hello, and does nothing.
//!
//! The command has no way to this socket (see [`sandbox_init`](super)), but init is not believed more than needed:
//! no length and no count is trusted with memory before its bytes are there.

mod exec_spec;
mod hello;

pub use super::terminal::Size;
pub use exec_spec::{ExecSpec, ExecStreams};
pub use hello::{HELLO_BYTES, Hello};

use exec_spec::{decode_size, encode_size};
use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt as _,
};

/// Version of these messages. 2: a command says whether it has a stdin; 3: and whether it may use models; 4: several
/// commands, each with a directory and streams; 5: a command says whether it may reach hosts through the proxy; 6: and
/// which authority it is to trust.
pub const VERSION: u8 = 6;
/// Bytes of a message before its payload.
pub const HEADER_BYTES: usize = 9;
/// Largest payload to init: twice what validation of a job lets through, with room for the lengths.
const MAX_REQUEST_BYTES: usize = 8 * 1024 * 1024;
/// Largest payload from init.
const MAX_REPORT_BYTES: usize = 1024 * 1024;

/// Number of an exec in its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecNumber(pub u32);

impl ExecNumber {
    /// The whole sandbox.
    pub const SANDBOX: Self = Self(0);
    /// The first command, with which the sandbox ends.
    pub const FIRST: Self = Self(1);
}

/// Message to init.
#[derive(Debug, PartialEq, Eq)]
pub enum InitRequest {
    /// Run a command.
    Run(ExecSpec),
    /// Kill all processes of the sandbox and end; before a command runs, only end.
    Kill,
    /// Answer with a [`View`](super::view::View) of the sandbox.
    Inspect,
    /// Write these bytes to the command's stdin, or close it where there are none. Init keeps them until the command
    /// reads, so the sender bounds what is under way by the reports of what was taken.
    Stdin(Vec<u8>),
    /// Send this signal to the command's process group.
    Signal(i32),
    /// Change the size of the command's terminal.
    Resize(Size),
    /// A message of a type that this release doesn't know.
    Unknown(u8),
}

impl InitRequest {
    /// Type of the message.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Run(_) => 1,
            Self::Kill => 2,
            Self::Inspect => 3,
            Self::Stdin(_) => 4,
            Self::Signal(_) => 5,
            Self::Resize(_) => 6,
            Self::Unknown(kind) => *kind,
        }
    }

    /// Bytes of the message.
    pub fn encode(&self, exec: ExecNumber) -> Vec<u8> {
        match self {
            Self::Run(spec) => spec.encode(exec),
            Self::Stdin(bytes) => message(4, exec, bytes),
            Self::Signal(signal) => message(5, exec, &signal.to_le_bytes()),
            Self::Resize(size) => message(6, exec, &encode_size(*size)),
            other => message(other.kind(), exec, &[]),
        }
    }

    /// Reads a message. Fails on one that is too large or not what its type says.
    pub fn read(from: &mut impl Read) -> io::Result<(ExecNumber, Self)> {
        let mut header = [0; HEADER_BYTES];
        from.read_exact(&mut header)?;
        let (kind, exec, length) = decode_header(header);
        if length > MAX_REQUEST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        let request = match kind {
            1 => Self::Run(ExecSpec::decode(&payload).ok_or(io::ErrorKind::InvalidData)?),
            2 => Self::Kill,
            3 => Self::Inspect,
            4 => Self::Stdin(payload),
            5 => {
                let signal = payload.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
                Self::Signal(i32::from_le_bytes(signal))
            }
            6 => {
                let size = payload.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
                Self::Resize(decode_size(size))
            }
            kind => Self::Unknown(kind),
        };
        Ok((exec, request))
    }
}

/// Reason for which init does nothing in a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitRefusal {
    /// The sandbox has no PID namespace of its own, so that killing all would kill the host's processes.
    SharedNamespace,
    /// A directory that was mounted over is a link in the image, and the link's target is hidden.
    PathIsLink,
    /// The hello is of another version.
    UnsupportedVersion,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// It ended with this code. 126 and 127 also stand for a program that can't be executed or found.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// The system refused to start it, with this errno; not the command's fault.
    NotStarted(i32),
}

/// Message from init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Instead of all others: init has done nothing, and ends.
    Refused(InitRefusal),
    /// Init runs and waits for a command: none can have begun before.
    Ready {
        /// [Upper directory](super::view::upper_directory) of the sandbox's root; empty where it has none.
        upper: Vec<u8>,
    },
    /// View of the sandbox, as text.
    View(Vec<u8>),
    /// The command runs, or its program could not be executed.
    Started,
    /// The command ended: the first one with every other process of the sandbox, any other with all that it has started,
    /// unless it is detached.
    Ended(ExecEnd),
    /// A request of this type is not supported.
    Unsupported(u8),
    /// So many more bytes are in the pipe to the command's stdin.
    StdinTaken(u32),
    /// The command reads its stdin no more. What was sent and not taken is dropped.
    StdinClosed,
    /// A requested signal is about to be sent; the command had not ended before.
    Signaled,
    /// The kernel killed a process of the sandbox for want of memory.
    OomKilled,
}

impl Report {
    /// Bytes of the message.
    pub fn encode(&self, exec: ExecNumber) -> Vec<u8> {
        let end = |how: u8, number: i32| {
            let [a, b, c, d] = number.to_le_bytes();
            vec![how, a, b, c, d]
        };
        let (kind, payload) = match self {
            Self::Refused(InitRefusal::SharedNamespace) => (1, vec![1]),
            Self::Refused(InitRefusal::PathIsLink) => (1, vec![2]),
            Self::Refused(InitRefusal::UnsupportedVersion) => (1, vec![3]),
            Self::Ready { upper } => (2, upper.clone()),
            Self::View(text) => (3, text.clone()),
            Self::Started => (4, Vec::new()),
            Self::Ended(ExecEnd::Exited(code)) => (5, end(1, *code)),
            Self::Ended(ExecEnd::Killed(signal)) => (5, end(2, *signal)),
            Self::Ended(ExecEnd::NotStarted(errno)) => (5, end(3, *errno)),
            Self::Unsupported(kind) => (6, vec![*kind]),
            Self::StdinTaken(bytes) => (9, bytes.to_le_bytes().to_vec()),
            Self::StdinClosed => (10, Vec::new()),
            Self::Signaled => (11, Vec::new()),
            Self::OomKilled => (12, Vec::new()),
        };
        message(kind, exec, &payload)
    }

    /// A report of this type; `None` for an unknown type. Fails on one that is not what its type says.
    fn decode(kind: u8, payload: &[u8]) -> io::Result<Option<Self>> {
        let report = match (kind, payload) {
            (1, [1]) => Self::Refused(InitRefusal::SharedNamespace),
            (1, [2]) => Self::Refused(InitRefusal::PathIsLink),
            (1, [3]) => Self::Refused(InitRefusal::UnsupportedVersion),
            (2, upper) => Self::Ready {
                upper: upper.to_vec(),
            },
            (3, text) => Self::View(text.to_vec()),
            (4, []) => Self::Started,
            (5, &[how @ 1..=3, a, b, c, d]) => {
                let number = i32::from_le_bytes([a, b, c, d]);
                Self::Ended(match how {
                    1 => ExecEnd::Exited(number),
                    2 => ExecEnd::Killed(number),
                    _ => ExecEnd::NotStarted(number),
                })
            }
            (6, [kind]) => Self::Unsupported(*kind),
            (9, &[a, b, c, d]) => Self::StdinTaken(u32::from_le_bytes([a, b, c, d])),
            (10, []) => Self::StdinClosed,
            (11, []) => Self::Signaled,
            (12, []) => Self::OomKilled,
            (1..=6 | 9..=12, _) => return Err(io::ErrorKind::InvalidData.into()),
            _ => return Ok(None),
        };
        Ok(Some(report))
    }
}

/// Takes the next report out of what was read; `None` while it isn't whole. Fails on what init never sends.
pub fn take_report(read: &mut Vec<u8>) -> io::Result<Option<(ExecNumber, Report)>> {
    loop {
        let Some((header, rest)) = read.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let (kind, exec, length) = decode_header(*header);
        if length > MAX_REPORT_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let report = Report::decode(kind, payload)?;
        read.drain(..HEADER_BYTES + length);
        if let Some(report) = report {
            return Ok(Some((exec, report)));
        }
    }
}

fn message(kind: u8, exec: ExecNumber, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&exec.0.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn decode_header([kind, a, b, c, d, length @ ..]: [u8; HEADER_BYTES]) -> (u8, ExecNumber, usize) {
    let exec = ExecNumber(u32::from_le_bytes([a, b, c, d]));
    (kind, exec, u32::from_le_bytes(length) as usize)
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, n: usize) -> Option<&[u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn number(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize)
    }

    fn long(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<OsString> {
        let length = self.number()?;
        Some(OsString::from_vec(self.take(length)?.to_vec()))
    }
}

#[cfg(test)]
mod tests;
