//! Answers of the file server, which comes from inside a sandbox: as little of them passes as a client needs.

use crate::{
    api::{
        problem::{Problem, ProblemBody, ProblemKind, truncated},
        sandboxes::files::MODE_HEADER,
    },
    http::request::parse_json,
    text::clean,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

/// Headers of a success that pass.
const PASSED_HEADERS: [HeaderName; 8] = [
    header::ACCEPT_RANGES,
    header::CONTENT_DISPOSITION,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    HeaderName::from_static(MODE_HEADER),
];
/// Longest value of a header that passes, in bytes.
const MAX_VALUE_BYTES: usize = 1024;
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
/// Kinds of problems that a file server may have. Others say something about a caller's credentials or this node.
const KINDS: [ProblemKind; 10] = [
    ProblemKind::InvalidRequest,
    ProblemKind::Forbidden,
    ProblemKind::NotFound,
    ProblemKind::MethodNotAllowed,
    ProblemKind::Conflict,
    ProblemKind::PayloadTooLarge,
    ProblemKind::RangeNotSatisfiable,
    ProblemKind::UnsupportedMediaType,
    ProblemKind::InsufficientStorage,
    ProblemKind::SandboxFailed,
];
/// Most bytes of the body of an error.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// Head of a success, as it passes. Fails with 502 on what no file server answers.
pub(super) fn success_head(answer: &response::Parts) -> Result<response::Parts, Problem> {
    if !SUCCESSES.contains(&answer.status) {
        return Err(broken());
    }
    let (mut head, ()) = http::Response::new(()).into_parts();
    head.status = answer.status;
    head.headers = passed(&answer.headers)?;
    Ok(head)
}

fn passed(headers: &HeaderMap) -> Result<HeaderMap, Problem> {
    let mut passed = HeaderMap::new();
    for name in PASSED_HEADERS {
        // The first counts, as everywhere.
        let Some(value) = headers.get(&name) else {
            continue;
        };
        if value.len() > MAX_VALUE_BYTES {
            return Err(broken());
        }
        passed.insert(name, value.clone());
    }
    if let Some(content_type) = passed.get_mut(header::CONTENT_TYPE)
        && !is_plain(content_type)
    {
        *content_type = HeaderValue::from_static("application/octet-stream");
    }
    let nosniff = HeaderValue::from_static("nosniff");
    passed.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let no_store = HeaderValue::from_static("private, no-store");
    passed.insert(header::CACHE_CONTROL, no_store);
    Ok(passed)
}

fn is_plain(content_type: &HeaderValue) -> bool {
    let media_type = content_type.to_str().unwrap_or_default();
    MEDIA_TYPES.contains(&media_type)
}

/// Beginning of the body of an error; empty where it can't be read or is too long.
pub(super) async fn read_error_body(body: Incoming) -> Bytes {
    let read = Limited::new(body, MAX_ERROR_BYTES).collect().await;
    read.map(|read| read.to_bytes()).unwrap_or_default()
}

/// Problem for an error of the file server: of the same kind and text, where both are such as it may have.
pub(super) fn problem(status: StatusCode, body: &[u8]) -> Problem {
    let Ok(answered) = parse_json::<ProblemBody>(body) else {
        return broken();
    };
    let kind = KINDS
        .into_iter()
        .find(|kind| kind.slug() == answered.slug() && kind.status() == status.as_u16());
    match kind {
        Some(kind) => Problem::new(kind, truncated(clean(&answered.detail))),
        None => broken(),
    }
}

/// Problem of a file server that hangs up or answers what no file server does.
pub(super) fn broken() -> Problem {
    Problem::new(
        ProblemKind::SandboxFailed,
        "the file server in the sandbox broke off, or sent no valid answer; check that the sandbox has memory and processes left, then repeat the call",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn head(status: u16, headers: &[(&'static str, &str)]) -> response::Parts {
        let (mut head, ()) = http::Response::new(()).into_parts();
        head.status = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            let name = HeaderName::from_static(name);
            head.headers.insert(name, value.parse().unwrap());
        }
        head
    }

    #[test]
    fn few_headers_of_sandbox_pass() {
        let answer = head(
            200,
            &[
                ("content-type", "text/html"),
                ("content-length", "5"),
                ("cynode-file-mode", "0644"),
                ("etag", "\"1\""),
                ("set-cookie", "a=b"),
                ("www-authenticate", "Basic"),
                ("location", "http://evil.example"),
                ("x-request-id", "x"),
                ("cache-control", "public"),
            ],
        );
        let passed = success_head(&answer).unwrap().headers;
        let mut passed: Vec<_> = passed
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        passed.sort_unstable();
        assert_eq!(
            passed,
            [
                "cache-control: private, no-store",
                "content-length: 5",
                "content-type: application/octet-stream",
                "cynode-file-mode: 0644",
                "etag: \"1\"",
                "x-content-type-options: nosniff",
            ]
        );
        let long = "x".repeat(MAX_VALUE_BYTES + 1);
        for answer in [head(203, &[]), head(200, &[("etag", &long)])] {
            assert_eq!(success_head(&answer).unwrap_err(), broken());
        }
    }

    #[test]
    fn error_of_sandbox_becomes_own_problem() {
        let error = |kind: &str, detail: &str| {
            let body = json!({ "type": kind, "title": "x", "status": 1, "detail": detail });
            body.to_string().into_bytes()
        };
        let not_found = error(&ProblemKind::NotFound.uri(), "no\u{1b}[2J file");
        let passed = problem(StatusCode::NOT_FOUND, &not_found);
        let expected = Problem::new(ProblemKind::NotFound, "no [2J file");
        assert_eq!(passed, expected);
        let unauthorized = error(&ProblemKind::Unauthorized.uri(), "log in again");
        for (status, body) in [
            (401, &unauthorized[..]),
            (409, &not_found),
            (404, b"<html>"),
            (404, b""),
            (302, b"{}"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(problem(status, body), broken(), "{status}");
        }
    }
}
