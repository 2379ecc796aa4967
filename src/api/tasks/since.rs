//! Start of the part of a log that a reader asks for.

use crate::api::time::Time;
use std::{str::FromStr, time::Duration};

/// Time, or duration before now: `2026-01-31T12:00:00Z`, `10m`, `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// Time.
    At(Time),
    /// Duration before now.
    Ago(Duration),
}

impl Since {
    /// Time that is meant at the time `now`.
    pub fn at(self, now: Time) -> Time {
        match self {
            Self::At(time) => time,
            Self::Ago(duration) => now.minus(duration),
        }
    }
}

impl FromStr for Since {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.parse() {
            Ok(time) => Ok(Self::At(time)),
            Err(()) => parse_duration(text).map(Self::Ago).ok_or(()),
        }
    }
}

/// Duration of numbers with units, largest first or not: `90s`, `1d12h`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    for part in text.split_inclusive(|c: char| c.is_ascii_alphabetic()) {
        let unit = part.chars().next_back()?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        let number: u64 = part.strip_suffix(unit)?.parse().ok()?;
        total = total.checked_add(Duration::from_secs(number.checked_mul(seconds)?))?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_time_or_duration() {
        let ago = |seconds| Ok(Since::Ago(Duration::from_secs(seconds)));
        assert_eq!("10m".parse(), ago(600));
        assert_eq!("1d1h1m1s".parse(), ago(90_061));
        let time: Result<Since, ()> = "1970-01-01T00:00:01+00:00".parse();
        assert_eq!(time, Ok(Since::At(Time::from_millis(1000))));
        for text in [
            "",
            "10",
            "m",
            "1w",
            "-1s",
            "1.5h",
            "now",
            "99999999999999999999d",
        ] {
            assert_eq!(text.parse::<Since>(), Err(()), "{text}");
        }
    }
}
