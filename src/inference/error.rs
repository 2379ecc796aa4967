//! Errors of our own in the shape of each API, as its clients expect them: as answers, and inside of a stream that has
//! begun.

use super::Family;
use crate::{
    api::problem::{Problem, ProblemKind},
    http::response::{self, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};

/// Answer with a problem, for the request with the id `request_id`.
pub fn render(family: Family, problem: &Problem, request_id: &str) -> Response {
    let body = body(family, problem, request_id).to_string();
    response::problem_as(problem, "application/json", body)
}

/// Answers of an API, for a router.
pub const fn renderer(family: Family) -> fn(&Problem, &str) -> Response {
    match family {
        Family::OpenAi => |problem, id| render(Family::OpenAi, problem, id),
        Family::Anthropic => |problem, id| render(Family::Anthropic, problem, id),
        Family::Ollama => |problem, id| render(Family::Ollama, problem, id),
    }
}

/// Problem as the next part of a stream that has begun and is at the end of an event or line.
pub fn in_stream(family: Family, problem: &Problem, request_id: &str) -> Bytes {
    let body = body(family, problem, request_id);
    match family {
        Family::OpenAi => format!("data: {body}\n\n"),
        Family::Anthropic => format!("event: error\ndata: {body}\n\n"),
        Family::Ollama => format!("{body}\n"),
    }
    .into()
}

fn body(family: Family, problem: &Problem, request_id: &str) -> Value {
    let message = &problem.detail;
    match family {
        Family::OpenAi => {
            let (kind, code) = openai(problem.kind);
            let param = problem.errors.first();
            let param = param.map(|error| error.pointer.trim_start_matches("#/"));
            json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
        }
        Family::Anthropic => json!({
            "type": "error",
            "error": {"type": anthropic(problem.kind), "message": message},
            "request_id": request_id,
        }),
        Family::Ollama => json!({"error": message}),
    }
}

/// Type and code in OpenAI's API.
fn openai(kind: ProblemKind) -> (&'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    match kind {
        ProblemKind::Unauthorized => (INVALID, Some("invalid_api_key")),
        ProblemKind::Forbidden => (INVALID, Some("insufficient_permissions")),
        ProblemKind::ModelNotFound => (INVALID, Some("model_not_found")),
        ProblemKind::PayloadTooLarge => (INVALID, Some("payload_too_large")),
        _ => match kind.status() {
            429 => ("rate_limit_error", Some("rate_limit_exceeded")),
            504 => ("server_error", Some("timeout")),
            503 => ("server_error", Some("unavailable")),
            502 => ("server_error", Some("upstream_error")),
            500.. => ("server_error", None),
            _ => (INVALID, None),
        },
    }
}

/// Type in Anthropic's API.
fn anthropic(kind: ProblemKind) -> &'static str {
    match kind.status() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_gets_its_own_shape() {
        let problem = Problem::new(ProblemKind::ModelNotFound, "no \"x\"").about("model");
        assert_eq!(
            body(Family::OpenAi, &problem, "r1"),
            json!({"error": {
                "message": "no \"x\"", "type": "invalid_request_error", "param": "model", "code": "model_not_found"
            }})
        );
        assert_eq!(
            body(Family::Anthropic, &problem, "r1"),
            json!({
                "type": "error",
                "error": {"type": "not_found_error", "message": "no \"x\""},
                "request_id": "r1",
            })
        );
        assert_eq!(
            body(Family::Ollama, &problem, "r1"),
            json!({"error": "no \"x\""})
        );
    }

    #[test]
    fn every_kind_has_a_type() {
        for kind in ProblemKind::ALL {
            let (is_server, status) = (kind.status() >= 500, kind.status());
            let (openai, anthropic) = (openai(*kind).0, anthropic(*kind));
            assert_eq!(openai == "server_error", is_server, "{kind:?}");
            let is_fault = ["api_error", "overloaded_error", "timeout_error"].contains(&anthropic);
            assert_eq!(is_fault, is_server, "{kind:?} {status}");
        }
    }

    #[test]
    fn errors_in_streams_are_whole_events() {
        let problem = Problem::new(ProblemKind::Unavailable, "line\nline");
        for (family, start, end) in [
            (Family::OpenAi, "data: {\"error\"", "}\n\n"),
            (Family::Anthropic, "event: error\ndata: {", "}\n\n"),
            (Family::Ollama, "{\"error\":\"line\\nline\"}", "}\n"),
        ] {
            let event = in_stream(family, &problem, "r1");
            let text = str::from_utf8(&event).unwrap();
            assert!(text.starts_with(start) && text.ends_with(end), "{text}");
        }
    }
}
