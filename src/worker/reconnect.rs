//! Connection to a job's shim after the last one has ended: is the shim gone, or does it live?
//!
//! A shim that ends closes its connections before its listener, so that it can be connected to for some milliseconds
//! more. The first pause is as short, so that no job waits for a shim that is gone; later ones grow, so that a shim
//! that refuses to speak is not asked all the time.

use super::ledger::Job;
use crate::{backoff::Backoff, sandbox::shim::ShimHandle};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// Shortest and longest pause before a shim that closed the connection is connected to again.
const MIN_INTERVAL: Duration = Duration::from_millis(2);
const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// Pauses between the connections to one shim.
pub(super) fn pauses() -> Backoff {
    Backoff::new(MIN_INTERVAL, MAX_INTERVAL)
}

/// Connects to the shim of a job again; `None` once it is gone.
pub(super) async fn reconnect(job: &Arc<Job>, pauses: &mut Backoff) -> Option<ShimHandle> {
    loop {
        let connected = ShimHandle::connect(job.spool.path()).await;
        if matches!(connected, Ok(None)) {
            return None;
        }
        sleep(pauses.next_delay()).await;
        match connected {
            Ok(handle) => return handle,
            // Such as without a free descriptor: the shim may live.
            Err(error) => tracing::warn!(%error, "shim can't be connected to; retrying"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::JobId, spool::Spool, worker::ledger::tests::accepted};
    use std::os::unix::net::UnixListener;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn ending_shim_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::at(dir.path().to_owned());
        let job = Arc::new(Job::new(accepted(JobId::new(), 1), spool, None));
        let listener = UnixListener::bind(dir.path().join("shim.sock")).unwrap();
        let (mut pauses, began) = (pauses(), Instant::now());
        let mut handle = reconnect(&job, &mut pauses).await.unwrap();
        drop(listener);
        assert!(!handle.changed().await);
        assert!(reconnect(&job, &mut pauses).await.is_none());
        assert!(began.elapsed() < Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_shim_is_connected_to_rarely() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::at(dir.path().to_owned());
        let job = Arc::new(Job::new(accepted(JobId::new(), 1), spool, None));
        let _listener = UnixListener::bind(dir.path().join("shim.sock")).unwrap();
        let (mut pauses, began) = (pauses(), Instant::now());
        for _ in 0..100 {
            assert!(reconnect(&job, &mut pauses).await.is_some());
        }
        assert!(began.elapsed() > Duration::from_secs(40));
    }
}
