//! Request bodies, received within limits on size, memory and time: whole, or chunk by chunk.

use super::budget::BodyReservation;
use crate::api::problem::{Problem, ProblemKind};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use std::time::Duration;

/// Time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes that are read of a refused body, and the time for them.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

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
    body: Incoming,
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
    mut body: Incoming,
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
pub struct BodyChunks(Option<Incoming>);

impl BodyChunks {
    pub(super) fn new(body: Option<Incoming>) -> Self {
        Self(body)
    }

    /// Number of bytes that are announced; `None` where the body is sent in chunks.
    pub fn announced_size(&self) -> Option<u64> {
        let hint = self.0.as_ref().map(|body| body.size_hint().exact());
        hint.unwrap_or(Some(0))
    }

    /// Reads and drops what the client still sends of a body that is refused, for a moment: a connection that is closed
    /// with bytes in it is reset, and its client may lose the answer.
    pub async fn drain(&mut self) {
        let drain = async {
            let mut left = DRAIN_BYTES;
            while let Ok(Some(chunk)) = self.next().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    break;
                }
            }
        };
        // One that goes on is cut.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
    }

    /// Next chunk, of any size; `None` at the end. Fails with 400 where the body breaks off, or stops for 30 s.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        self.next_within(BODY_TIMEOUT).await
    }

    /// Same as [`next`](Self::next) for a body that may stop for so long, because a person types it.
    pub async fn next_within(&mut self, limit: Duration) -> Result<Option<Bytes>, Problem> {
        loop {
            let Some(body) = &mut self.0 else {
                return Ok(None);
            };
            let frame = tokio::time::timeout(limit, body.frame()).await;
            let frame = frame.map_err(|_| {
                let seconds = limit.as_secs();
                let detail =
                    format!("no byte of the body arrived within {seconds} s; send it again");
                Problem::new(ProblemKind::InvalidRequest, detail)
            })?;
            let Some(frame) = frame else {
                self.0 = None;
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
