//! Answers to our calls: bodies, read line by line as they arrive or whole, and what a probe reads.

use super::{
    MAX_BODY_BYTES,
    call_error::{CallError, malformed, transport},
    client::parse,
    lines::LineBuffer,
};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

/// Answer to a probe, of any status.
#[derive(Clone, Debug)]
pub struct ProbeResponse {
    /// HTTP status.
    pub status: StatusCode,
    /// `Date` header: the peer's clock.
    pub date: Option<String>,
    /// First 4 KiB of the body.
    pub body_start: String,
}

/// Successful answer whose body is not read yet.
pub struct ClientResponse {
    url: String,
    has_lines: bool,
    body: Incoming,
}

impl ClientResponse {
    pub(super) fn new(url: String, has_lines: bool, body: Incoming) -> Self {
        Self {
            url,
            has_lines,
            body,
        }
    }

    /// URL of the call.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether the body is newline-delimited JSON, not one document.
    pub fn has_lines(&self) -> bool {
        self.has_lines
    }

    /// Reads the body line by line as it arrives.
    pub fn lines(self) -> JsonLines {
        JsonLines {
            url: self.url,
            body: self.body,
            buffer: LineBuffer::default(),
        }
    }

    /// Reads the body chunk by chunk as it arrives.
    pub fn chunks(self) -> ByteStream {
        ByteStream::new(self.url, false, self.body)
    }

    /// Reads the whole body as one JSON document, without a timeout.
    pub async fn document<T: DeserializeOwned>(self) -> Result<T, CallError> {
        let bytes = collect(&self.url, self.body).await?;
        parse(&self.url, &bytes)
    }
}

/// Lines of a body that is still being sent.
pub struct JsonLines {
    url: String,
    body: Incoming,
    buffer: LineBuffer,
}

impl JsonLines {
    /// Next line as a `T`; `None` at the end.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CallError> {
        loop {
            let read = self.buffer.take_line();
            let line = read.map_err(|reason| malformed(&self.url, reason))?;
            if line.is_some() {
                return Ok(line);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.push(frame.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(error)) => return Err(transport(&self.url, error.to_string())),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(transport(&self.url, "the answer ended early")),
            }
        }
    }
}

/// Body of bytes that is still being sent.
pub struct ByteStream {
    url: String,
    is_part: bool,
    body: Incoming,
}

impl ByteStream {
    pub(super) fn new(url: String, is_part: bool, body: Incoming) -> Self {
        Self { url, is_part, body }
    }

    /// Whether these are the bytes from the one on that the call asked for, rather than all.
    pub fn is_part(&self) -> bool {
        self.is_part
    }

    /// URL of the call.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Next chunk; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(transport(&self.url, error.to_string())),
                None => return Ok(None),
            }
        }
    }
}

/// Whole body, of at most [`MAX_BODY_BYTES`].
pub(super) async fn collect(url: &str, body: Incoming) -> Result<Bytes, CallError> {
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(malformed(
            url,
            format!("it is longer than {MAX_BODY_BYTES} bytes"),
        )),
        Err(error) => Err(transport(url, error.to_string())),
    }
}
