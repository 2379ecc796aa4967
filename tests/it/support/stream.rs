//! Bodies that are read while they are written: lines and server-sent events.

use super::DEADLINE;
use serde_json::Value;
use std::{
    io::{self, BufRead as _, BufReader, Read},
    net::TcpStream,
    time::Instant,
};

/// Reads a start line and header fields, their names in lower case.
pub(crate) fn read_head(
    reader: &mut BufReader<TcpStream>,
) -> io::Result<(String, Vec<(String, String)>)> {
    let mut next = || -> io::Result<String> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    };
    let start = next()?;
    let mut headers = Vec::new();
    loop {
        let line = next()?;
        let Some((name, value)) = line.split_once(':') else {
            return Ok((start, headers));
        };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
}

/// Framing of a body.
pub(crate) enum Framing {
    /// So many bytes are left.
    Length(usize),
    /// So many bytes of the current chunk are left; `None` before the first.
    Chunked(Option<usize>),
    /// By the end of the connection.
    Close,
}

impl Framing {
    /// As the header fields say.
    pub(crate) fn of(headers: &[(String, String)]) -> Self {
        let value = |wanted: &str| {
            headers
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_str())
        };
        match (value("transfer-encoding"), value("content-length")) {
            (Some("chunked"), _) => Self::Chunked(None),
            (_, Some(length)) => Self::Length(length.parse().unwrap_or(0)),
            _ => Self::Close,
        }
    }
}

/// A body that is read as it comes; one that breaks off is an error.
pub(crate) struct Body {
    reader: BufReader<TcpStream>,
    framing: Framing,
}

impl Body {
    /// The body that follows a head.
    pub(crate) fn new(reader: BufReader<TcpStream>, framing: Framing) -> Self {
        Self { reader, framing }
    }

    fn next_chunk(&mut self, first: bool) -> io::Result<usize> {
        let mut line = String::new();
        if !first {
            self.reader.read_line(&mut line)?;
            line.clear();
        }
        self.reader.read_line(&mut line)?;
        usize::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match self.framing {
            Framing::Close => buffer.len(),
            Framing::Length(left) | Framing::Chunked(Some(left @ 1..)) => left,
            Framing::Chunked(chunk) => {
                let size = self.next_chunk(chunk.is_none())?;
                self.framing = if size == 0 {
                    Framing::Length(0)
                } else {
                    Framing::Chunked(Some(size))
                };
                size
            }
        };
        let wanted = left.min(buffer.len());
        let n = self.reader.read(&mut buffer[..wanted])?;
        if n == 0 && wanted > 0 && !matches!(self.framing, Framing::Close) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &mut self.framing {
            Framing::Length(left) | Framing::Chunked(Some(left)) => *left -= n,
            Framing::Chunked(None) | Framing::Close => {}
        }
        Ok(n)
    }
}

/// The lines of an answer that is still being written.
pub(crate) struct Lines {
    reader: BufReader<Body>,
    began: Instant,
}

impl Lines {
    /// The lines of a body.
    pub(crate) fn new(body: Body) -> Self {
        Self {
            reader: BufReader::new(body),
            began: Instant::now(),
        }
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        // A stream that only says it is alive must not keep a test forever.
        assert!(self.began.elapsed() < DEADLINE * 2, "a stream did not end");
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end_matches('\n').to_owned()),
            Err(error) => panic!("a stream broke off: {error}"),
        }
    }
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SseEvent {
    /// Its id, to go on after it.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Its data.
    pub(crate) data: Value,
}

/// Server-sent events as they come.
pub(crate) struct SseReader(Lines);

impl SseReader {
    /// The events in these lines.
    pub(crate) fn new(lines: Lines) -> Self {
        Self(lines)
    }
}

impl Iterator for SseReader {
    type Item = SseEvent;

    fn next(&mut self) -> Option<SseEvent> {
        let mut event = SseEvent {
            id: String::new(),
            name: String::new(),
            data: Value::Null,
        };
        loop {
            let line = self.0.next()?;
            match line.split_once(": ") {
                Some(("id", id)) => event.id = id.to_owned(),
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                None if line.is_empty() && !event.name.is_empty() => return Some(event),
                _ => {}
            }
        }
    }
}
