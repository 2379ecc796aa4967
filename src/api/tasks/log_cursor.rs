//! Position of a reader in the log of a task.

use std::{fmt, str::FromStr};

/// Position in the log of a task, `<attempt>-<seq>`: the id of a server-sent event.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LogCursor {
    /// Attempt; 0 before the first.
    pub attempt: u32,
    /// Number of the last event that was read of it; 0 before the first.
    pub seq: u64,
}

impl fmt::Display for LogCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.attempt, self.seq)
    }
}

impl FromStr for LogCursor {
    type Err = ();

    /// Accepts only the form that [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (attempt, seq) = text.split_once('-').ok_or(())?;
        let cursor = Self {
            attempt: attempt.parse().map_err(|_| ())?,
            seq: seq.parse().map_err(|_| ())?,
        };
        (cursor.to_string() == text).then_some(cursor).ok_or(())
    }
}
