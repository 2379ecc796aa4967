//! Responses: JSON, plain text, problems, and streams of lines or server-sent events.

use crate::api::{
    error::ApiError,
    problem::{Problem, ProblemKind},
};
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll},
};

static X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Body of every response. Its error cuts the connection, so that no client takes what it has for the whole.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
/// Response of a handler.
pub type Response = http::Response<Body>;
/// Result of a handler.
pub type Reply = Result<Response, ApiError>;

/// Body that is complete.
pub(super) fn whole(body: impl Into<Bytes>) -> Body {
    let never = |error: Infallible| match error {};
    Full::new(body.into()).map_err(never).boxed_unsync()
}

pub(super) fn with(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response {
    let mut response = http::Response::new(whole(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// `value` as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    let body = serde_json::to_vec(value).map_err(ApiError::internal)?;
    Ok(with(status, "application/json", body))
}

/// 200 with a body that is JSON already.
pub fn raw_json(body: impl Into<Bytes>) -> Response {
    with(StatusCode::OK, "application/json", body)
}

/// 200 with `value` as JSON.
pub fn ok(value: &impl Serialize) -> Reply {
    json(StatusCode::OK, value)
}

/// 204 without a body.
pub fn no_content() -> Reply {
    let mut response = http::Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Response of plain text.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response {
    with(status, "text/plain; charset=utf-8", body.into())
}

/// Problem with its headers, for the request with the id `instance`.
pub fn problem(problem: &Problem, instance: &str) -> Response {
    // A problem body is made of strings and numbers, which always have a JSON form.
    let body = serde_json::to_vec(&problem.body(instance)).unwrap_or_default();
    problem_as(problem, "application/problem+json", body)
}

/// Status and headers of a problem, with a body in another form.
pub fn problem_as(
    problem: &Problem,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response {
    let status =
        StatusCode::from_u16(problem.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = with(status, content_type, body);
    let headers = response.headers_mut();
    if problem.kind == ProblemKind::Unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(seconds) = problem.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(Ok(allow)) = problem.allow.as_deref().map(HeaderValue::from_str) {
        headers.insert(header::ALLOW, allow);
    }
    for (name, value) in &problem.extras.headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// 200 with a body that grows while it is read, such as `application/x-ndjson` or `text/event-stream`. Its
/// headers have proxies forward each chunk as it arrives: nginx heeds `X-Accel-Buffering`, others `no-transform`.
pub fn stream(
    content_type: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Response {
    use futures_util::StreamExt as _;
    let frames = chunks.map(|chunk| Ok(Frame::data(chunk)));
    let mut response = http::Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    forbid_buffering(headers);
    response
}

/// Has proxies forward each chunk of an answer as it arrives, and keep none.
pub fn forbid_buffering(headers: &mut HeaderMap) {
    let cache = HeaderValue::from_static("no-store, no-cache, no-transform");
    headers.insert(header::CACHE_CONTROL, cache);
    headers.insert(&X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
}

/// Body that holds a guard until it was sent or dropped.
struct GuardedBody<T> {
    body: Body,
    _guard: T,
}

impl<T: Unpin> hyper::body::Body for GuardedBody<T> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Same response, which holds `guard` until its body was handed over.
pub(super) fn hold_until_sent<T: Unpin + Send + 'static>(response: Response, guard: T) -> Response {
    response.map(|body| {
        let _guard = guard;
        GuardedBody { body, _guard }.boxed_unsync()
    })
}

/// Server-sent event. JSON contains no raw line feed, so one `data:` line is enough.
pub fn sse_event(id: &str, name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    let id = if id.is_empty() {
        String::new()
    } else {
        format!("id: {id}\n")
    };
    Bytes::from(format!("{id}event: {name}\ndata: {data}\n\n"))
}
