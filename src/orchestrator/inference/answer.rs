//! Answer of a model server on its way to the client: chunks pass as they come, and are only counted.
//!
//! An answer that breaks off must not look whole. Where it is a stream and stands between two events, the client gets
//! an error in the shape of its API as the last event; elsewhere the connection is cut.

use super::{
    attempt::{Begun, next_chunk},
    body::Receiving,
    metrics::Meter,
    record::{AnswerEnd, CallEnd, Subject, record},
    registry::resolve,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    http::response::{Body, Response},
    inference::{Family, error::in_stream, relay, usage::Counter},
    orchestrator::AppState,
};
use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, future::BoxFuture, stream};
use http::header;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use std::{io, sync::Arc, time::Duration};

/// Header of answers that names the node.
const NODE_HEADER: &str = "cynode-node";

/// Context of an answer.
pub(super) struct AnswerContext {
    pub(super) state: Arc<AppState>,
    pub(super) subject: Arc<Subject>,
    pub(super) family: Family,
    /// End of the session or key of the caller.
    pub(super) access_end: BoxFuture<'static, ()>,
    /// Most time between two chunks.
    pub(super) time_limit: Duration,
    pub(super) meter: Meter,
}

/// Answer that passes.
pub(super) struct Answer {
    context: AnswerContext,
    begun: Begun,
    /// Receiver of the rest of the request, which may end after the answer has begun.
    _receiving: Option<Receiving>,
    counter: Option<Counter>,
    boundary: Boundary,
    /// Bytes that are still to come, where the answer announces its length.
    left: Option<u64>,
    ended: Ended,
}

/// State of the end of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Not,
    Complete,
    Cut,
}

/// Place in an answer that is a stream.
struct Boundary {
    /// End of an event or line; `None` where the answer is no stream.
    mark: Option<&'static [&'static [u8]]>,
    /// Last bytes that have passed.
    last: [u8; 4],
}

impl Answer {
    pub(super) fn new(context: AnswerContext, begun: Begun, receiving: Option<Receiving>) -> Self {
        let node = &begun.permit.node.slug;
        context.meter.record_first_byte(node, begun.status);
        let content_type = begun.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default();
        let is_plain = !begun.headers.contains_key(header::CONTENT_ENCODING);
        let counter = Counter::new(content_type).filter(|_| is_plain);
        let left = begun.headers.get(header::CONTENT_LENGTH);
        let left = left.and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            boundary: Boundary::new(content_type),
            counter,
            context,
            begun,
            _receiving: receiving,
            left,
            ended: if left == Some(0) {
                Ended::Complete
            } else {
                Ended::Not
            },
        }
    }

    /// Whole response: head and body.
    pub(super) fn response(self) -> Response {
        let mut headers = self.begun.headers.clone();
        if self.boundary.mark.is_some() {
            // An error may follow.
            headers.remove(header::CONTENT_LENGTH);
        }
        if let Ok(node) = self.begun.permit.node.slug.parse() {
            headers.insert(NODE_HEADER, node);
        }
        relay::assemble(self.begun.status, headers, body(self.chunks()))
    }

    /// Status of the answer.
    pub(super) fn status(&self) -> http::StatusCode {
        self.begun.status
    }

    /// Records that the client can't have this answer.
    pub(super) fn record_failure(&mut self) {
        self.context.meter.record_failure();
    }

    /// API of the call.
    pub(super) fn family(&self) -> Family {
        self.context.family
    }

    /// Id of the request.
    pub(super) fn request_id(&self) -> &str {
        &self.context.subject.request_id
    }

    /// Whether the answer is a stream of server-sent events.
    pub(super) fn has_events(&self) -> bool {
        self.boundary.mark == Some(Boundary::EVENTS)
    }

    /// Rest of the answer that has not passed, for one that is read rather than passed.
    pub(super) async fn read(mut self, limit: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < limit
            && let Some(Ok(chunk)) = self.next().await
        {
            bytes.extend_from_slice(&chunk[..chunk.len().min(limit - bytes.len())]);
        }
        bytes
    }

    /// Chunks of the answer; the last one may be an error.
    pub(super) fn chunks(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::unfold(self, |mut answer| async move {
            let next = answer.next().await?;
            Some((next, answer))
        })
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.ended != Ended::Not {
            return None;
        }
        match self.receive().await {
            Ok(Some(chunk)) => {
                if let Some(counter) = &mut self.counter {
                    counter.feed(&chunk);
                }
                self.boundary.pass(&chunk);
                self.count(chunk.len());
                Some(Ok(chunk))
            }
            Ok(None) => {
                self.ended = Ended::Complete;
                None
            }
            Err(_) if self.has_last_event() && self.boundary.is_at() => {
                self.ended = Ended::Complete;
                None
            }
            Err(problem) => {
                self.ended = Ended::Cut;
                self.context.meter.record_failure();
                tracing::debug!(reason = problem.detail, "answer of a model cut off");
                let AnswerContext {
                    family, subject, ..
                } = &self.context;
                Some(if self.boundary.is_at() {
                    Ok(in_stream(*family, &problem, &subject.request_id))
                } else {
                    Err(io::Error::other(problem.detail))
                })
            }
        }
    }

    /// Whether nothing of use can follow: a client may close now.
    fn has_last_event(&self) -> bool {
        self.counter.as_ref().is_some_and(Counter::has_ended)
    }

    /// Notes the end of an answer that announced its length: nobody asks for what follows.
    fn count(&mut self, length: usize) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(length as u64);
            if *left == 0 {
                self.ended = Ended::Complete;
            }
        }
    }

    /// Next chunk from the node; `None` at the end of the answer.
    async fn receive(&mut self) -> Result<Option<Bytes>, Problem> {
        if let Some(first) = self.begun.first.take() {
            return match (&mut self.context.access_end).now_or_never() {
                Some(()) => Err(access_ended()),
                None => Ok(Some(first)),
            };
        }
        let timeout = self.context.time_limit;
        tokio::select! {
            biased;
            () = &mut self.context.access_end => Err(access_ended()),
            chunk = next_chunk(&mut self.begun.rest) => {
                chunk.map_err(|_| broke_off(&self.begun.permit.node.slug))
            }
            () = tokio::time::sleep(timeout) => Err(stalled(timeout)),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let usage = self.counter.as_ref().map(Counter::usage);
        let ended = match self.ended {
            Ended::Not if self.has_last_event() => AnswerEnd::Complete,
            Ended::Not => AnswerEnd::ClientLeft,
            Ended::Complete => AnswerEnd::Complete,
            Ended::Cut => AnswerEnd::BrokeOff,
        };
        let AnswerContext {
            state,
            subject,
            meter,
            ..
        } = &mut self.context;
        let (node, status) = (&self.begun.permit.node, self.begun.status);
        let is_complete = ended == AnswerEnd::Complete;
        let end = CallEnd {
            node: &node.slug,
            model: &resolve(node, &subject.model),
            usage: usage.unwrap_or_default(),
            ended: if is_complete && !status.is_success() {
                AnswerEnd::Failed(status)
            } else {
                ended
            },
            took: meter.elapsed(),
        };
        meter.record_answer(end.node, status, end.usage, is_complete);
        record(state, subject, &end);
    }
}

impl Boundary {
    const EVENTS: &'static [&'static [u8]] = &[b"\n\n", b"\r\n\r\n", b"\r\r"];
    const LINES: &'static [&'static [u8]] = &[b"\n"];

    fn new(content_type: &str) -> Self {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let mark = match media_type.to_ascii_lowercase().as_str() {
            "text/event-stream" => Some(Self::EVENTS),
            "application/x-ndjson" => Some(Self::LINES),
            _ => None,
        };
        Self {
            mark,
            last: *b"\n\n\n\n",
        }
    }

    fn pass(&mut self, chunk: &[u8]) {
        let tail = &chunk[chunk.len().saturating_sub(self.last.len())..];
        self.last.rotate_left(tail.len());
        let kept = self.last.len() - tail.len();
        self.last[kept..].copy_from_slice(tail);
    }

    /// Whether the answer is a stream and stands between two events.
    fn is_at(&self) -> bool {
        let mut marks = self.mark.unwrap_or_default().iter();
        marks.any(|mark| self.last.ends_with(mark))
    }
}

/// Body of these chunks.
pub(super) fn body(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    use futures_util::TryStreamExt as _;
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

/// Problem of a caller whose session or key ended meanwhile.
pub(super) fn access_ended() -> Problem {
    Problem::unauthorized("your session or key ended meanwhile; log in again, or use another key")
}

fn broke_off(slug: &str) -> Problem {
    let detail = format!(
        "the answer from the node {slug} broke off: the node or its model server ended; send the request again"
    );
    Problem::new(ProblemKind::ModelServerFailed, detail)
}

fn stalled(timeout: Duration) -> Problem {
    let seconds = timeout.as_secs();
    let detail = format!("nothing came for {seconds} s; send the request again");
    Problem::new(ProblemKind::ModelServerTimeout, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_at(content_type: &str, chunks: &[&[u8]]) -> bool {
        let mut boundary = Boundary::new(content_type);
        chunks.iter().for_each(|chunk| boundary.pass(chunk));
        boundary.is_at()
    }

    #[test]
    fn boundaries_lie_between_events() {
        let events = "text/event-stream; charset=utf-8";
        assert!(is_at(events, &[]));
        assert!(is_at(events, &[b"data: 1\n\n"]));
        assert!(is_at(events, &[b"data: 1\n", b"\n"]));
        assert!(is_at(events, &[b"data: 1\r\n\r", b"\n"]));
        assert!(!is_at(events, &[b"data: 1\n"]));
        assert!(!is_at(events, &[b"data: 1\n\nd"]));
        assert!(is_at("application/x-ndjson", &[b"{}\n"]));
        assert!(!is_at("application/x-ndjson", &[b"{}\n{"]));
        assert!(!is_at("application/json", &[b"{}\n\n"]));
    }

    proptest! {
        #[test]
        fn boundary_needs_no_whole_chunks(text in "[d\r\n]{0,12}", cut: prop::sample::Index) {
            let (start, end) = text.split_at(cut.index(text.len() + 1));
            let events = "text/event-stream";
            let whole = is_at(events, &[text.as_bytes()]);
            prop_assert_eq!(whole, is_at(events, &[start.as_bytes(), end.as_bytes()]));
        }
    }
}
