//! Answers of the file server, which comes from inside a sandbox: as little of them passes as a client needs.

use crate::{
    api::problem::{Problem, ProblemKind},
    http::untrusted,
};
use http::{HeaderValue, StatusCode, header, response};

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

/// Head of a success, as it passes. Fails with 502 on what no file server answers.
pub(super) fn success_head(answer: &response::Parts) -> Result<response::Parts, Problem> {
    let passed = untrusted::passed_headers(&answer.headers, &[]);
    let passed = passed.filter(|_| untrusted::is_success(answer.status));
    let (mut head, ()) = http::Response::new(()).into_parts();
    head.status = answer.status;
    head.headers = passed.ok_or_else(broken)?;
    let no_store = HeaderValue::from_static("private, no-store");
    head.headers.insert(header::CACHE_CONTROL, no_store);
    Ok(head)
}

/// Problem for an error of the file server: of the same kind and text, where both are such as it may have.
pub(super) fn problem(status: StatusCode, body: &[u8]) -> Problem {
    untrusted::known_problem(status, body, &KINDS).unwrap_or_else(broken)
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
    use crate::http::untrusted::MAX_VALUE_BYTES;
    use http::HeaderName;
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
