//! Answers of a peer that may lie, on their way to a caller: of a node, or of a program in a sandbox.
//!
//! A few headers pass by name, and an error as a problem of a kind that the peer may have. Everything else is left out:
//! such a peer can set no cookie, have a browser run nothing, and say nothing about a caller's credentials.

use super::request::parse_json;
use crate::{
    api::{
        problem::{Problem, ProblemBody, ProblemKind, truncated},
        sandboxes::files::MODE_HEADER,
    },
    range::UploadPart,
    text::clean,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

/// Headers of a success that pass.
const PASSED_HEADERS: [HeaderName; 7] = [
    header::ACCEPT_RANGES,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    HeaderName::from_static(MODE_HEADER),
];
/// Longest value of a header that passes, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024;
/// Media types that pass. A browser may run others, such as HTML.
const MEDIA_TYPES: [&str; 3] = [
    "application/json",
    "application/octet-stream",
    "application/x-tar",
];
/// Statuses of a success.
const SUCCESSES: [StatusCode; 4] = [
    StatusCode::OK,
    StatusCode::CREATED,
    StatusCode::NO_CONTENT,
    StatusCode::PARTIAL_CONTENT,
];
/// Most bytes of the body of an error.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// Whether a status is a success that passes.
pub fn is_success(status: StatusCode) -> bool {
    SUCCESSES.contains(&status)
}

/// Headers of a success that pass; `None` where one of them is longer than any that is meant. `more_types` are media types
/// that pass beside those of files.
pub fn passed_headers(headers: &HeaderMap, more_types: &[&str]) -> Option<HeaderMap> {
    let mut passed = HeaderMap::new();
    for name in PASSED_HEADERS {
        // The first counts, as everywhere.
        let Some(value) = headers.get(&name) else {
            continue;
        };
        if value.len() > MAX_VALUE_BYTES {
            return None;
        }
        passed.insert(name, value.clone());
    }
    if let Some(content_type) = passed.get_mut(header::CONTENT_TYPE) {
        let media_type = content_type.to_str().unwrap_or_default();
        if !MEDIA_TYPES.contains(&media_type) && !more_types.contains(&media_type) {
            *content_type = HeaderValue::from_static("application/octet-stream");
        }
    }
    let nosniff = HeaderValue::from_static("nosniff");
    passed.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Some(passed)
}

/// Body of an error; empty where it can't be read or is too long.
pub async fn error_body(body: Incoming) -> Bytes {
    let read = Limited::new(body, MAX_ERROR_BYTES).collect().await;
    read.map(|read| read.to_bytes()).unwrap_or_default()
}

/// Problem of the kind and text of an error; `None` where its kind is not one of these, or has another status.
pub fn known_problem(status: StatusCode, body: &[u8], kinds: &[ProblemKind]) -> Option<Problem> {
    let answered = parse_json::<ProblemBody>(body).ok()?;
    let is_kind =
        |kind: &&ProblemKind| kind.slug() == answered.slug() && kind.status() == status.as_u16();
    let kind = *kinds.iter().find(is_kind)?;
    Some(Problem::new(kind, truncated(clean(&answered.detail))))
}

/// Same problem with the size of the content in `Content-Range`, where a range is refused and the peer names that size.
pub fn with_size(problem: Problem, headers: &HeaderMap) -> Problem {
    if problem.kind != ProblemKind::RangeNotSatisfiable {
        return problem;
    }
    let value = headers.get(header::CONTENT_RANGE);
    let value = value.and_then(|value| value.to_str().ok());
    // The same form as that of an upload which asks how much has arrived.
    match value.and_then(UploadPart::parse) {
        Some(UploadPart::Query { total }) => {
            problem.with_header("content-range", format!("bytes */{total}"))
        }
        _ => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_size_of_refused_range_passes() {
        let sized = |kind, value| {
            let headers = headers(&[("content-range", value), ("set-cookie", "a=b")]);
            with_size(Problem::new(kind, "x"), &headers)
                .extras
                .headers
                .clone()
        };
        let refused = ProblemKind::RangeNotSatisfiable;
        let expected = [("content-range", "bytes */10".to_owned())];
        assert_eq!(sized(refused, " bytes */10 "), expected);
        assert!(sized(refused, "bytes */x").is_empty());
        assert!(sized(refused, "bytes 0-1/10").is_empty());
        assert!(sized(ProblemKind::NotFound, "bytes */10").is_empty());
    }

    #[test]
    fn few_headers_pass() {
        let sent = headers(&[
            ("set-cookie", "a=b"),
            ("location", "http://evil.example"),
            ("content-type", "text/html"),
            ("content-length", "5"),
            ("x-request-id", "x"),
            ("www-authenticate", "Basic"),
            ("cynode-file-mode", "0644"),
        ]);
        let passed = passed_headers(&sent, &[]).unwrap();
        let mut names: Vec<_> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "content-length",
                "content-type",
                "cynode-file-mode",
                "x-content-type-options"
            ]
        );
        assert_eq!(passed[header::CONTENT_TYPE], "application/octet-stream");
        let events = headers(&[("content-type", "text/event-stream")]);
        let passed = passed_headers(&events, &["text/event-stream"]).unwrap();
        assert_eq!(passed[header::CONTENT_TYPE], "text/event-stream");
        let long = HeaderValue::from_str(&"x".repeat(MAX_VALUE_BYTES + 1)).unwrap();
        let long = HeaderMap::from_iter([(header::ETAG, long)]);
        assert_eq!(passed_headers(&long, &[]), None);
    }
}
