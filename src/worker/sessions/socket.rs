//! Calls of a sandbox's shim over its `session.sock`: one connection per call, one frame there, one frame back.
//!
//! Some calls have a stream of bytes behind their frames, which [`open`] hands to the caller.

use super::{
    answers,
    protocol::{SOCKET_FILE, SessionReply, SessionRequest, read_frame, write_frame},
};
use crate::{
    api::{
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    sandbox::shim::socket_path,
    worker::ledger::Job,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};

/// Longest wait for a sandbox that does not run yet.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time between looks whether it runs, should it not be notified.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for the shim's answer, which does nothing that takes long.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds after which a call may be repeated whose shim does not answer.
const RETRY_AFTER_SECONDS: u64 = 5;

/// Sends a request to the shim of a sandbox, once that runs, and receives the answer.
pub(super) async fn call(
    job: &Arc<Job>,
    request: &SessionRequest,
) -> Result<SessionReply, ApiError> {
    Ok(open(job, request).await?.0)
}

/// Same as [`call`]; the connection stays open for what follows the answer.
pub(super) async fn open(
    job: &Arc<Job>,
    request: &SessionRequest,
) -> Result<(SessionReply, UnixStream), ApiError> {
    let mut stream = connect(job).await?;
    let exchanged = async {
        write_frame(&mut stream, request).await?;
        read_frame(&mut stream).await
    };
    match timeout(REPLY_TIMEOUT, exchanged).await {
        Ok(Ok(SessionReply::Ended)) => {
            let ended = answers::ended_soon(job).await;
            Err(ended.unwrap_or_else(silent).into())
        }
        Ok(Ok(reply)) => Ok((reply, stream)),
        // The end of the sandbox closes the socket a little before the job has its result.
        Ok(Err(error)) => match answers::ended_soon(job).await {
            Some(ended) => Err(ended.into()),
            None => Err(silent().caused_by(error)),
        },
        Err(_) => Err(silent().into()),
    }
}

/// Connects to the shim of a sandbox. Waits a while for one that does not run yet; fails with 410 for one that has
/// ended.
async fn connect(job: &Arc<Job>) -> Result<UnixStream, ApiError> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut changes = job.subscribe();
    loop {
        // Before the look, so that no change is missed.
        changes.mark_unchanged();
        if job.has_ended() {
            return Err(answers::ended(job).await.into());
        }
        let error = match try_connect(job).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let problem = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => not_running(),
            // As many calls wait for the shim as may.
            io::ErrorKind::WouldBlock => silent(),
            _ => return Err(ApiError::internal(error)),
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(problem.into());
        }
        // Looks again either way.
        let _ = timeout_at(deadline.min(now + LOOK_INTERVAL), changes.changed()).await;
    }
}

/// Connects to the shim, without a wait: a blocking call would wait without a limit for a shim that accepts no more.
async fn try_connect(job: &Arc<Job>) -> io::Result<UnixStream> {
    let found = job.with_spool(|spool| socket_path(spool.path(), SOCKET_FILE));
    let (_open_dir, path) = found.await.flatten()?;
    UnixStream::connect(path).await
}

fn not_running() -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        "the sandbox does not run yet; wait until its status is running, then repeat the call",
    )
}

/// Problem of a shim that gives no answer, or one that does not fit the request.
pub(super) fn silent() -> Problem {
    Problem::new(
        ProblemKind::Unavailable,
        "the sandbox does not answer at present; repeat the call, with the same exec_id where it starts an exec",
    )
    .retry_after(RETRY_AFTER_SECONDS)
}
