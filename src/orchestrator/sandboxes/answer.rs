//! Answers of a node to calls that passed to it. They may be anything: of a success a few headers and the body pass, of an
//! error its kind and text, as a problem of our own.

use super::limits::PassPermit;
use crate::{
    api::problem::{Problem, ProblemKind},
    http::{
        response::{self, Body, Response},
        untrusted,
    },
};
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream};
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use std::{io, time::Duration};
use tokio::time::timeout;

/// Media type that passes beside those of files.
const EVENTS: &str = "text/event-stream";
/// Kinds of problems that a node may have with such a call. Others say something about its token or its own state.
const KINDS: [ProblemKind; 13] = [
    ProblemKind::InvalidRequest,
    ProblemKind::Forbidden,
    ProblemKind::NotFound,
    ProblemKind::MethodNotAllowed,
    ProblemKind::Conflict,
    ProblemKind::Gone,
    ProblemKind::PayloadTooLarge,
    ProblemKind::RangeNotSatisfiable,
    ProblemKind::UnsupportedMediaType,
    ProblemKind::TooManyRequests,
    ProblemKind::InsufficientStorage,
    ProblemKind::SandboxFailed,
    ProblemKind::Unavailable,
];
/// Time for the body of an error.
const ERROR_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds after which a call that a node did not answer may succeed.
pub(super) const RETRY_SECONDS: u64 = 2;

/// Success that passes, up to a number of bytes. `access_end` resolves when the caller may see no more. Fails where the
/// node of this slug sent a header that it should not.
pub(super) fn success(
    answer: http::Response<Incoming>,
    slug: &str,
    most_bytes: u64,
    access_end: BoxFuture<'static, ()>,
    permit: PassPermit,
) -> Result<Response, Problem> {
    let (head, body) = answer.into_parts();
    let headers = untrusted::passed_headers(&head.headers, &[EVENTS]);
    let headers = headers.ok_or_else(|| strange(head.status, slug))?;
    let passing = PassingBody {
        body,
        access_end,
        left: most_bytes,
        is_cut: false,
        _permit: permit,
    };
    let mut response = http::Response::new(passing.into_body());
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    response::forbid_buffering(response.headers_mut());
    Ok(response)
}

/// Body of an answer on its way.
struct PassingBody {
    body: Incoming,
    access_end: BoxFuture<'static, ()>,
    /// Bytes that may still pass.
    left: u64,
    is_cut: bool,
    _permit: PassPermit,
}

impl PassingBody {
    fn into_body(self) -> Body {
        let frames = stream::unfold(self, |mut passing| async move {
            let next = passing.next().await?;
            Some((next.map(Frame::data), passing))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.is_cut {
            return None;
        }
        let next = self.receive().await;
        self.is_cut = next.as_ref().is_some_and(Result::is_err);
        next
    }

    async fn receive(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            let frame = tokio::select! {
                biased;
                () = &mut self.access_end => {
                    return Some(Err(io::Error::other("the session or key of the caller has ended")));
                }
                frame = self.body.frame() => frame?,
            };
            let chunk = match frame {
                Ok(frame) => frame.into_data(),
                Err(error) => return Some(Err(io::Error::other(error))),
            };
            // Trailers do not pass.
            let Ok(chunk) = chunk else { continue };
            let left = self.left.checked_sub(chunk.len() as u64);
            return Some(match left {
                Some(left) => {
                    self.left = left;
                    Ok(chunk)
                }
                None => Err(io::Error::other("the node's answer is too long")),
            });
        }
    }
}

/// Problem for a failed call, from the node of this slug.
pub(super) async fn problem(answer: http::Response<Incoming>, slug: &str) -> Problem {
    let (head, body) = answer.into_parts();
    let body = timeout(ERROR_TIMEOUT, untrusted::error_body(body)).await;
    own_problem(head.status, &head.headers, &body.unwrap_or_default(), slug)
}

/// Problem of the kind and text of an error, where both are such as a node may have.
fn own_problem(status: StatusCode, headers: &HeaderMap, body: &[u8], slug: &str) -> Problem {
    let Some(mut problem) = untrusted::known_problem(status, body, &KINDS) else {
        return strange(status, slug);
    };
    problem.retry_after = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    untrusted::with_size(problem, headers)
}

/// Problem of a node without such calls, or one that answers what it should not.
fn strange(status: StatusCode, slug: &str) -> Problem {
    if matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    ) {
        let detail = format!("the node {slug} has no such call; upgrade cynode there");
        return Problem::new(ProblemKind::Conflict, detail);
    }
    let detail = format!(
        "the node {slug} answered {} where it should not; see its log, and send the call again",
        status.as_u16()
    );
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use serde_json::json;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let (name, value) = (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
            (name, value)
        });
        pairs.collect()
    }

    #[test]
    fn error_of_node_becomes_own_problem() {
        let problem = |status: u16, kind: &str| {
            let body = json!({"type": kind, "status": status, "detail": "no\u{1b}[2J file"});
            let status = StatusCode::from_u16(status).unwrap();
            let body = body.to_string();
            own_problem(
                status,
                &headers(&[("retry-after", "7")]),
                body.as_bytes(),
                "box",
            )
        };
        let passed = problem(404, &ProblemKind::NotFound.uri());
        let expected = Problem::new(ProblemKind::NotFound, "no [2J file").retry_after(7);
        assert_eq!(passed, expected);
        for (status, kind) in [
            (401, ProblemKind::Unauthorized.uri()),
            (421, ProblemKind::Misdirected.uri()),
            (500, ProblemKind::Internal.uri()),
            (410, ProblemKind::NotFound.uri()),
            (302, String::new()),
        ] {
            let passed = problem(status, &kind);
            assert_eq!(passed.kind, ProblemKind::Unavailable, "{status}");
            assert!(!passed.detail.contains("file"), "{}", passed.detail);
        }
        assert_eq!(problem(404, "").kind, ProblemKind::Conflict);
    }
}
