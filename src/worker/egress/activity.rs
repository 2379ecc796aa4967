//! Time of the last byte of a connection, by which one that is idle is found, and what is reported at its end.

use super::{notices::Flow, refusal::Refusal, tally::Meter};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Time without a byte after which a connection is cut.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Time of the last byte in either direction.
pub(super) struct Activity {
    began: Instant,
    /// Milliseconds from the begin to the last byte.
    last: AtomicU64,
    /// What is reported at its end.
    pub(super) flow: Option<Flow>,
}

impl Activity {
    /// Activity of a connection that begins now.
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            flow: None,
        }
    }

    /// Activity of a flow that begins now, whose end is reported when this is dropped.
    pub(super) fn of(flow: Flow) -> Self {
        Self {
            flow: Some(flow),
            ..Self::new()
        }
    }

    /// Notes that the flow is cut, where the job has used all bytes that it may.
    pub(super) fn cut_if_used_up(&self, meter: &Meter) {
        if let Some(limit) = meter.excess() {
            self.cut(&Refusal::used_up(limit).detail);
        }
    }

    /// Records that a byte passes now.
    pub(super) fn touch(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
    }

    /// Waits until no byte has passed for long.
    pub(super) async fn wait_idle(&self) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let idle = self.began.elapsed().saturating_sub(last);
            match IDLE_TIMEOUT.checked_sub(idle) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_from_last_byte() {
        let activity = Activity::new();
        sleep(Duration::from_secs(100)).await;
        activity.touch();
        let began = Instant::now();
        activity.wait_idle().await;
        assert!(began.elapsed() >= IDLE_TIMEOUT);
    }
}
