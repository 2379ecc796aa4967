//! The time after which an attempt is given up, whether its node answers or not.
//!
//! A job has its time limit. A sandbox that stays has none here: it runs until its node ends it, for a day or longer. But no
//! other node can take it, so it is lost with the lease of its node.

use super::lease::Lease;
use crate::{
    api::jobs::{DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS},
    orchestrator::reason::Reason,
    store::RunningJob,
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// Time beyond a job's own limit, mostly for image pulls, after which its attempt is given up.
pub(super) const TIMEOUT_MARGIN: Duration = Duration::from_mins(30);

/// Waits until the attempt is to be given up; yields the reason. Time for which files were sent to the node does not count.
pub(super) async fn given_up(
    job: &RunningJob,
    lease: &Lease,
    seconds_sending: &AtomicU64,
) -> Reason {
    if job.is_sandbox {
        lease.expired().await;
        let seconds = lease.silence().as_secs();
        return format!("its node was silent for {seconds} s (--lease)").into();
    }
    let seconds = job.effective_timeout_seconds.or(job.timeout_seconds);
    let seconds = seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    let limit = Duration::from_secs(seconds.min(MAX_TIMEOUT_SECONDS)) + TIMEOUT_MARGIN;
    limit_reached(limit, seconds_sending).await;
    format!("its node reported no end within {} s", limit.as_secs()).into()
}

/// Waits until an attempt has taken `limit`, without the time for which files were sent to its node.
async fn limit_reached(limit: Duration, seconds_sending: &AtomicU64) {
    let began = Instant::now();
    loop {
        let sending = Duration::from_secs(seconds_sending.load(Ordering::Relaxed));
        let end = began + limit + sending;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}
