//! What is said to a request that is none: a problem, as everywhere else.
//!
//! hyper answers a head that it can't read, or that is too long, by itself: with a status, and
//! without a body or a request id. There is no hook for that, so those answers are recognised on their way
//! out, and a whole one is sent in their place. They can't be mistaken: each answer of ours has
//! a request id in its head, hyper's has none, and no body of ours holds a raw carriage return.

use crate::api::problem::{Problem, ProblemKind};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

/// A connection on which hyper's own refusals become problems.
pub(super) struct Polite<S> {
    stream: S,
    /// What is sent in place of a refusal, and how much of it has been.
    instead: Option<(Vec<u8>, usize)>,
}

impl<S> Polite<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            instead: None,
        }
    }
}

/// What to send in place of this, if it is a refusal of hyper's own.
fn instead(bytes: &[u8]) -> Option<Vec<u8>> {
    if !bytes.starts_with(b"HTTP/1.") || bytes.get(9) != Some(&b'4') {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?;
    let is_bare = head.ends_with("\r\n\r\n")
        && head.contains("\r\ncontent-length: 0\r\n")
        && !head.contains("\r\nx-request-id: ");
    let problem = match status {
        _ if !is_bare => return None,
        "400" => Problem::new(
            ProblemKind::InvalidRequest,
            "not a valid HTTP/1.1 request (check for a proxy or TLS mismatch in between)",
        ),
        "414" | "431" => Problem::new(
            ProblemKind::HeadTooLarge,
            "the request line and headers are too long together; send shorter ones",
        ),
        _ => return None,
    };
    Some(raw(&problem))
}

/// A problem as it stands on the wire, after which the connection is closed.
pub(super) fn raw(problem: &Problem) -> Vec<u8> {
    let id = Uuid::now_v7().to_string();
    // A problem body is made of strings and numbers, which always have a JSON form.
    let body = serde_json::to_string(&problem.body(&id)).unwrap_or_default();
    let (status, title) = (problem.kind.status(), problem.kind.title());
    tracing::debug!(request = %id, status, "refused before a request was read");
    let length = body.len();
    let retry = problem.retry_after;
    let retry = retry.map_or_else(String::new, |seconds| format!("retry-after: {seconds}\r\n"));
    format!(
        "HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n{retry}\
         content-length: {length}\r\nx-request-id: {id}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

impl<S: AsyncRead + Unpin> AsyncRead for Polite<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Polite<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.instead.is_none() {
            this.instead = instead(bytes).map(|bytes| (bytes, 0));
        }
        let Some((whole, sent)) = &mut this.instead else {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        };
        while *sent < whole.len() {
            let n = ready!(Pin::new(&mut this.stream).poll_write(context, &whole[*sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *sent += n;
        }
        this.instead = None;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_refusal_is_one() {
        let refusal =
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let text = String::from_utf8(instead(refusal.as_bytes()).unwrap()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len())),
            "{head}"
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(head.contains(body["instance"].as_str().unwrap()));
        let large = refusal.replace("400 Bad Request", "431 Request Header Fields Too Large");
        assert!(
            instead(large.as_bytes())
                .unwrap()
                .starts_with(b"HTTP/1.1 431 ")
        );
        for ours in [
            refusal.replace("date: x", "x-request-id: y"),
            refusal.replace("400 Bad Request", "204 No Content"),
            refusal.replace("content-length: 0", "content-length: 9"),
            refusal.trim_end().to_owned(),
            format!("data: {refusal}"),
        ] {
            assert!(instead(ours.as_bytes()).is_none(), "{ours}");
        }
    }
}
