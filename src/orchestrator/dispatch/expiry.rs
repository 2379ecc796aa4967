//! The time after which an attempt is given up, whether its node answers or not.
//!
//! A job has its time limit. A sandbox that stays is ended by its node, at the end of a lifetime that its user may extend:
//! only long after that it is given up. No other node can take it, so it is lost with the lease of its node, too.

use super::lease::Lease;
use crate::{
    api::{
        jobs::{DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS},
        time::Time,
    },
    orchestrator::{AppState, reason::Reason},
    store::RunningJob,
};
use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// Time beyond a job's own limit, mostly for image pulls, after which its attempt is given up; and beyond the lifetime of a
/// sandbox.
pub(super) const TIMEOUT_MARGIN: Duration = Duration::from_mins(30);

/// Interval at which it is looked whether a sandbox is past its lifetime.
const LOOK_INTERVAL: Duration = Duration::from_mins(1);

/// Waits until the attempt is to be given up; yields the reason. Time for which files were sent to the node does not count.
pub(super) async fn given_up(
    state: &AppState,
    job: &RunningJob,
    lease: &Lease,
    seconds_sending: &AtomicU64,
) -> Reason {
    if job.is_sandbox {
        let lifetime_end = || async {
            let stored = state.store.sandbox_get(job.task_id, None).await;
            // One that can't be read now is looked at again.
            let stored = stored.ok().flatten();
            stored.map(|stored| stored.record.expires_at)
        };
        return tokio::select! {
            () = lease.expired() => {
                let seconds = lease.silence().as_secs();
                format!("its node was silent for {seconds} s (--lease)").into()
            }
            () = overdue(lifetime_end) => {
                let minutes = TIMEOUT_MARGIN.as_secs() / 60;
                format!("its node reported no end within {minutes} minutes after its lifetime").into()
            }
        };
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

/// Waits until a sandbox has been past its lifetime for the whole margin. That is measured by a clock that stands still while
/// this machine sleeps: after its sleep, the node's report comes first.
async fn overdue<F: Future<Output = Option<Time>>>(lifetime_end: impl Fn() -> F) {
    let mut since = None;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        since = match lifetime_end().await {
            Some(end) if end < Time::now() => since.or(Some(Instant::now())),
            _ => None,
        };
        if since.is_some_and(|since| since.elapsed() >= TIMEOUT_MARGIN) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[tokio::test(start_paused = true)]
    async fn renewed_sandbox_is_given_up_later() {
        let (began, now) = (Instant::now(), Time::now());
        let past = now.minus(Duration::from_secs(1));
        let future = now.plus(Duration::from_hours(24));
        let is_renewed = AtomicBool::new(false);
        // Renewed once, when it is nearly given up, for a quarter of an hour.
        let lifetime_end = || async {
            let age = began.elapsed();
            let renewed = Duration::from_mins(25)..Duration::from_mins(40);
            if renewed.contains(&age) {
                is_renewed.store(true, Ordering::Relaxed);
                return Some(future);
            }
            Some(past)
        };
        overdue(lifetime_end).await;
        assert!(is_renewed.load(Ordering::Relaxed));
        let age = began.elapsed();
        let wanted = Duration::from_mins(70);
        assert!(
            age >= wanted && age < wanted + Duration::from_mins(3),
            "{age:?}"
        );
    }
}
