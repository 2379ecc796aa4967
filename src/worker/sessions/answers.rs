//! Problems of calls about a sandbox: that it has ended, and what its shim refuses.

use super::{protocol::SessionReply, socket};
use crate::{
    api::{
        jobs::{JobErrorKind, JobResult, Outcome},
        problem::{Problem, ProblemKind},
        sandboxes::EndReason,
    },
    worker::ledger::Job,
};
use std::{sync::Arc, time::Duration};

/// Time in which a job gets its result whose shim is gone.
const RESULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Seconds after which a call may be repeated that was one too many, or failed at the node.
const RETRY_AFTER_SECONDS: u64 = 1;

/// 410 of a sandbox that has ended, with the reason.
pub(super) async fn ended(job: &Arc<Job>) -> Problem {
    let result = job.read_result().await;
    let reason = result.map_or(EndReason::Failed, |last| end_reason(&last.result));
    gone(reason)
}

/// Same for a sandbox that ends now; `None` where it goes on.
pub(super) async fn ended_soon(job: &Arc<Job>) -> Option<Problem> {
    let mut changes = job.subscribe();
    let has_ended = async { while !job.has_ended() && changes.changed().await.is_ok() {} };
    let in_time = tokio::time::timeout(RESULT_TIMEOUT, has_ended).await;
    match in_time {
        Ok(()) => Some(ended(job).await),
        Err(_) => None,
    }
}

fn gone(reason: EndReason) -> Problem {
    let detail = format!(
        "the sandbox has ended: {}; create a new one",
        reason.as_str()
    );
    Problem::new(ProblemKind::Gone, detail)
}

/// Reason for which a sandbox ended, from the result of its job.
fn end_reason(result: &JobResult) -> EndReason {
    let named = result
        .reason
        .as_deref()
        .and_then(|reason| reason.parse().ok());
    let error = result.error.as_ref().map(|error| error.kind);
    match (named, result.status, error) {
        (Some(reason), ..) => reason,
        (None, Outcome::Canceled, _) => EndReason::Deleted,
        (None, _, Some(JobErrorKind::OutOfMemory)) => EndReason::Oom,
        (None, _, Some(JobErrorKind::Lost)) => EndReason::NodeLost,
        _ if result.oom_killed => EndReason::Oom,
        _ => EndReason::Failed,
    }
}

/// Problem for a failed call of the shim.
pub(super) fn refused(reply: SessionReply) -> Problem {
    let conflict = |detail: &str| Problem::new(ProblemKind::Conflict, detail);
    match reply {
        SessionReply::NoSuchExec => Problem::not_found("exec"),
        SessionReply::ExecEnded => conflict(
            "the exec has ended; GET …/execs/{exec_id} shows how, and its log what it printed",
        ),
        SessionReply::StdinClosed { .. } => conflict(
            "the exec takes no stdin: it has closed it, or was started without interactive: true",
        ),
        SessionReply::StdinMisplaced { received } => conflict(&format!(
            "bytes before these are missing: the exec has got {received}; send from there, with offset={received}"
        )),
        SessionReply::TooManyExecs => {
            let detail = "as many execs or file calls run in this sandbox as it may have; wait until some have ended";
            Problem::new(ProblemKind::TooManyRequests, detail).retry_after(RETRY_AFTER_SECONDS)
        }
        SessionReply::NotASession => conflict(
            "this sandbox runs a task and ends with it; only one made with POST /v1/sandboxes has a lifetime",
        ),
        SessionReply::Failed { detail } => {
            tracing::warn!(detail = detail.as_str(), "shim failed a call");
            let detail =
                "the node can't do this now; try again, and tell its operator if it persists";
            Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_AFTER_SECONDS)
        }
        _ => socket::silent(),
    }
}
