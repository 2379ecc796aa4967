//! Answers, as they are written to a connection that ends with them.

use crate::api::{problem::Problem, sandboxes::files::MODE_HEADER};
use http::StatusCode;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use std::{
    fmt::Write as _,
    fs::{File, Metadata},
    io::{self, Read as _, Write},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
};

/// Bytes of a chunk of an answer whose length is not known.
const CHUNK_BYTES: usize = 256 << 10;

/// Writer of a body of unknown length. Its error cuts the answer.
pub(super) type WriteBody = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()>>;

/// Answer to a request.
pub(super) enum Answer {
    /// Status alone.
    Empty(StatusCode),
    /// 200 with JSON.
    Json(Vec<u8>),
    /// 200 with a file, of the metadata that it had when it was opened.
    File(File, Metadata),
    /// 200 with a tar archive that is made while it is sent.
    Archive(WriteBody),
}

impl Answer {
    /// Writes the answer; without its body where the request was a HEAD.
    pub(super) fn send(self, output: &UnixStream, is_head: bool) -> io::Result<()> {
        match self {
            Self::Empty(StatusCode::NO_CONTENT) => send(output, StatusCode::NO_CONTENT, "", b""),
            Self::Empty(status) => send_whole(output, status, "", &[], is_head),
            Self::Json(body) => {
                let fields = "content-type: application/json\r\n";
                send_whole(output, StatusCode::OK, fields, &body, is_head)
            }
            Self::File(file, metadata) => send_file(output, file, &metadata, is_head),
            Self::Archive(write) => {
                let fields = "content-type: application/x-tar\r\n";
                send_chunks(output, fields, write, is_head)
            }
        }
    }
}

/// Writes a problem as the answer to the request with this id.
pub(super) fn send_problem(
    output: &UnixStream,
    problem: &Problem,
    id: &str,
    is_head: bool,
) -> io::Result<()> {
    let status = StatusCode::from_u16(problem.kind.status());
    // A problem body is made of strings and numbers, which always have a JSON form.
    let body = serde_json::to_vec(&problem.body(id)).unwrap_or_default();
    let mut fields = "content-type: application/problem+json\r\n".to_owned();
    if let Some(allow) = &problem.allow {
        let _ = write!(fields, "allow: {allow}\r\n");
    }
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    send_whole(output, status, &fields, &body, is_head)
}

fn send(mut output: &UnixStream, status: StatusCode, fields: &str, body: &[u8]) -> io::Result<()> {
    let (code, reason) = (
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
    );
    let head = format!("HTTP/1.1 {code} {reason}\r\nconnection: close\r\n{fields}\r\n");
    output.write_all(&[head.as_bytes(), body].concat())
}

fn send_whole(
    output: &UnixStream,
    status: StatusCode,
    fields: &str,
    body: &[u8],
    is_head: bool,
) -> io::Result<()> {
    let fields = format!("{fields}content-length: {}\r\n", body.len());
    send(output, status, &fields, if is_head { b"" } else { body })
}

/// Sends a file as it is: a browser of its owner must not run it, and no proxy may keep it.
fn send_file(
    mut output: &UnixStream,
    mut file: File,
    metadata: &Metadata,
    is_head: bool,
) -> io::Result<()> {
    let mut fields = format!(
        "content-type: application/octet-stream\r\nx-content-type-options: nosniff\r\n\
         cache-control: private, no-store\r\n{MODE_HEADER}: {:04o}\r\n",
        metadata.mode() & 0o7777
    );
    let modified = Timestamp::from_second(metadata.mtime());
    let modified = modified.map(|time| DateTimePrinter::new().timestamp_to_rfc9110_string(&time));
    // A time that has no such form is left out.
    if let Ok(Ok(modified)) = modified {
        let _ = write!(fields, "last-modified: {modified}\r\n");
    }
    let size = metadata.size();
    if size == 0 {
        // Files of /proc and /sys say that they are empty.
        let copy = move |output: &mut dyn Write| io::copy(&mut file, output).map(drop);
        return send_chunks(output, &fields, Box::new(copy), is_head);
    }
    let _ = write!(fields, "content-length: {size}\r\n");
    send(output, StatusCode::OK, &fields, b"")?;
    if is_head {
        return Ok(());
    }
    // Inside of the kernel. A file that has become shorter cuts the answer.
    let sent = io::copy(&mut (&file).take(size), &mut output)?;
    if sent < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn send_chunks(
    output: &UnixStream,
    fields: &str,
    write: WriteBody,
    is_head: bool,
) -> io::Result<()> {
    let fields = format!("{fields}transfer-encoding: chunked\r\n");
    send(output, StatusCode::OK, &fields, b"")?;
    if is_head {
        return Ok(());
    }
    let mut chunks = ChunkWriter {
        output,
        buffer: Vec::with_capacity(CHUNK_BYTES),
    };
    write(&mut chunks)?;
    chunks.flush()?;
    chunks.output.write_all(b"0\r\n\r\n")
}

/// Writer of a body in chunks.
struct ChunkWriter<'a> {
    output: &'a UnixStream,
    buffer: Vec<u8>,
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        write!(self.output, "{:x}\r\n", self.buffer.len())?;
        self.buffer.extend_from_slice(b"\r\n");
        self.output.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
