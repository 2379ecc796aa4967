//! Answers, as they are written to a connection that ends with them.

use crate::api::{problem::Problem, sandboxes::files::MODE_HEADER};
use http::StatusCode;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use std::{
    fmt::Write as _,
    fs::{File, Metadata},
    io::{self, Read as _, Seek as _, SeekFrom, Write},
    ops::Range,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
};

/// Bytes of a chunk of an answer whose length is not known.
const CHUNK_BYTES: usize = 256 << 10;

/// Writer of a body of unknown length. Its error cuts the answer.
pub(super) type WriteBody = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()>>;

/// File to send, of the metadata that it had when it was opened.
pub(super) struct OpenFile {
    pub(super) file: File,
    pub(super) metadata: Metadata,
    /// Part to send; `None` for all of it.
    pub(super) range: Option<Range<u64>>,
}

/// Answer to a request.
pub(super) enum Answer {
    /// Status alone.
    Empty(StatusCode),
    /// 200 with JSON.
    Json(Vec<u8>),
    /// 200 with a file, or 206 with a range of it.
    File(OpenFile),
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
            Self::File(file) => send_file(output, file, is_head),
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
    for (name, value) in &problem.extras.headers {
        let _ = write!(fields, "{name}: {value}\r\n");
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
fn send_file(mut output: &UnixStream, open: OpenFile, is_head: bool) -> io::Result<()> {
    let OpenFile {
        mut file,
        metadata,
        range,
    } = open;
    let mut fields = format!(
        "content-type: application/octet-stream\r\nx-content-type-options: nosniff\r\n\
         cache-control: private, no-store\r\n{MODE_HEADER}: {:04o}\r\n",
        metadata.mode() & 0o7777
    );
    if let Some(modified) = last_modified(&metadata) {
        let _ = write!(fields, "last-modified: {modified}\r\n");
    }
    let size = metadata.size();
    if size == 0 {
        // Files of /proc and /sys say that they are empty.
        let copy = move |output: &mut dyn Write| io::copy(&mut file, output).map(drop);
        return send_chunks(output, &fields, Box::new(copy), is_head);
    }
    let status = match &range {
        Some(range) => {
            let Range { start, end } = range;
            let last = end.saturating_sub(1);
            let _ = write!(fields, "content-range: bytes {start}-{last}/{size}\r\n");
            StatusCode::PARTIAL_CONTENT
        }
        None => StatusCode::OK,
    };
    let Range { start, end } = range.unwrap_or(0..size);
    let length = end.saturating_sub(start);
    let _ = write!(
        fields,
        "accept-ranges: bytes\r\ncontent-length: {length}\r\n"
    );
    send(output, status, &fields, b"")?;
    if is_head {
        return Ok(());
    }
    file.seek(SeekFrom::Start(start))?;
    // Inside of the kernel. A file that has become shorter cuts the answer.
    let sent = io::copy(&mut (&file).take(length), &mut output)?;
    if sent < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Value of `Last-Modified`; `None` for a time that has no such form.
pub(super) fn last_modified(metadata: &Metadata) -> Option<String> {
    let time = Timestamp::from_second(metadata.mtime()).ok()?;
    DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&time)
        .ok()
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
