//! Request bodies, received within limits on size, memory and time.

use super::budget::BodyReservation;
use crate::api::problem::{Problem, ProblemKind};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::time::Duration;

/// Time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

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
        let frame = frame.map_err(|_| {
            Problem::new(
                ProblemKind::InvalidRequest,
                "the body ended early; send it again",
            )
        })?;
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

fn too_large(limit: usize) -> Problem {
    Problem::new(
        ProblemKind::PayloadTooLarge,
        format!("the body is larger than {limit} bytes; send less"),
    )
}
