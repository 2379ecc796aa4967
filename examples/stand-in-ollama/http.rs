//! As much of HTTP/1.1 as clients of a model server use.

use serde_json::Value;
use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

pub(crate) const JSON: &str = "application/json; charset=utf-8";
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// Request of a client.
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
    /// Whether the client wants the connection to end with the answer.
    pub(crate) last: bool,
}

/// Reads a request; `None` when there is none any more.
pub(crate) fn receive(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = words.next().zip(words.next()).unwrap_or_default();
    let (mut length, mut chunked, mut last) = (0, false, false);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => last = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let mut body = Vec::new();
    while chunked {
        line.clear();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        reader.take(size).read_to_end(&mut body)?;
        reader.read_line(&mut line)?;
        chunked = size > 0;
    }
    reader.take(length).read_to_end(&mut body)?;
    Ok(Some(Request {
        method,
        path: path.split('?').next().unwrap_or_default().to_owned(),
        body,
        last,
    }))
}

/// Where an answer goes.
pub(crate) struct Out {
    pub(crate) stream: TcpStream,
    /// Before each piece of a stream.
    pub(crate) pause: Option<Duration>,
}

impl Out {
    /// Answers at once.
    pub(crate) fn whole(&mut self, status: u16, kind: &str, body: &str) -> io::Result<()> {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} Stand-in\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        );
        self.stream.write_all(format!("{head}{body}").as_bytes())
    }

    /// Answers with an object.
    pub(crate) fn json(&mut self, status: u16, body: &Value) -> io::Result<()> {
        self.whole(status, JSON, &body.to_string())
    }

    /// An answer in pieces, each of which is on its way before the next is made.
    pub(crate) fn pieces(
        &mut self,
        kind: &str,
        pieces: impl IntoIterator<Item = String>,
    ) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes())?;
        for piece in pieces {
            if let Some(pause) = self.pause {
                thread::sleep(pause);
            }
            let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
            self.stream.write_all(chunk.as_bytes())?;
        }
        self.stream.write_all(b"0\r\n\r\n")
    }

    /// Answers with an object a line.
    pub(crate) fn lines(&mut self, objects: impl IntoIterator<Item = Value>) -> io::Result<()> {
        let lines = objects.into_iter().map(|object| format!("{object}\n"));
        self.pieces("application/x-ndjson", lines)
    }
}
