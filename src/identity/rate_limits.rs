//! Token buckets: how many requests a user may make, and how many unknown nodes may register from an
//! address. Each has a bucket, which fills at a steady rate.

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

/// How many seconds' worth of requests may come at once.
const BURST_SECONDS: u32 = 5;
/// From here on buckets that are full again are thrown away; they come back full.
const PRUNE_AT_KEYS: usize = 10_000;

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// One bucket for each key, such as a user.
pub(super) struct RateLimiter<K> {
    /// Requests a second; no limit when 0.
    rate: u32,
    /// Requests at once.
    burst: u32,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> RateLimiter<K> {
    /// So many requests a second for each key; no limit when 0.
    pub(super) fn new(rate: u32) -> Self {
        Self::with_burst(rate, rate.saturating_mul(BURST_SECONDS))
    }

    /// The same with so many at once.
    pub(super) fn with_burst(rate: u32, burst: u32) -> Self {
        Self {
            rate,
            burst,
            buckets: Mutex::default(),
        }
    }

    /// Lets a request through, or says how long to wait.
    pub(super) fn admit(&self, key: K) -> Result<(), Problem> {
        self.admit_or(key, |seconds| {
            let rate = self.rate;
            format!("these are more than {rate} requests a second; wait {seconds} s, then go on more slowly")
        })
    }

    /// The same with words of the caller's, who is given the seconds to wait.
    pub(super) fn admit_or(
        &self,
        key: K,
        explain: impl FnOnce(u64) -> String,
    ) -> Result<(), Problem> {
        let wait = self.wait(key, Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        let seconds = u64::try_from(seconds).unwrap_or(1);
        let problem = Problem::new(ProblemKind::TooManyRequests, explain(seconds));
        Err(problem.retry_after(seconds))
    }

    /// Takes a token; nothing to wait for when there was one.
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

/// So long a user who is denied the same again is no news.
const DENIAL_INTERVAL: Duration = Duration::from_mins(1);

/// Who was denied what just now, so that insisting fills no log.
#[derive(Default)]
pub(super) struct DenialLog(Mutex<HashMap<(UserId, AuditAction), Instant>>);

impl DenialLog {
    pub(super) fn is_new(&self, user: UserId, action: AuditAction) -> bool {
        let now = Instant::now();
        let mut known = self.0.lock();
        known.retain(|_, at| now.saturating_duration_since(*at) < DENIAL_INTERVAL);
        let news = !known.contains_key(&(user, action));
        if news {
            known.insert((user, action), now);
        }
        news
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
        /// However requests are spread, no more get through than the burst and what came since.
        #[test]
        fn admits_no_more_than_rate_and_burst(rate in 1_u32..20, pauses in prop::collection::vec(0_u64..2_000, 1..200)) {
            let requests = RateLimiter::new(rate);
            let (user, start) = (UserId::new(), Instant::now());
            let (mut now, mut through) = (start, 0_u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                through += u32::from(requests.wait(user, now).is_zero());
                let most = f64::from(rate * BURST_SECONDS) + (now - start).as_secs_f64() * f64::from(rate);
                prop_assert!(f64::from(through) <= most + 1e-6);
            }
        }
    }
}
