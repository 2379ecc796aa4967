//! What node and init say to each other; plain bytes, so that init needs no parser.
//!
//! A request is a length (u32, little endian) and so many bytes: the arguments, then pairs of
//! name and value, each list preceded by its count and each text by its length. A report is
//! a letter and an i32. Both ends are the same release, so there is no version.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

/// Largest request; twice what validation lets through, with room for the lengths.
const MAX_REQUEST: usize = 8 * 1024 * 1024;
/// Bytes of a report.
pub const REPORT_BYTES: usize = 5;

/// Instead of a request: there is nothing to do any more.
pub const NOTHING: [u8; 4] = u32::MAX.to_le_bytes();

/// What to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Added to the image's own environment, in this order.
    pub env: Vec<(OsString, OsString)>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Init runs and waits for its request: the command can't have begun before.
    Ready,
    /// The command runs, or its program could not be executed.
    Started,
    /// It ended with this code. 126 and 127 also stand for a program that can't be executed or found.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// The system refused to start it, with this errno; not the command's fault.
    NotStarted(i32),
}

impl Request {
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

    /// Reads one from the socket.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Self::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
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
            Self::Ready => (b'R', 0),
            Self::Started => (b'S', 0),
            Self::Exited(code) => (b'X', code),
            Self::Killed(signal) => (b'K', signal),
            Self::NotStarted(errno) => (b'E', errno),
        };
        let [a, b, c, d] = number.to_le_bytes();
        [letter, a, b, c, d]
    }

    /// From bytes; `None` for what init never sends.
    pub fn decode([letter, a, b, c, d]: [u8; REPORT_BYTES]) -> Option<Self> {
        let number = i32::from_le_bytes([a, b, c, d]);
        Some(match letter {
            b'R' => Self::Ready,
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
        fn requests_arrive_as_they_were_sent(
            command in proptest::collection::vec(text(), 0..5),
            env in proptest::collection::vec((text(), text()), 0..5),
        ) {
            let request = Request { command, env };
            prop_assert_eq!(Request::read(&mut request.encode().as_slice()).unwrap(), request);
        }

        #[test]
        fn reports_arrive_as_they_were_sent(n: i32, which in 0..5) {
            let report = [Report::Ready, Report::Started, Report::Exited(n), Report::Killed(n), Report::NotStarted(n)][which as usize];
            prop_assert_eq!(Report::decode(report.encode()), Some(report));
        }
    }
}
