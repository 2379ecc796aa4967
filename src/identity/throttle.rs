//! Throttle against guessing: the first failures are free, then each doubles the wait.
//!
//! An address that guesses, or guesses a handle, is refused meanwhile. Attempts on a handle from many
//! addresses are only delayed, so that no stranger can lock its owner out.

use crate::{
    api::problem::{Problem, ProblemKind},
    network::rate_limit_key,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Failures without a wait.
const FREE_FAILURES: u32 = 5;
/// Concurrent attempts from an address without failures, behind which may be a team.
const CONCURRENT_TRIES: u32 = 16;
/// Longest wait between two attempts.
const MAX_WAIT: Duration = Duration::from_mins(1);
/// Failures for a handle, from all addresses, before further attempts are delayed.
const FREE_FAILURES_PER_HANDLE: u32 = 20;
/// Longest delay of an attempt.
const MAX_DELAY: Duration = Duration::from_secs(2);
/// Time without a failure after which a key is forgotten.
const FORGET_AFTER: Duration = Duration::from_mins(15);
/// Maximum number of keys. Strangers choose them, so they must not fill the memory.
const MAX_KEYS: usize = 10_000;

#[derive(Clone, Copy)]
struct Failures {
    failures: u32,
    last_failure: Instant,
    /// Attempts without an outcome yet.
    pending: u32,
}

impl Failures {
    /// Time until the next attempt may begin.
    fn wait(self, at_once: u32, now: Instant) -> Duration {
        let Some(over) = self.failures.checked_sub(FREE_FAILURES) else {
            // All pending attempts may fail.
            let open = if self.failures == 0 {
                at_once
            } else {
                FREE_FAILURES - self.failures
            };
            return if self.pending < open {
                Duration::ZERO
            } else {
                Duration::from_millis(1)
            };
        };
        if self.pending > 0 {
            return Duration::from_millis(1);
        }
        let delay = MAX_WAIT.min(Duration::from_secs(1 << over.min(6)));
        (self.last_failure + delay).saturating_duration_since(now)
    }

    /// Delay of the next attempt.
    fn delay(self) -> Duration {
        let over = self.failures.checked_sub(FREE_FAILURES_PER_HANDLE);
        over.map_or(Duration::ZERO, |over| {
            MAX_DELAY.min(Duration::from_millis(100 << over.min(5)))
        })
    }

    fn is_forgotten(self, now: Instant) -> bool {
        self.pending == 0 && now.saturating_duration_since(self.last_failure) >= FORGET_AFTER
    }
}

/// Key by which failures are counted.
pub(super) struct ThrottleKey {
    name: String,
    effect: Effect,
}

/// Effect of failures.
#[derive(Clone, Copy)]
enum Effect {
    /// The next attempt is refused for a while.
    Refuse {
        /// Concurrent attempts while none has failed.
        at_once: u32,
    },
    /// The next attempt is delayed.
    Slow,
}

impl ThrottleKey {
    /// Key of an address, behind which may be a team.
    pub(super) fn address(address: IpAddr) -> Self {
        let at_once = CONCURRENT_TRIES;
        Self {
            name: rate_limit_key(address).to_string(),
            effect: Effect::Refuse { at_once },
        }
    }

    /// Key of a handle from one address.
    pub(super) fn handle_from(address: IpAddr, handle: &str) -> Self {
        let at_once = FREE_FAILURES;
        Self {
            name: format!("{} {handle}", rate_limit_key(address)),
            effect: Effect::Refuse { at_once },
        }
    }

    /// Key of a handle from all addresses.
    pub(super) fn handle(handle: &str) -> Self {
        Self {
            name: format!("@ {handle}"),
            effect: Effect::Slow,
        }
    }
}

type FailuresByKey = HashMap<String, Failures>;

/// Failures by key.
#[derive(Clone, Default)]
pub(super) struct Throttle(Arc<Mutex<FailuresByKey>>);

/// Admitted attempt. It counts as failed when dropped without another outcome, so that hanging up early gains
/// nothing.
pub(super) struct Attempt {
    entries: Arc<Mutex<FailuresByKey>>,
    keys: Vec<ThrottleKey>,
    outcome: Outcome,
    /// Delay before the attempt is checked.
    pub(super) delay: Duration,
}

/// Outcome of an attempt.
#[derive(PartialEq, Eq)]
enum Outcome {
    Succeeded,
    /// Also without an outcome.
    Failed,
    Discarded,
}

impl Throttle {
    /// Admits an attempt, or returns how long to wait.
    pub(super) fn admit(&self, keys: Vec<ThrottleKey>) -> Result<Attempt, Problem> {
        self.admit_at(keys, Instant::now())
    }

    fn admit_at(&self, keys: Vec<ThrottleKey>, now: Instant) -> Result<Attempt, Problem> {
        let mut entries = self.0.lock();
        let known = |key: &ThrottleKey| {
            let entry = entries.get(&key.name).copied();
            entry.filter(|entry| !entry.is_forgotten(now))
        };
        let wait = keys.iter().filter_map(|key| match key.effect {
            Effect::Refuse { at_once } => Some(known(key)?.wait(at_once, now)),
            Effect::Slow => None,
        });
        let wait = wait.max();
        let delay = keys.iter().filter_map(|key| match key.effect {
            Effect::Refuse { .. } => None,
            Effect::Slow => Some(known(key)?.delay()),
        });
        let delay = delay.max().unwrap_or_default();
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            let seconds = wait.as_millis().div_ceil(1000);
            let problem = Problem::new(
                ProblemKind::TooManyRequests,
                format!("too many failed attempts; wait {seconds} s and try again"),
            );
            return Err(problem.retry_after(u64::try_from(seconds).unwrap_or(1)));
        }
        if entries.len() + keys.len() > MAX_KEYS {
            make_room(&mut entries, keys.len(), now);
        }
        for key in &keys {
            let fresh = Failures {
                failures: 0,
                last_failure: now,
                pending: 0,
            };
            let entry = entries.entry(key.name.clone()).or_insert(fresh);
            if entry.is_forgotten(now) {
                *entry = fresh;
            }
            entry.pending += 1;
        }
        Ok(Attempt {
            entries: Arc::clone(&self.0),
            keys,
            outcome: Outcome::Failed,
            delay,
        })
    }
}

/// Removes old keys, then those with the oldest failures, so that a flood of made-up keys can't remove the
/// delay of a current guesser.
fn make_room(entries: &mut FailuresByKey, room: usize, now: Instant) {
    entries.retain(|_, entry| !entry.is_forgotten(now));
    // A tenth at once, so that a flood does not cost a sort per key.
    let surplus = (entries.len() + room).saturating_sub(MAX_KEYS - MAX_KEYS / 10);
    let mut by_age: Vec<_> = entries
        .iter()
        .filter(|(_, entry)| entry.pending == 0)
        .map(|(key, entry)| (entry.last_failure, key.clone()))
        .collect();
    by_age.sort_unstable();
    for (_, key) in by_age.into_iter().take(surplus) {
        entries.remove(&key);
    }
}

impl Attempt {
    /// Marks the attempt as successful; it costs nothing.
    pub(super) fn succeed(mut self) {
        self.outcome = Outcome::Succeeded;
    }

    /// Marks the attempt as undecided; it costs nothing.
    pub(super) fn discard(mut self) {
        self.outcome = Outcome::Discarded;
    }

    #[cfg(test)]
    fn fail_at(mut self, now: Instant) {
        self.settle(now);
        self.keys.clear();
    }

    fn settle(&mut self, now: Instant) {
        let mut entries = self.entries.lock();
        for key in &self.keys {
            let Some(entry) = entries.get_mut(&key.name) else {
                continue;
            };
            entry.pending = entry.pending.saturating_sub(1);
            if self.outcome == Outcome::Failed {
                entry.failures = entry.failures.saturating_add(1);
                entry.last_failure = now;
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.settle(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Vec<ThrottleKey> {
        let at_once = CONCURRENT_TRIES;
        vec![ThrottleKey {
            name: name.to_owned(),
            effect: Effect::Refuse { at_once },
        }]
    }

    fn keys() -> Vec<ThrottleKey> {
        key("a")
    }

    #[test]
    fn wait_doubles_after_five_failures_and_expires() {
        let throttle = Throttle::default();
        let mut now = Instant::now();
        for _ in 0..FREE_FAILURES {
            throttle.admit_at(keys(), now).unwrap().fail_at(now);
        }
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let refused = throttle.admit_at(keys(), now).err().unwrap();
            assert_eq!(refused.retry_after, Some(expected));
            now += Duration::from_secs(expected);
            throttle.admit_at(keys(), now).unwrap().fail_at(now);
        }
        throttle.admit_at(key("b"), now).unwrap().fail_at(now);
        now += FORGET_AFTER;
        for _ in 0..FREE_FAILURES {
            throttle.admit_at(keys(), now).unwrap().fail_at(now);
        }
    }

    #[test]
    fn successful_attempts_are_never_delayed() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let together: Vec<_> = (0..CONCURRENT_TRIES)
            .map(|_| throttle.admit_at(keys(), now).unwrap())
            .collect();
        together.into_iter().for_each(Attempt::succeed);
        for _ in 0..FREE_FAILURES {
            throttle.admit_at(keys(), now).unwrap().fail_at(now);
        }
        for _ in 0..100 {
            throttle
                .admit_at(keys(), now + Duration::from_secs(1))
                .unwrap()
                .succeed();
        }
    }

    #[test]
    fn concurrent_guesses_are_limited() {
        let throttle = Throttle::default();
        let now = Instant::now();
        throttle.admit_at(keys(), now).unwrap().fail_at(now);
        let together: Vec<_> = (0..50)
            .filter_map(|_| throttle.admit_at(keys(), now).ok())
            .collect();
        assert_eq!(together.len() as u32, FREE_FAILURES - 1);
    }

    #[test]
    fn handle_guessed_everywhere_is_slowed_not_refused() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let admit = || {
            throttle
                .admit_at(vec![ThrottleKey::handle("admin")], now)
                .unwrap()
        };
        for _ in 0..FREE_FAILURES_PER_HANDLE {
            let attempt = admit();
            assert_eq!(attempt.delay, Duration::ZERO);
            attempt.fail_at(now);
        }
        for millis in [100, 200, 400, 800, 1600, 2000, 2000] {
            let attempt = admit();
            assert_eq!(attempt.delay, Duration::from_millis(millis));
            attempt.fail_at(now);
        }
    }

    #[test]
    fn made_up_keys_do_not_evict_delays() {
        let throttle = Throttle::default();
        let mut now = Instant::now();
        for n in 0..2 * MAX_KEYS {
            now += Duration::from_micros(1);
            throttle
                .admit_at(key(&n.to_string()), now)
                .unwrap()
                .fail_at(now);
            if n == MAX_KEYS {
                for _ in 0..FREE_FAILURES {
                    throttle
                        .admit_at(keys(), now)
                        .unwrap()
                        .fail_at(now + Duration::from_secs(5));
                }
            }
        }
        assert!(throttle.admit_at(keys(), now).is_err());
    }
}
