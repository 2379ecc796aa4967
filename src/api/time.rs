//! Timestamps on the wire: RFC 3339, UTC, milliseconds.

use super::string_form;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, time::Duration};

/// Timestamp: milliseconds since 1970-01-01T00:00:00Z.
///
/// Stored as an integer, written as `2026-11-23T14:54:46.123Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, JsonSchema)]
#[schemars(inline, extend("type" = "string", "format" = "date-time"))]
pub struct Time(i64);

impl Time {
    /// Latest timestamp.
    pub const MAX: Self = Self(i64::MAX);

    /// Current time, by this machine's wall clock.
    pub fn now() -> Self {
        Self(Timestamp::now().as_millisecond())
    }

    /// Timestamp from milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Timestamp later by a duration.
    pub fn plus(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// Timestamp earlier by a duration.
    pub fn minus(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// Text such as `12:40 UTC`, with the date where that differs from the date of `now`.
    pub fn to_minute_text(self, now: Self) -> String {
        let shown = |time: Self, format: &str| {
            let time = Timestamp::from_millisecond(time.0).ok()?;
            Some(time.strftime(format).to_string())
        };
        let date = |time| shown(time, "%Y-%m-%d");
        let format = if date(self) == date(now) {
            "%H:%M UTC"
        } else {
            "%Y-%m-%d %H:%M UTC"
        };
        shown(self, format).unwrap_or_else(|| self.to_string())
    }

    /// Duration since `earlier`; zero where that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            // Outside of the years -9999 to 9999: only from a damaged database.
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl FromStr for Time {
    type Err = ();

    /// Reads RFC 3339.
    fn from_str(text: &str) -> Result<Self, ()> {
        let time: Timestamp = text.parse().map_err(|_| ())?;
        Ok(Self(time.as_millisecond()))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a time in RFC 3339, such as 2026-01-31T12:00:00Z";
        string_form::parsed(deserializer, expected, |text| text.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_serializes_as_rfc_3339_in_utc() {
        let json = serde_json::to_string(&Time::from_millis(1_790_000_000_007)).unwrap();
        assert_eq!(json, "\"2026-09-21T14:13:20.007Z\"");
        let back: Time = serde_json::from_str("\"2026-09-21T16:13:20.007+02:00\"").unwrap();
        assert_eq!(back, Time::from_millis(1_790_000_000_007));
        assert!(serde_json::from_str::<Time>("\"yesterday\"").is_err());
    }

    #[test]
    fn other_day_is_shown_with_date() {
        let time = Time::from_millis(1_790_000_000_007);
        assert_eq!(time.to_minute_text(time), "14:13 UTC");
        let later = time.plus(Duration::from_hours(10));
        assert_eq!(time.to_minute_text(later), "2026-09-21 14:13 UTC");
        assert_eq!(Time::MAX.to_minute_text(time), Time::MAX.to_string());
    }
}
