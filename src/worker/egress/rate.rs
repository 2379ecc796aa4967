//! Rate of requests of one sandbox: some at once, and then so many each second. A request beyond that waits.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Requests each second in the long run.
const PER_SECOND: f64 = 100.0;
/// Requests at once.
const BURST: f64 = 300.0;

/// Bucket of tokens, of which each request takes one. It may owe some, to those that wait.
pub(super) struct Rate(Mutex<(f64, Instant)>);

impl Rate {
    /// Full bucket.
    pub(super) fn new() -> Self {
        Self(Mutex::new((BURST, Instant::now())))
    }

    /// Takes a token, and waits until there is one.
    pub(super) async fn wait(&self) {
        let delay = self.reserve(Instant::now());
        if !delay.is_zero() {
            sleep(delay).await;
        }
    }

    /// Takes a token; the time until it is there.
    fn reserve(&self, now: Instant) -> Duration {
        let mut bucket = self.0.lock();
        let (tokens, since) = *bucket;
        let elapsed = now.saturating_duration_since(since).as_secs_f64();
        let left = (tokens + elapsed * PER_SECOND).min(BURST) - 1.0;
        *bucket = (left, now.max(since));
        Duration::from_secs_f64((-left / PER_SECOND).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_beyond_the_burst_wait() {
        let (rate, now) = (Rate::new(), Instant::now());
        for n in 0..300 {
            assert_eq!(rate.reserve(now), Duration::ZERO, "{n}");
        }
        let delays = [(); 3].map(|()| rate.reserve(now));
        assert!(delays.is_sorted() && delays[0] > Duration::ZERO);
        assert!(delays[2] < Duration::from_millis(50), "{delays:?}");
        let later = now + Duration::from_secs(10);
        for n in 0..300 {
            assert_eq!(rate.reserve(later), Duration::ZERO, "{n}");
        }
        assert!(
            rate.reserve(later) > Duration::ZERO,
            "no more than a burst is saved"
        );
    }
}
