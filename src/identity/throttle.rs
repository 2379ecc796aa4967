//! Slows down those who guess: the first failures are free, then each doubles the wait.

use crate::api::problem::{Kind, Problem};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures without consequence.
const FREE: u32 = 5;
/// Longest wait between two tries.
const LONGEST: Duration = Duration::from_mins(1);
/// After so long without a failure, a key is forgotten.
const MEMORY: Duration = Duration::from_mins(15);
/// Keys that are remembered at most; a stranger chooses them, so they must not fill the memory.
const KEYS: usize = 10_000;

#[derive(Clone, Copy)]
struct Entry {
    tries: u32,
    last: Instant,
}

impl Entry {
    fn wait(self, now: Instant) -> Duration {
        let Some(over) = self.tries.checked_sub(FREE) else {
            return Duration::ZERO;
        };
        let delay = LONGEST.min(Duration::from_secs(1 << over.min(6)));
        (self.last + delay).saturating_duration_since(now)
    }
}

/// Counts tries by key.
#[derive(Default)]
pub(super) struct Throttle(Mutex<HashMap<String, Entry>>);

impl Throttle {
    /// Lets a try through, or says how long to wait. The try counts as failed until
    /// [`forgive`](Self::forgive), so that many at the same time don't slip through together.
    pub(super) fn admit(&self, keys: &[String]) -> Result<(), Problem> {
        self.admit_at(keys, Instant::now())
    }

    fn admit_at(&self, keys: &[String], now: Instant) -> Result<(), Problem> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = keys
            .iter()
            .filter_map(|key| entries.get(key))
            .map(|entry| entry.wait(now))
            .max();
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            let seconds = wait.as_secs() + 1;
            let mut problem = Problem::new(
                Kind::TooManyRequests,
                format!("too many failed tries; wait {seconds} s and try again"),
            );
            problem.retry_after = Some(seconds);
            return Err(problem);
        }
        if entries.len() + keys.len() > KEYS {
            entries.retain(|_, entry| now.saturating_duration_since(entry.last) < MEMORY);
        }
        if entries.len() + keys.len() > KEYS {
            entries.clear();
        }
        for key in keys {
            let entry = entries.entry(key.clone()).or_insert(Entry {
                tries: 0,
                last: now,
            });
            if now.saturating_duration_since(entry.last) >= MEMORY {
                entry.tries = 0;
            }
            *entry = Entry {
                tries: entry.tries.saturating_add(1),
                last: now,
            };
        }
        Ok(())
    }

    /// Takes back what the try cost: it was a good one.
    pub(super) fn forgive(&self, keys: &[String]) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            if let Some(entry) = entries.get_mut(key) {
                entry.tries = entry.tries.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_are_free_then_the_wait_doubles_and_is_forgotten_in_time() {
        let throttle = Throttle::default();
        let keys = ["a".to_owned()];
        let mut now = Instant::now();
        for _ in 0..FREE {
            assert!(throttle.admit_at(&keys, now).is_ok());
        }
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let refused = throttle.admit_at(&keys, now).unwrap_err();
            assert_eq!(refused.retry_after, Some(expected + 1));
            now += Duration::from_secs(expected);
            assert!(throttle.admit_at(&keys, now).is_ok());
        }
        assert!(throttle.admit_at(&["b".to_owned()], now).is_ok());
        now += MEMORY;
        for _ in 0..FREE {
            assert!(throttle.admit_at(&keys, now).is_ok());
        }
    }

    #[test]
    fn good_tries_cost_nothing() {
        let throttle = Throttle::default();
        let keys = ["a".to_owned()];
        for _ in 0..100 {
            assert!(throttle.admit(&keys).is_ok());
            throttle.forgive(&keys);
        }
    }
}
