//! One HTTP/1.1 request of a connection: its head, and its body as a blocking reader.
//!
//! The peer is the node's own HTTP client, so this is not a server for the open network: there are no time limits, since
//! the worker has its own and hangs up, and a connection has one request.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// Bytes that are read of a connection at a time, unless a reader takes more.
const BUFFER_BYTES: usize = 64 << 10;
/// Longest head: a path of 4096 bytes, all of them percent-encoded, has 12 KiB.
const MAX_HEAD_BYTES: u64 = 64 << 10;
/// Most fields of a head.
const MAX_FIELDS: usize = 100;
/// Longest line about a chunk of a body.
const MAX_CHUNK_LINE_BYTES: u64 = 4096;
/// Most bytes that are read of a refused body, and the time for them.
const DRAIN_BYTES: u64 = 16 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Head of a request.
#[derive(Default)]
pub(super) struct Head {
    pub(super) method: String,
    /// Path, without the query.
    pub(super) path: String,
    /// Query without its `?`, still encoded.
    pub(super) query: String,
    /// Id of the request, where the peer names one.
    pub(super) id: String,
    /// Value of `Range`.
    pub(super) range: Option<String>,
    /// Value of `If-Range`.
    pub(super) if_range: Option<String>,
    framing: Framing,
    expects_continue: bool,
}

/// Rest of a body.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Framing {
    /// Nothing.
    #[default]
    End,
    /// So many bytes.
    Length(u64),
    /// So many bytes of a chunk, then others.
    Chunk(u64),
    /// The line before the next chunk.
    ChunkLine,
}

/// Reason for which a request can't be read.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The connection ended or failed.
    Io(io::Error),
    /// It is no HTTP/1.1, or too long.
    Invalid(&'static str),
}

impl From<io::Error> for HeadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Connection with its buffer.
pub(super) struct Connection {
    input: BufReader<UnixStream>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            input: BufReader::with_capacity(BUFFER_BYTES, stream),
        }
    }

    /// Stream that an answer is written to.
    pub(super) fn output(&self) -> &UnixStream {
        self.input.get_ref()
    }

    /// Reads the head of a request; `None` where the peer sends none.
    pub(super) fn read_head(&mut self) -> Result<Option<Head>, HeadError> {
        let mut bytes = Vec::new();
        let mut limited = (&mut self.input).take(MAX_HEAD_BYTES);
        loop {
            let before = bytes.len();
            let read = limited.read_until(b'\n', &mut bytes)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            if read == 0 || bytes.last() != Some(&b'\n') {
                return Err(HeadError::Invalid(
                    "the head of the request ends early or is longer than 64 KiB",
                ));
            }
            if matches!(&bytes[before..], b"\r\n" | b"\n") {
                return parse_head(&bytes).map(Some).map_err(HeadError::Invalid);
            }
        }
    }

    /// Reads and drops what follows a head that makes no sense, for a moment.
    pub(super) fn drain(&mut self) {
        if let Ok(stream) = self.input.get_ref().try_clone() {
            drain(&stream, &mut self.input);
        }
    }

    /// Body of the request with this head.
    pub(super) fn body(&mut self, head: &Head) -> Body<'_> {
        Body {
            input: &mut self.input,
            framing: head.framing,
            expects_continue: head.expects_continue,
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Head, &'static str> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(bytes);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
        (parsed, request.method, request.path)
    else {
        return Err("this is not a valid HTTP/1.1 request");
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut head = Head {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        ..Head::default()
    };
    for field in request.headers {
        let value = str::from_utf8(field.value).unwrap_or_default().trim();
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let length = value
                .parse()
                .map_err(|_| "Content-Length is not a number")?;
            // Chunks overrule a length.
            if head.framing == Framing::End {
                head.framing = Framing::Length(length);
            }
        } else if is("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err("the only transfer encoding that is understood is chunked");
            }
            head.framing = Framing::ChunkLine;
        } else if is("expect") {
            head.expects_continue = value.eq_ignore_ascii_case("100-continue");
        } else if is("range") {
            head.range = Some(value.to_owned());
        } else if is("if-range") {
            head.if_range = Some(value.to_owned());
        } else if is("x-request-id") {
            head.id = value.to_owned();
        }
    }
    Ok(head)
}

/// Reads and drops what a peer still sends, for a moment: a connection that is closed with bytes in it is reset, and its
/// peer may lose the answer. Returns whether there was no error.
fn drain(stream: &UnixStream, from: &mut impl Read) -> bool {
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = DRAIN_BYTES;
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if left == 0 || remaining.is_zero() {
            return true;
        }
        // Fails only for a time of zero.
        let _ = stream.set_read_timeout(Some(remaining));
        match from.read(&mut buffer) {
            Ok(0) => return true,
            Ok(read) => left = left.saturating_sub(read as u64),
            Err(error) => return error.kind() != io::ErrorKind::InvalidData,
        }
    }
}

/// Body of a request. Its end is one only where the peer has sent all of it; a connection that ends before is an error.
pub(super) struct Body<'a> {
    input: &'a mut BufReader<UnixStream>,
    framing: Framing,
    expects_continue: bool,
}

impl Body<'_> {
    /// Number of bytes that are announced; `None` where the body is sent in chunks.
    pub(super) fn announced_size(&self) -> Option<u64> {
        match self.framing {
            Framing::End => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunk(_) | Framing::ChunkLine => None,
        }
    }

    /// Reads and drops what the peer still sends of a refused body, for a moment.
    pub(super) fn drain(&mut self) {
        // A peer that waits for leave to send gets the answer instead.
        if self.expects_continue || self.framing == Framing::End {
            return;
        }
        let stream = self.input.get_ref().try_clone();
        let Ok(stream) = stream else { return };
        if !drain(&stream, self) {
            // It makes no sense, and what follows it even less.
            drain(&stream, self.input);
        }
    }

    /// Line that ends with a line feed, without it.
    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut limited = (&mut *self.input).take(MAX_CHUNK_LINE_BYTES);
        limited.read_until(b'\n', &mut line)?;
        match line.pop() {
            Some(b'\n') => {
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                Ok(line)
            }
            Some(_) if line.len() as u64 + 1 == MAX_CHUNK_LINE_BYTES => {
                Err(io::ErrorKind::InvalidData.into())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads the line before a chunk, and trailers after the last one.
    fn next_chunk(&mut self) -> io::Result<()> {
        let line = self.read_line()?;
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = str::from_utf8(digits).ok().map(str::trim);
        let size = size.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        self.framing = match size.ok_or(io::ErrorKind::InvalidData)? {
            0 => {
                while !self.read_line()?.is_empty() {}
                Framing::End
            }
            size => Framing::Chunk(size),
        };
        Ok(())
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.expects_continue) {
            let mut output = self.input.get_ref();
            output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if self.framing == Framing::ChunkLine {
            self.next_chunk()?;
        }
        let (Framing::Length(left) | Framing::Chunk(left)) = self.framing else {
            return Ok(0);
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let left = left - read as u64;
        self.framing = match self.framing {
            Framing::Chunk(_) if left == 0 => {
                if !self.read_line()?.is_empty() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Framing::ChunkLine
            }
            Framing::Chunk(_) => Framing::Chunk(left),
            _ => Framing::Length(left),
        };
        Ok(read)
    }
}
