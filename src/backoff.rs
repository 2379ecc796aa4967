//! Backoff between tries: each twice as long as the one before, up to a limit, and never quite
//! the same, so that those who failed together don't come back together.

use std::time::Duration;

/// A sequence of backoff.
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// From `first` up to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            attempts: 0,
        }
    }

    /// Whether none was attempts yet.
    pub const fn is_fresh(&self) -> bool {
        self.attempts == 0
    }

    /// How long to wait now.
    pub fn next_delay(&mut self) -> Duration {
        let pause = nth_delay(self.first, self.longest, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        pause
    }

    /// A try went well; the next pause is the first again.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// Pause number `n`, counted from 0: between half and all of `first` doubled `n` times.
pub fn nth_delay(first: Duration, longest: Duration, n: u32) -> Duration {
    let full = longest.min(first.saturating_mul(2_u32.saturating_pow(n)));
    // Without randomness the pauses are merely all alike.
    let random = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
    full.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_within_bounds() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_mins(1));
        let mut backoff = Backoff::new(first, longest);
        for n in 0..200_u32 {
            let full = longest.min(first * 2_u32.pow(n.min(6)));
            let pause = backoff.next_delay();
            assert!(pause >= full / 2 && pause <= full, "{n}: {pause:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= first);
    }
}
