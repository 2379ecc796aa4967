//! Rate limits: requests and refreshes per user, first registrations of nodes per address.
//!
//! Each key has a token bucket: it holds a burst of tokens and is refilled at a steady rate; a request takes
//! one token, or gets the time to wait. The bucket is written here rather than taken from the crate
//! `governor`: around it, the limit of keys, the absent limit and `Retry-After` would be no shorter, for
//! seven more packages in the lock file.

use crate::api::{
    UserId,
    audit::AuditAction,
    problem::{Problem, ProblemKind},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Size of a bucket where none is given, in seconds of its rate.
const BURST_SECONDS: u32 = 5;
/// Number of buckets from which on full ones are dropped. A dropped bucket comes back full.
const PRUNE_AT_KEYS: usize = 10_000;
/// Time for which further denials of the same action to a user leave no audit event.
const DENIAL_INTERVAL: Duration = Duration::from_mins(1);

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Token buckets by key, such as a user.
pub(super) struct RateLimiter<K> {
    /// Tokens per second; 0 is no limit.
    rate: u32,
    /// Tokens of a full bucket.
    burst: u32,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> RateLimiter<K> {
    /// Limiter of `rate` requests per second and key; 0 is no limit.
    pub(super) fn new(rate: u32) -> Self {
        Self::with_burst(rate, rate.saturating_mul(BURST_SECONDS))
    }

    /// Same with `burst` requests at once.
    pub(super) fn with_burst(rate: u32, burst: u32) -> Self {
        Self {
            rate,
            burst,
            buckets: Mutex::default(),
        }
    }

    /// Admits a request, or returns how long to wait.
    pub(super) fn admit(&self, key: K) -> Result<(), Problem> {
        self.admit_or(key, |seconds| {
            let rate = self.rate;
            format!("more than {rate} requests per second; wait {seconds} s, then send fewer")
        })
    }

    /// Same with a detail made from the seconds to wait.
    pub(super) fn admit_or(
        &self,
        key: K,
        detail: impl FnOnce(u64) -> String,
    ) -> Result<(), Problem> {
        let wait = self.wait(key, Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        let seconds = u64::try_from(seconds).unwrap_or(1);
        let problem = Problem::new(ProblemKind::TooManyRequests, detail(seconds));
        Err(problem.retry_after(seconds))
    }

    /// Takes a token. Returns the time after which there is one, zero where it was taken.
    fn wait(&self, key: K, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let rate = f64::from(self.rate);
        let full = f64::from(self.burst);
        let filled = |bucket: &Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.tokens + since * rate).min(full)
        };
        let mut buckets = self.buckets.lock();
        if buckets.len() >= PRUNE_AT_KEYS {
            buckets.retain(|_, bucket| filled(bucket) < full);
        }
        let bucket = buckets.entry(key).or_insert(Bucket {
            tokens: full,
            at: now,
        });
        let tokens = filled(bucket);
        *bucket = Bucket {
            tokens: if tokens >= 1.0 { tokens - 1.0 } else { tokens },
            at: now,
        };
        if tokens >= 1.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64((1.0 - tokens) / rate)
        }
    }
}

/// Recent denials by user and action, so that repeated attempts do not fill the audit log.
#[derive(Default)]
pub(super) struct DenialLog(Mutex<HashMap<(UserId, AuditAction), Instant>>);

impl DenialLog {
    /// Records a denial. Returns whether it is the first one for a while.
    pub(super) fn record(&self, user: UserId, action: AuditAction) -> bool {
        let now = Instant::now();
        let mut recent = self.0.lock();
        recent.retain(|_, at| now.saturating_duration_since(*at) < DENIAL_INTERVAL);
        let is_new = !recent.contains_key(&(user, action));
        if is_new {
            recent.insert((user, action), now);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rate_limit_is_per_user() {
        let requests = RateLimiter::new(2);
        let (ann, bob, now) = (UserId::new(), UserId::new(), Instant::now());
        for _ in 0..2 * BURST_SECONDS {
            assert!(requests.wait(ann, now).is_zero());
        }
        assert_eq!(requests.wait(ann, now), Duration::from_millis(500));
        assert!(requests.wait(bob, now).is_zero());
        let later = now + Duration::from_millis(500);
        assert!(requests.wait(ann, later).is_zero());
        assert!(!requests.wait(ann, later).is_zero());
        let unlimited = RateLimiter::new(0);
        assert!((0..10_000).all(|_| unlimited.wait(ann, now).is_zero()));
    }

    proptest! {
        /// However requests are spread, no more get through than the burst and the refill since.
        #[test]
        fn admits_no_more_than_rate_and_burst(rate in 1_u32..20, pauses in prop::collection::vec(0_u64..2_000, 1..200)) {
            let requests = RateLimiter::new(rate);
            let (user, start) = (UserId::new(), Instant::now());
            let (mut now, mut admitted) = (start, 0_u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                admitted += u32::from(requests.wait(user, now).is_zero());
                let limit = f64::from(rate * BURST_SECONDS) + (now - start).as_secs_f64() * f64::from(rate);
                prop_assert!(f64::from(admitted) <= limit + 1e-6);
            }
        }
    }
}
