//! Responses whose body is a file of any size, or a range of it.

use super::{
    request::Request,
    response::{Body, Reply},
};
use crate::{
    api::problem::{Problem, ProblemKind},
    range::{Requested, requested},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc};
use tokio::task::spawn_blocking;

/// Bytes that are read at a time.
const BLOCK_BYTES: u64 = 256 * 1024;

/// File that is sent.
pub struct FileContent {
    /// The open file.
    pub file: File,
    /// Its size, which must not change.
    pub size: u64,
    /// SHA-256 of the content, its `ETag`, where it is known.
    pub sha256: Option<String>,
}

/// 200 with a file, or 206 with the range that the request asks for. Fails with 416 where that begins beyond the end.
///
/// The browser of a user must not run what a job wrote, so the bytes have no type of their own. A body that can't be
/// read to its end is cut, which a client sees by its length.
pub fn file(request: &Request, content: FileContent) -> Reply {
    let FileContent { file, size, sha256 } = content;
    let etag = sha256.map(|sha256| format!("\"{sha256}\""));
    let is_same = |condition: &str| etag.as_deref() == Some(condition.trim());
    // With another version in mind, the client wants all of this one.
    let range = request
        .header(header::RANGE.as_str())
        .filter(|_| request.header("if-range").is_none_or(is_same));
    let (status, range) = match requested(range, size) {
        Requested::Whole => (StatusCode::OK, 0..size),
        Requested::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Requested::Unsatisfiable => {
            let detail = format!("the content has {size} bytes; ask for a range that begins in it");
            return Err(Problem::new(ProblemKind::RangeNotSatisfiable, detail)
                .with_header("content-range", format!("bytes */{size}"))
                .into());
        }
    };
    let length = range.end - range.start;
    let content_range = format!("bytes {}-{}/{size}", range.start, range.end.max(1) - 1);
    let mut response = http::Response::new(body(file, range));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let octets = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, octets);
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    let no_store = HeaderValue::from_static("private, no-store");
    headers.insert(header::CACHE_CONTROL, no_store);
    if let Some(Ok(etag)) = etag.map(HeaderValue::try_from) {
        headers.insert(header::ETAG, etag);
    }
    if let (StatusCode::PARTIAL_CONTENT, Ok(range)) = (status, HeaderValue::try_from(content_range))
    {
        headers.insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

fn body(file: File, range: Range<u64>) -> Body {
    StreamBody::new(blocks(file, range)).boxed_unsync()
}

/// Blocks of a file, each read on a blocking thread once the one before is sent.
fn blocks(
    file: File,
    range: Range<u64>,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static {
    stream::unfold((Arc::new(file), range), async |(file, range)| {
        let length = (range.end - range.start).min(BLOCK_BYTES);
        if length == 0 {
            return None;
        }
        let (source, start) = (Arc::clone(&file), range.start);
        let read = spawn_blocking(move || read_block(&source, start, length)).await;
        let block = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        match block {
            Ok(block) => Some((Ok(Frame::data(block)), (file, start + length..range.end))),
            Err(error) => {
                tracing::warn!(%error, "file can't be read to its end; answer cut");
                None
            }
        }
    })
}

fn read_block(file: &File, start: u64, length: u64) -> io::Result<Bytes> {
    let mut block = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut block, start)?;
    Ok(block.into())
}
