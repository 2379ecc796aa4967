//! Where a reader stands in what a task prints.

use std::{fmt, str::FromStr};

/// A place in a task's output, `<attempt>-<seq>`: the id of a server-sent event.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LogCursor {
    /// Which attempt; 0 before the first.
    pub attempt: u32,
    /// Number of the last event that was seen of it; 0 before the first.
    pub seq: u64,
}

impl fmt::Display for LogCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.attempt, self.seq)
    }
}

impl FromStr for LogCursor {
    type Err = ();

    /// Takes what [`Display`](fmt::Display) writes, and nothing that only means the same.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (attempt, seq) = text.split_once('-').ok_or(())?;
        let place = Self {
            attempt: attempt.parse().map_err(|_| ())?,
            seq: seq.parse().map_err(|_| ())?,
        };
        (place.to_string() == text).then_some(place).ok_or(())
    }
}
