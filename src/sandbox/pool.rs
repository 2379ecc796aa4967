//! Number of sandboxes that are worth starting before there is a command for them; pure.
//!
//! The arrivals of the last minutes say how many would have been taken at once, had each that was taken been replaced
//! within the time that a start takes: [`Demand::target`]. A burst of twenty asks for twenty; a command every second, for
//! one. [`share`] divides what a node has room for among the kinds of sandboxes.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Time for which an arrival counts.
pub(crate) const DEMAND_WINDOW: Duration = Duration::from_mins(10);
/// Arrivals that are kept of one kind, the latest: no node has room for more sandboxes.
const MAX_ARRIVALS: usize = 1024;

/// Demand for one kind of sandbox.
#[derive(Default, Debug)]
pub(crate) struct Demand {
    arrivals: VecDeque<Instant>,
}

impl Demand {
    /// Counts a command that came for a sandbox of this kind, whether one was there or not.
    pub(crate) fn count(&mut self, now: Instant) {
        if self.arrivals.len() == MAX_ARRIVALS {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(now);
    }

    /// Time of the last arrival; `None` where none counts any more.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.arrivals.back().copied()
    }

    /// Forgets what is no recent arrival any more.
    pub(crate) fn forget_old(&mut self, now: Instant) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) > DEMAND_WINDOW;
        while self.arrivals.front().is_some_and(is_old) {
            self.arrivals.pop_front();
        }
    }

    /// Fewest sandboxes with which no recent arrival would have had to wait, where those that are taken are replaced one
    /// after another, each within `refill`.
    pub(crate) fn target(&self, refill: Duration) -> usize {
        let refill = refill.max(Duration::from_millis(1));
        // Time that the refill is behind, and the most that it was.
        let (mut behind, mut most) = (Duration::ZERO, Duration::ZERO);
        let mut before = None;
        for &at in &self.arrivals {
            let passed = before.map_or(Duration::ZERO, |before| {
                at.saturating_duration_since(before)
            });
            behind = behind.saturating_sub(passed) + refill;
            most = most.max(behind);
            before = Some(at);
        }
        most.as_nanos().div_ceil(refill.as_nanos()) as usize
    }
}

/// Shares of each kind, by their targets in the order of their importance, of at most so many sandboxes.
pub(crate) fn share(targets: &[usize], most: usize) -> Vec<usize> {
    let mut left = most;
    let take = |target: &usize| {
        let share = left.min(*target);
        left -= share;
        share
    };
    targets.iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REFILL: Duration = Duration::from_millis(200);

    /// Demand of arrivals after these pauses, in milliseconds, and the time of the last.
    fn demand(pauses: &[u64]) -> (Demand, Instant) {
        let (mut demand, mut now) = (Demand::default(), Instant::now());
        for pause in pauses {
            now += Duration::from_millis(*pause);
            demand.count(now);
        }
        (demand, now)
    }

    #[test]
    fn targets_follow_bursts_and_rates() {
        for (pauses, expected) in [
            (vec![], 0),
            (vec![0], 1),
            (vec![0; 20], 20),
            (vec![1000; 50], 1),
            (vec![200; 50], 1),
            // Twice as fast as the refill: each second arrival adds one.
            (vec![100; 9], 5),
        ] {
            let (demand, _) = demand(&pauses);
            assert_eq!(demand.target(REFILL), expected, "{pauses:?}");
        }
    }

    #[test]
    fn old_arrivals_do_not_count() {
        let (mut demand, now) = demand(&[0; 20]);
        demand.forget_old(now + DEMAND_WINDOW);
        assert_eq!(demand.target(REFILL), 20);
        demand.forget_old(now + DEMAND_WINDOW + REFILL);
        assert_eq!(demand.target(REFILL), 0);
        assert_eq!(demand.last(), None);
    }

    proptest! {
        /// Replays the arrivals with so many sandboxes, one refill at a time.
        #[test]
        fn target_serves_every_arrival_at_once(
            pauses in proptest::collection::vec(0_u64..600, 1..200),
        ) {
            let (demand, _) = demand(&pauses);
            let target = demand.target(REFILL);
            let (mut ready, mut progress) = (target, 0);
            let mut lacks = 0;
            for pause in pauses {
                progress += pause;
                while progress >= 200 && ready < target {
                    progress -= 200;
                    ready += 1;
                }
                if ready == target {
                    progress = 0;
                }
                match ready {
                    0 => lacks += 1,
                    _ => ready -= 1,
                }
            }
            prop_assert_eq!(lacks, 0);
        }

        #[test]
        fn shares_stay_within_targets_and_room(
            targets in proptest::collection::vec(0_usize..50, 0..10),
            most in 0_usize..100,
        ) {
            let shares = share(&targets, most);
            prop_assert_eq!(shares.iter().sum::<usize>(), targets.iter().sum::<usize>().min(most));
            prop_assert!(shares.iter().zip(&targets).all(|(share, target)| share <= target));
        }
    }
}
