//! Request bodies, received within limits on size, memory and time: whole, or chunk by chunk.

use super::budget::BodyReservation;
use crate::{
    api::problem::{Problem, ProblemKind},
    background,
};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming};
use std::time::Duration;
use tokio::{runtime::Handle, time::timeout};

/// Time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes that are read of a body that nobody wants, and the time for them.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Body on its way in.
///
/// What a client still sends of one that is dropped before its end is read for a moment, beside the answer: a connection
/// that is closed with bytes in it is reset, and its client loses what it has not received of the answer.
pub(super) struct ArrivingBody {
    body: Option<Incoming>,
    /// Whether the client waits for leave to send it.
    awaits_leave: bool,
}

impl ArrivingBody {
    /// Body of a request with these headers.
    pub(super) fn new(body: Incoming, headers: &HeaderMap) -> Self {
        Self {
            body: Some(body),
            awaits_leave: headers.contains_key(header::EXPECT),
        }
    }

    /// Takes the body out, and leaves one that is at its end.
    pub(super) fn take(&mut self) -> Self {
        Self {
            body: self.body.take(),
            ..*self
        }
    }

    /// Next frame; `None` at the end.
    async fn frame(&mut self) -> Option<hyper::Result<Frame<Bytes>>> {
        // Its reading gives leave.
        self.awaits_leave = false;
        let frame = self.body.as_mut()?.frame().await;
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        frame
    }
}

impl Drop for ArrivingBody {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else {
            return;
        };
        // Without a runtime the server is ending, and its connections with it.
        if !self.awaits_leave && !body.is_end_stream() && Handle::try_current().is_ok() {
            background::spawn("drain_body", drain(body));
        }
    }
}

/// Reads and drops what comes of a body. One that goes on is cut.
async fn drain(mut body: Incoming) {
    let drained = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(DRAIN_TIMEOUT, drained).await;
}

/// Refuses a body that is announced to be longer than `limit` bytes, before any of it is read.
pub(super) fn check_length(length: Option<usize>, limit: usize) -> Result<(), Problem> {
    match length {
        Some(length) if length > limit => Err(too_large(limit)),
        _ => Ok(()),
    }
}

/// Whole body, whose memory is charged to `reservation` as it arrives. Fails with 413 above `limit` bytes, with
/// 400 where it breaks off or takes too long, and with 503 where its memory is needed elsewhere.
pub(super) async fn receive(
    body: ArrivingBody,
    limit: usize,
    reservation: &mut BodyReservation,
) -> Result<Vec<u8>, Problem> {
    let evicted = reservation.evicted();
    tokio::select! {
        received = collect(body, limit, reservation) => received,
        problem = evicted => Err(problem),
        () = tokio::time::sleep(BODY_TIMEOUT) => Err(Problem::new(
            ProblemKind::InvalidRequest,
            format!(
                "the body did not arrive within {} s; send it again",
                BODY_TIMEOUT.as_secs()
            ),
        )),
    }
}

/// Copies a body out of the buffers in which it arrives, which are larger than their content.
async fn collect(
    mut body: ArrivingBody,
    limit: usize,
    reservation: &mut BodyReservation,
) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ended_early())?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        reservation.reserve(data.len())?;
        bytes.extend_from_slice(data);
    }
    reservation.mark_complete()?;
    Ok(bytes)
}

fn ended_early() -> Problem {
    Problem::new(
        ProblemKind::InvalidRequest,
        "the body ended early; send it again",
    )
}

/// Body that is read chunk by chunk as it arrives. No more than a chunk is in memory, so it has no limit on its size,
/// nor on its time, as long as it goes on.
pub struct BodyChunks(ArrivingBody);

impl BodyChunks {
    pub(super) fn new(body: ArrivingBody) -> Self {
        Self(body)
    }

    /// Number of bytes that are announced; `None` where the body is sent in chunks.
    pub fn announced_size(&self) -> Option<u64> {
        let body = self.0.body.as_ref();
        let hint = body.map(|body| body.size_hint().exact());
        hint.unwrap_or(Some(0))
    }

    /// Next chunk, of any size; `None` at the end. Fails with 400 where the body breaks off, or stops for 30 s.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        self.next_within(BODY_TIMEOUT).await
    }

    /// Same as [`next`](Self::next) for a body that may stop for so long, because a person types it.
    pub async fn next_within(&mut self, limit: Duration) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = timeout(limit, self.0.frame()).await;
            let frame = frame.map_err(|_| {
                let seconds = limit.as_secs();
                let detail =
                    format!("no byte of the body arrived within {seconds} s; send it again");
                Problem::new(ProblemKind::InvalidRequest, detail)
            })?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            // Trailers are no part of the content.
            if let Ok(data) = frame.map_err(|_| ended_early())?.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        ProblemKind::PayloadTooLarge,
        format!("the body is larger than {limit} bytes; send less"),
    )
}
