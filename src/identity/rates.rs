//! How many requests a user may make: a bucket of tokens each, which fills at a steady rate.

use crate::api::{
    UserId,
    audit::AuditAction,
    problem::{Kind, Problem},
};
use std::{
    collections::HashMap,
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

/// The buckets of all users.
pub(super) struct Rates {
    /// Requests a second; no limit when 0.
    rate: u32,
    buckets: Mutex<HashMap<UserId, Bucket>>,
}

impl Rates {
    /// So many requests a second for each user; no limit when 0.
    pub(super) fn new(rate: u32) -> Self {
        Self {
            rate,
            buckets: Mutex::default(),
        }
    }

    /// Lets a request through, or says how long to wait.
    pub(super) fn admit(&self, user: UserId) -> Result<(), Problem> {
        let wait = self.wait(user, Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        let text = format!(
            "these are more than {} requests a second; wait {seconds} s, then go on more slowly",
            self.rate
        );
        let problem = Problem::new(Kind::TooManyRequests, text);
        Err(problem.retry_after(u64::try_from(seconds).unwrap_or(1)))
    }

    /// Takes a token; nothing to wait for when there was one.
    fn wait(&self, user: UserId, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let rate = f64::from(self.rate);
        let full = rate * f64::from(BURST);
        let filled = |bucket: &Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.tokens + since * rate).min(full)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MANY {
            buckets.retain(|_, bucket| filled(bucket) < full);
        }
        let bucket = buckets.entry(user).or_insert(Bucket {
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
