//! What node and init say to each other; plain bytes, so that init needs no parser.
//!
//! A request is a length (u32, little endian) and so many bytes: the arguments, then pairs of
//! name and value, each list preceded by its count and each text by its length. A report is
//! a letter and an i32. Both ends are the same release, so there is no version.
//!
//! Before all that, and before init has asked for anything, comes a [`Hello`].

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

/// Largest request; twice what validation lets through, with room for the lengths.
const MAX_REQUEST_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a report.
pub const REPORT_BYTES: usize = 5;

/// Instead of a request: there is nothing to do any more.
pub const EXIT: [u8; 4] = u32::MAX.to_le_bytes();
/// Before a request: a [`View`](super::view::View) of the sandbox is wanted first. The answer is a length, as
/// of a request, and its text.
pub const INSPECT: [u8; 4] = (u32::MAX - 1).to_le_bytes();

/// First words to init: where it must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Device and inode of the node's own PID namespace.
    pub pid_namespace: (u64, u64),
}

/// Bytes of a greeting.
pub const HELLO_BYTES: usize = 16;

impl Hello {
    /// The greeting of this process.
    pub fn of_this_process() -> io::Result<Self> {
        let pid_namespace = super::view::pid_namespace()?;
        Ok(Self { pid_namespace })
    }

    /// As bytes.
    pub fn encode(self) -> [u8; HELLO_BYTES] {
        let (device, inode) = self.pid_namespace;
        (u128::from(device) << 64 | u128::from(inode)).to_le_bytes()
    }

    /// Reads one from the socket.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; HELLO_BYTES];
        from.read_exact(&mut bytes)?;
        let both = u128::from_le_bytes(bytes);
        let pid_namespace = ((both >> 64) as u64, both as u64);
        Ok(Self { pid_namespace })
    }
}

/// What init is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum InitRequest {
    /// A view of the sandbox; a request follows.
    Inspect,
    /// A command to run.
    Run(ExecSpec),
}

impl InitRequest {
    /// Reads one from the socket.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        if length == INSPECT {
            return Ok(Self::Inspect);
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_REQUEST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        let request = ExecSpec::decode(&bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self::Run(request))
    }
}

/// Why init does nothing in a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitRefusal {
    /// It has no PID namespace of its own, so that ending all would end the host's processes.
    SharedNamespace,
    /// In the image, the workspace's place is a link to another one, over which it is mounted now.
    PathIsLink,
}

/// What to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Added to the image's own environment, in this order.
    pub env: Vec<(OsString, OsString)>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Instead of all others: init has done nothing, and ends.
    Refused(InitRefusal),
    /// Init runs and waits for its request: the command can't have begun before. So many bytes follow: the
    /// upper directory of the sandbox's root, see [`upper_directory`](super::view::upper_directory).
    Ready(u16),
    /// The command runs, or its program could not be executed.
    Started,
    /// It ended with this code. 126 and 127 also stand for a program that can't be executed or found.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// The system refused to start it, with this errno; not the command's fault.
    NotStarted(i32),
}

impl ExecSpec {
    /// As bytes, length first.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        let number =
            |bytes: &mut Vec<u8>, n: usize| bytes.extend_from_slice(&(n as u32).to_le_bytes());
        let text = |bytes: &mut Vec<u8>, text: &OsStr| {
            number(bytes, text.len());
            bytes.extend_from_slice(text.as_bytes());
        };
        number(&mut bytes, self.command.len());
        self.command
            .iter()
            .for_each(|argument| text(&mut bytes, argument));
        number(&mut bytes, self.env.len());
        for (name, value) in &self.env {
            text(&mut bytes, name);
            text(&mut bytes, value);
        }
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        // Counts are not trusted with an allocation: each entry has to be there.
        let command = (0..cursor.number()?)
            .map(|_| cursor.text())
            .collect::<Option<_>>()?;
        let env = (0..cursor.number()?)
            .map(|_| Some((cursor.text()?, cursor.text()?)))
            .collect::<Option<_>>()?;
        cursor.0.is_empty().then_some(Self { command, env })
    }
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

    fn text(&mut self) -> Option<OsString> {
        let length = self.number()?;
        Some(OsString::from_vec(self.take(length)?.to_vec()))
    }
}

impl Report {
    /// As bytes.
    pub fn encode(self) -> [u8; REPORT_BYTES] {
        let (letter, number) = match self {
            Self::Refused(InitRefusal::SharedNamespace) => (b'U', 1),
            Self::Refused(InitRefusal::PathIsLink) => (b'U', 2),
            Self::Ready(length) => (b'R', i32::from(length)),
            Self::Started => (b'S', 0),
            Self::Exited(code) => (b'X', code),
            Self::Killed(signal) => (b'K', signal),
            Self::NotStarted(errno) => (b'E', errno),
        };
        let [a, b, c, d] = number.to_le_bytes();
        [letter, a, b, c, d]
    }

    /// Bytes that follow this report and belong to it.
    pub fn text_bytes(self) -> usize {
        match self {
            Self::Ready(length) => usize::from(length),
            _ => 0,
        }
    }

    /// From bytes; `None` for what init never sends.
    pub fn decode([letter, a, b, c, d]: [u8; REPORT_BYTES]) -> Option<Self> {
        let number = i32::from_le_bytes([a, b, c, d]);
        Some(match letter {
            b'U' if number == 1 => Self::Refused(InitRefusal::SharedNamespace),
            b'U' if number == 2 => Self::Refused(InitRefusal::PathIsLink),
            b'R' => Self::Ready(u16::try_from(number).ok()?),
            b'S' => Self::Started,
            b'X' => Self::Exited(number),
            b'K' => Self::Killed(number),
            b'E' => Self::NotStarted(number),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = OsString> {
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(OsString::from_vec)
    }

    proptest! {
        #[test]
        fn request_frames_decode_as_encoded(
            command in proptest::collection::vec(text(), 0..5),
            env in proptest::collection::vec((text(), text()), 0..5),
        ) {
            let request = ExecSpec { command, env };
            let read = InitRequest::read(&mut request.encode().as_slice()).unwrap();
            prop_assert_eq!(read, InitRequest::Run(request));
        }

        #[test]
        fn hello_decodes_as_encoded(device: u64, inode: u64) {
            let greeting = Hello { pid_namespace: (device, inode) };
            prop_assert_eq!(Hello::read(&mut greeting.encode().as_slice()).unwrap(), greeting);
        }

        #[test]
        fn report_frames_decode_as_encoded(n: i32, length: u16, which in 0..7) {
            let unfit = [InitRefusal::SharedNamespace, InitRefusal::PathIsLink].map(Report::Refused);
            let report = [unfit[0], unfit[1], Report::Ready(length), Report::Started, Report::Exited(n), Report::Killed(n), Report::NotStarted(n)][which as usize];
            prop_assert_eq!(Report::decode(report.encode()), Some(report));
        }
    }
}
