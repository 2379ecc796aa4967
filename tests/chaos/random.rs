//! Repeatable random numbers: SplitMix64, seeded by `CHAOS_SEED` or the clock.

use std::{env, ops::Range, time::SystemTime};

/// Random numbers of a seed.
pub(crate) struct Random(u64);

impl Random {
    /// Generator with this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Seed from the environment, or a new one.
    pub(crate) fn seed() -> u64 {
        if let Ok(seed) = env::var("CHAOS_SEED") {
            return seed.parse().expect("CHAOS_SEED is a whole number");
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // Short enough to type.
        now.unwrap().as_micros() as u64 % 1_000_000
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Number in this range.
    pub(crate) fn of(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// Element of this slice, if there is any.
    pub(crate) fn pick<'a, T>(&mut self, among: &'a [T]) -> Option<&'a T> {
        let n = among.len() as u64;
        (n > 0).then(|| &among[self.of(0..n) as usize])
    }

    /// Shuffles a list.
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.of(0..last as u64 + 1) as usize);
        }
    }
}
