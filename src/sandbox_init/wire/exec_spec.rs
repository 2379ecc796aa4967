//! Command to run, as the request for it carries it.

use super::{Cursor, ExecNumber, Size, message};
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

/// Streams of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExecStreams {
    /// The pipes that init was started with; of the first command only.
    #[default]
    Sandbox,
    /// Three descriptors that come with the request: stdin, stdout, stderr.
    Own,
    /// A terminal of this size. Two descriptors come with the request: one from which it reads, one to which it prints.
    Terminal(Size),
}

/// Command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments. Empty as the first command: the sandbox stays until it is killed, and runs others.
    pub command: Vec<OsString>,
    /// Variables that are added to the image's environment, in this order.
    pub env: Vec<(OsString, OsString)>,
    /// Whether stdin is a pipe that [`InitRequest::Stdin`] fills; else it is empty.
    pub has_stdin: bool,
    /// Whether init opens listeners for calls of models.
    pub has_inference: bool,
    /// Whether init opens listeners for the proxy of its node.
    pub has_egress: bool,
    /// Certificate of an authority that the command is to trust beside those of its image, in PEM; empty where there is
    /// none. Of the first command only.
    pub authority: Vec<u8>,
    /// Working directory; a relative one, also an empty one, begins at the workspace.
    pub cwd: OsString,
    /// Streams.
    pub streams: ExecStreams,
    /// Whether processes that it leaves behind live on; never those of the first command.
    pub is_detached: bool,
}

impl ExecSpec {
    /// Bytes of the request to run it: the arguments, then pairs of name and value; each list after its count, each
    /// text after its length. Then the directory; the authority; whether it has a stdin, may use models, may use the proxy, and is
    /// detached, each 0 or 1; the kind of its streams; and the size of its terminal.
    pub fn encode(&self, exec: ExecNumber) -> Vec<u8> {
        let mut bytes = Vec::new();
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
        text(&mut bytes, &self.cwd);
        text(&mut bytes, OsStr::from_bytes(&self.authority));
        let flags = [
            self.has_stdin,
            self.has_inference,
            self.has_egress,
            self.is_detached,
        ];
        bytes.extend(flags.map(u8::from));
        let (kind, size) = match self.streams {
            ExecStreams::Sandbox => (0, Size::default()),
            ExecStreams::Own => (1, Size::default()),
            ExecStreams::Terminal(size) => (2, size),
        };
        bytes.push(kind);
        bytes.extend(encode_size(size));
        message(1, exec, &bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        // A count is trusted with no allocation: each entry has to be there.
        let command = (0..cursor.number()?)
            .map(|_| cursor.text())
            .collect::<Option<_>>()?;
        let env = (0..cursor.number()?)
            .map(|_| Some((cursor.text()?, cursor.text()?)))
            .collect::<Option<_>>()?;
        let cwd = cursor.text()?;
        let authority = cursor.text()?.into_vec();
        let &[
            has_stdin @ 0..=1,
            has_inference @ 0..=1,
            has_egress @ 0..=1,
            is_detached @ 0..=1,
            streams @ 0..=2,
            ref size @ ..,
        ] = cursor.0
        else {
            return None;
        };
        let size = decode_size(size.try_into().ok()?);
        Some(Self {
            command,
            env,
            has_stdin: has_stdin == 1,
            has_inference: has_inference == 1,
            has_egress: has_egress == 1,
            authority,
            cwd,
            streams: match streams {
                2 => ExecStreams::Terminal(size),
                _ if size != Size::default() => return None,
                1 => ExecStreams::Own,
                _ => ExecStreams::Sandbox,
            },
            is_detached: is_detached == 1,
        })
    }
}

pub(super) fn encode_size(Size { cols, rows }: Size) -> [u8; 4] {
    let ([a, b], [c, d]) = (cols.to_le_bytes(), rows.to_le_bytes());
    [a, b, c, d]
}

pub(super) fn decode_size([a, b, c, d]: [u8; 4]) -> Size {
    Size {
        cols: u16::from_le_bytes([a, b]),
        rows: u16::from_le_bytes([c, d]),
    }
}
