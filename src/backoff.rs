//! Backoff: delays between tries, each twice as long as the one before, up to a limit, with a random part, so that
//! clients that failed together do not come back together.

use std::time::Duration;

/// Sequence of delays.
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// Delays from `first` up to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            attempts: 0,
        }
    }

    /// Whether no delay was taken since the start or the last [`reset`](Self::reset).
    pub const fn is_fresh(&self) -> bool {
        self.attempts == 0
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let delay = nth_delay(self.first, self.longest, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        delay
    }

    /// Starts again with the first delay, after a success.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// Delay number `n`, counted from 0: between half and all of `first` doubled `n` times, and at most `longest`.
pub fn nth_delay(first: Duration, longest: Duration, n: u32) -> Duration {
    let full = longest.min(first.saturating_mul(2_u32.saturating_pow(n)));
    // Without randomness all delays are merely alike.
    let random = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
    full.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_within_bounds() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_mins(1));
        let mut backoff = Backoff::new(first, longest);
        for n in 0..200_u32 {
            let full = longest.min(first * 2_u32.pow(n.min(6)));
            let delay = backoff.next_delay();
            assert!(delay >= full / 2 && delay <= full, "{n}: {delay:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= first);
    }
}
