//! One hop of a call on its way to a model server: the headers that pass, and the bodies of both directions, whose
//! chunks pass as they come and are not copied.
//!
//! Headers pass by name, since anything may stand in the others: credentials on the way there, cookies on the way back.

use super::Endpoint;
use crate::http::{
    client::CallBody,
    response::{self, Body, Response},
};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use std::io;

/// Header of an answer of a node that could not pass a call on; its value is the reason.
pub const FAULT_HEADER: &str = "cynode-fault";
/// Reason of a node whose model server does not answer, or that has none: it has not acted.
pub const UPSTREAM_UNREACHABLE: &str = "upstream-unreachable";
/// Reason of a node whose model server broke off before its answer began.
pub const UPSTREAM_FAILED: &str = "upstream-failed";

/// Headers of requests that pass. `Accept-Encoding` does not: token counts are read from plain answers.
const REQUEST_HEADERS: [HeaderName; 3] = [header::CONTENT_TYPE, header::ACCEPT, header::USER_AGENT];
/// Headers of answers that pass.
const RESPONSE_HEADERS: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::RETRY_AFTER,
];
/// Begins of the names of headers of the APIs themselves, which pass both ways.
const API_HEADERS: [&str; 2] = ["openai-", "anthropic-"];
/// Media types of answers that pass. A browser may run others, such as HTML.
const MEDIA_TYPES: [&str; 4] = [
    "application/json",
    "application/x-ndjson",
    "text/event-stream",
    "text/plain",
];

/// Headers of a request that pass to the next hop.
pub fn request_headers(headers: &HeaderMap) -> HeaderMap {
    select(headers, &REQUEST_HEADERS)
}

/// Headers of an answer that pass back.
pub fn response_headers(headers: &HeaderMap) -> HeaderMap {
    let mut passed = select(headers, &RESPONSE_HEADERS);
    if let Some(content_type) = passed.get_mut(header::CONTENT_TYPE)
        && !is_plain(content_type)
    {
        *content_type = HeaderValue::from_static("application/octet-stream");
    }
    let nosniff = HeaderValue::from_static("nosniff");
    passed.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    passed
}

fn select(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let passes = |name: &HeaderName| {
        let is_of_api = |begin: &&str| name.as_str().starts_with(*begin);
        names.contains(name) || API_HEADERS.iter().any(is_of_api)
    };
    let passed = headers.iter().filter(|(name, _)| passes(name));
    passed
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn is_plain(content_type: &HeaderValue) -> bool {
    let media_type = content_type.to_str().unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    let mut allowed = MEDIA_TYPES.iter();
    allowed.any(|allowed| media_type.eq_ignore_ascii_case(allowed))
}

/// Request for the next hop: at `url`, with these headers, and with a body of `length` bytes where that is known.
pub fn request(
    endpoint: Endpoint,
    url: &str,
    headers: HeaderMap,
    length: Option<u64>,
    body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> http::Result<http::Request<CallBody>> {
    let mut request = http::Request::builder()
        .method(endpoint.method())
        .uri(url)
        .body(StreamBody::new(body.map_ok(Frame::data)).boxed_unsync())?;
    *request.headers_mut() = headers;
    if let Some(length) = length.filter(|_| endpoint.names_model()) {
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(request)
}

/// Answer of the next hop as the answer of this one. A body that breaks off there is cut here, too.
pub fn response(answer: http::Response<Incoming>) -> Response {
    let (parts, body) = answer.into_parts();
    let body = body.map_err(io::Error::other).boxed_unsync();
    assemble(parts.status, response_headers(&parts.headers), body)
}

/// Answer with these headers. What is streamed must not be held up on its way.
pub fn assemble(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut answer = http::Response::new(body);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    response::forbid_buffering(answer.headers_mut());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn credentials_do_not_reach_model_servers() {
        let sent = headers(&[
            ("authorization", "Bearer secret"),
            ("x-api-key", "secret"),
            ("cookie", "secret"),
            ("origin", "http://evil.example"),
            ("host", "laptop"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("accept-encoding", "gzip"),
            ("content-type", "application/json"),
            ("anthropic-version", "2023-06-01"),
            ("openai-beta", "x"),
        ]);
        let passed = request_headers(&sent);
        let mut names: Vec<_> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["anthropic-version", "content-type", "openai-beta"]);
    }

    #[test]
    fn answers_set_no_cookies_and_no_html() {
        let sent = headers(&[
            ("set-cookie", "session=evil"),
            ("content-type", "text/html"),
            ("content-length", "5"),
            ("access-control-allow-origin", "*"),
            ("connection", "close"),
            ("location", "http://evil.example"),
        ]);
        let passed = response_headers(&sent);
        assert_eq!(passed[header::CONTENT_TYPE], "application/octet-stream");
        assert_eq!(passed[header::CONTENT_LENGTH], "5");
        assert_eq!(passed[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(passed.len(), 3, "{passed:?}");
        let events = response_headers(&headers(&[("content-type", "text/event-stream; x=y")]));
        assert_eq!(events[header::CONTENT_TYPE], "text/event-stream; x=y");
    }
}
