//! Requests to stop a job: a cancel, or what it takes of disk or memory.

use super::ledger::Job;
use crate::{
    sandbox::{StopReason, StopRequest},
    wait,
};
use std::time::Duration;
use tokio::sync::watch;

/// Waits for the request to cancel a job, or one that leaves its command less time than the one before; the most time
/// between TERM and KILL.
pub(super) async fn cancel_requested(
    cancel: &mut watch::Receiver<Option<Duration>>,
    before: Option<Duration>,
) -> Duration {
    let is_shorter = |grace: &Option<Duration>| match (grace, before) {
        (Some(grace), Some(before)) => *grace < before,
        (grace, _) => grace.is_some(),
    };
    match wait::until(cancel, is_shorter).await {
        Ok(Some(grace)) => grace,
        // The sender is gone with the job: no request can come any more.
        _ => std::future::pending().await,
    }
}

/// Waits for a reason to stop the sandbox of a job, or to shorten the grace of the request that was sent.
pub(super) async fn stop_requested(job: &Job, sent: Option<StopRequest>) -> StopRequest {
    let (mut cancel, mut excess) = (job.cancellation(), job.excess.subscribe());
    let before = sent.map(|request| request.max_grace);
    // A job that was canceled may take too much in its grace.
    let is_shorter = |reason: &Option<StopReason>| {
        let grace = reason.map(|reason| StopRequest::new(reason).max_grace);
        grace.is_some_and(|grace| before.is_none_or(|before| grace < before))
    };
    tokio::select! {
        max_grace = cancel_requested(&mut cancel, before) => {
            let reason = if job.is_closing() {
                StopReason::Closing
            } else {
                StopReason::Canceled
            };
            StopRequest::within(reason, max_grace)
        }
        Ok(Some(reason)) = wait::until(&mut excess, is_shorter) => {
            StopRequest::new(reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::JobId, sandbox::Overuse, spool::Spool, worker::ledger::tests::accepted};

    #[tokio::test]
    async fn close_of_node_is_no_cancel_of_user() {
        let dir = tempfile::tempdir().unwrap();
        let job = || {
            let spool = Spool::at(dir.path().to_owned());
            Job::new(accepted(JobId::new(), 1), spool, None)
        };
        let grace = Duration::from_secs(3);
        let closing = job();
        closing.close(grace);
        let expected = StopRequest::within(StopReason::Closing, grace);
        assert_eq!(stop_requested(&closing, None).await, expected);
        let canceled = job();
        canceled.cancel(Duration::MAX);
        canceled.close(grace);
        let expected = StopRequest::within(StopReason::Canceled, grace);
        assert_eq!(stop_requested(&canceled, None).await, expected);
    }

    #[tokio::test]
    async fn excess_shortens_grace_of_canceled_job() {
        let dir = tempfile::tempdir().unwrap();
        let accepted = accepted(JobId::new(), 1);
        let job = Job::new(accepted, Spool::at(dir.path().to_owned()), None);
        job.cancel(Duration::MAX);
        let canceled = stop_requested(&job, None).await;
        assert_eq!(canceled, StopRequest::new(StopReason::Canceled));
        assert!(!job.is_ending(), "it may go on in its grace");
        let excess = StopReason::WorkspaceLimit(Overuse { used: 2, limit: 1 });
        job.excess.send_replace(Some(excess));
        let full = stop_requested(&job, Some(canceled)).await;
        assert_eq!(full, StopRequest::new(excess));
        assert!(job.is_ending());
    }
}
