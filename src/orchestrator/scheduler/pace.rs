//! Pace of the scheduler: after its decisions it rests, so that a storm of wake-ups takes half a core at most.
//!
//! Short decisions that come now and then follow each wake-up at once: a rest is due only when the decisions have taken
//! more than half of the time, and [`BURST`] in advance.

use std::time::Duration;
use tokio::time::Instant;

/// Time for which decisions may follow each other without a rest.
const BURST: Duration = Duration::from_millis(5);

/// Time until which the decisions so far use up half of a core.
#[derive(Debug)]
pub(super) struct Pace(Instant);

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self(now)
    }

    /// Records a decision; the time until which to rest.
    pub(super) fn record(&mut self, began: Instant, ended: Instant) -> Instant {
        let took = ended.saturating_duration_since(began);
        self.0 = self.0.max(began) + took * 2;
        self.0.checked_sub(BURST).unwrap_or(ended).max(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sparse_decisions_need_no_rest() {
        let start = Instant::now();
        let (mut pace, took) = (Pace::new(start), Duration::from_millis(1));
        for n in 0..100 {
            let began = start + took * 2 * n;
            assert_eq!(pace.record(began, began + took), began + took);
        }
    }

    proptest! {
        /// Decisions that are woken at once, whatever each takes.
        #[test]
        fn storm_takes_half_of_the_time(micros in proptest::collection::vec(1_u64..20_000, 1..50)) {
            let start = Instant::now();
            let (mut pace, mut now, mut busy) = (Pace::new(start), start, Duration::ZERO);
            for took in micros.into_iter().map(Duration::from_micros) {
                busy += took;
                now = pace.record(now, now + took);
                prop_assert!(busy * 2 <= (now - start) + BURST, "{busy:?} of {:?}", now - start);
            }
        }
    }
}
