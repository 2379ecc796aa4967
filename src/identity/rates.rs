//! Token buckets: how many requests a user may make, and how many unknown nodes may register from an
//! address. Each has a bucket, which fills at a steady rate.

use crate::api::{
    UserId,
    audit::AuditAction,
    problem::{Kind, Problem},
};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many seconds' worth of requests may come at once.
const BURST: u32 = 5;
/// From here on buckets that are full again are thrown away; they come back full.
const MANY: usize = 10_000;

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// One bucket for each key, such as a user.
pub(super) struct Rates<K> {
    /// Requests a second; no limit when 0.
    rate: u32,
    /// Requests at once.
    burst: u32,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Rates<K> {
    /// So many requests a second for each key; no limit when 0.
    pub(super) fn new(rate: u32) -> Self {
        Self::with_burst(rate, rate.saturating_mul(BURST))
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
        let problem = Problem::new(Kind::TooManyRequests, explain(seconds));
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
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MANY {
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
const SAME: Duration = Duration::from_mins(1);

/// Who was denied what just now, so that insisting fills no log.
#[derive(Default)]
pub(super) struct Denials(Mutex<HashMap<(UserId, AuditAction), Instant>>);

impl Denials {
    pub(super) fn is_news(&self, user: UserId, action: AuditAction) -> bool {
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, at| now.saturating_duration_since(*at) < SAME);
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
    fn one_users_haste_is_not_anothers() {
        let rates = Rates::new(2);
        let (ann, bob, now) = (UserId::new(), UserId::new(), Instant::now());
        for _ in 0..2 * BURST {
            assert!(rates.wait(ann, now).is_zero());
        }
        assert_eq!(rates.wait(ann, now), Duration::from_millis(500));
        assert!(rates.wait(bob, now).is_zero());
        let later = now + Duration::from_millis(500);
        assert!(rates.wait(ann, later).is_zero());
        assert!(!rates.wait(ann, later).is_zero());
        let unlimited = Rates::new(0);
        assert!((0..10_000).all(|_| unlimited.wait(ann, now).is_zero()));
    }

    proptest! {
        /// However requests are spread, no more get through than the burst and what came since.
        #[test]
        fn never_more_than_promised(rate in 1_u32..20, pauses in prop::collection::vec(0_u64..2_000, 1..200)) {
            let rates = Rates::new(rate);
            let (user, start) = (UserId::new(), Instant::now());
            let (mut now, mut through) = (start, 0_u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                through += u32::from(rates.wait(user, now).is_zero());
                let most = f64::from(rate * BURST) + (now - start).as_secs_f64() * f64::from(rate);
                prop_assert!(f64::from(through) <= most + 1e-6);
            }
        }
    }
}
