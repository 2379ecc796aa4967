//! Bodies of requests: received within limits of size, memory and time.

use super::budget::BodyReservation;
use crate::api::problem::{Problem, ProblemKind};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::time::Duration;

/// How long a client may take to send a body that has begun.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Refuses a body that is said to be longer than `limit`, before any of it is read.
pub(super) fn check_length(length: Option<usize>, limit: usize) -> Result<(), Problem> {
    match length {
        Some(length) if length > limit => Err(too_large(limit)),
        _ => Ok(()),
    }
}

/// All of a body, whose memory is charged to `share` as it comes, unless that is given up meanwhile.
pub(super) async fn receive(
    body: Incoming,
    limit: usize,
    share: &mut BodyReservation,
) -> Result<Vec<u8>, Problem> {
    let evicted = share.evicted();
    tokio::select! {
        received = collect(body, limit, share) => received,
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

/// Copies a body out of the buffers in which it comes, which are larger than what is in them.
async fn collect(
    mut body: Incoming,
    limit: usize,
    share: &mut BodyReservation,
) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Problem::new(
                ProblemKind::InvalidRequest,
                "the body broke off; send it again",
            )
        })?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        share.take(data.len())?;
        bytes.extend_from_slice(data);
    }
    share.finish()?;
    Ok(bytes)
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        ProblemKind::PayloadTooLarge,
        format!("the body is larger than {limit} bytes; send less"),
    )
}
