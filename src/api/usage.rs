//! Use of models: requests and tokens, summed up by day, user, key, task and model.

use super::{
    ApiKeyId, TaskId,
    string_form::{self, named_enum},
    time::Time,
};
use jiff::{ToSpan as _, civil::Date, tz::TimeZone};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// Day in UTC, written as `2026-11-23`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, JsonSchema)]
#[schemars(inline, extend("format" = "date"))]
pub struct Day(#[schemars(with = "String")] Date);

impl Day {
    /// Day of a time.
    pub fn of(time: Time) -> Self {
        let time = jiff::Timestamp::from_millisecond(time.as_millis());
        // Other times come only from a damaged database.
        Self(time.map_or(Date::MAX, |time| TimeZone::UTC.to_datetime(time).date()))
    }

    /// First millisecond of this day.
    pub fn start(self) -> Time {
        let start = TimeZone::UTC.to_timestamp(self.0.at(0, 0, 0, 0));
        start.map_or(Time::MAX, |start| Time::from_millis(start.as_millisecond()))
    }

    /// Day this number of days before.
    pub fn minus_days(self, days: u32) -> Self {
        Self(self.0.saturating_sub(i64::from(days).days()))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Day {
    type Err = ();

    /// Reads `2026-11-23`, for years from 1970 on.
    fn from_str(text: &str) -> Result<Self, ()> {
        let date: Date = text.parse().map_err(|_| ())?;
        let day = Self(date);
        (date.year() >= 1970 && day.to_string() == text)
            .then_some(day)
            .ok_or(())
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        string_form::parsed(deserializer, "a day such as 2026-01-31", |text| {
            text.parse().ok()
        })
    }
}

named_enum! {
    /// Field by which use is summed up.
    pub enum UsageField {
        /// Day, in UTC.
        Day,
        /// User.
        User,
        /// API key; requests with a login or from a sandbox have none.
        Key,
        /// Task whose sandbox sent the requests.
        Task,
        /// Model.
        Model,
    }
}

/// Fields by which use is summed up: names separated by commas, in the order of the sums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageFields(pub Vec<UsageField>);

impl UsageFields {
    /// Form of the text, which completes "must be …".
    pub const EXPECTED: &str = "some of day, user, key, task and model, separated by commas";
}

impl Default for UsageFields {
    fn default() -> Self {
        Self(vec![UsageField::User, UsageField::Key, UsageField::Model])
    }
}

impl FromStr for UsageFields {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = Vec::new();
        for name in text.split(',') {
            let field = name.trim().parse().map_err(|_| ())?;
            if fields.contains(&field) {
                return Err(());
            }
            fields.push(field);
        }
        Ok(Self(fields))
    }
}

/// Sum of requests and tokens, with the fields by which it was formed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
pub struct UsageSum {
    /// Day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<Day>,
    /// Handle of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Id of the API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<ApiKeyId>,
    /// Name of the API key, which may have been revoked since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// Id of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Name of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Number of requests.
    pub requests: u64,
    /// Tokens that models read.
    pub prompt_tokens: u64,
    /// Tokens that models wrote.
    pub completion_tokens: u64,
}

/// Answer of `GET /v1/usage`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct Usage {
    /// First day.
    pub since: Day,
    /// Last day.
    pub until: Day,
    /// Sums, sorted by their fields.
    pub usage: Vec<UsageSum>,
    /// Value of `cursor` for the next page; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_full_dates_are_days() {
        let day: Day = "2026-11-29".parse().unwrap();
        assert_eq!(day.to_string(), "2026-11-29");
        assert_eq!(day.start().to_string(), "2026-11-29T00:00:00.000Z");
        assert_eq!(day.minus_days(29).to_string(), "2026-10-31");
        for text in [
            "",
            "2026-11",
            "20261129",
            "2026-02-30",
            "1969-12-31",
            "2026-11-29T00:00:00Z",
            "today",
        ] {
            assert_eq!(text.parse::<Day>(), Err(()), "{text}");
        }
    }

    #[test]
    fn fields_are_known_and_unique() {
        let parsed = "model, day".parse();
        assert_eq!(
            parsed,
            Ok(UsageFields(vec![UsageField::Model, UsageField::Day]))
        );
        for text in ["", "node", "day,day", "day,", "Day"] {
            assert_eq!(text.parse::<UsageFields>(), Err(()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn time_is_within_its_day(millis in 0_i64..4_000_000_000_000) {
            let time = Time::from_millis(millis);
            let start = Day::of(time).start();
            prop_assert!(start <= time && time.since(start).as_secs() < 86_400);
            prop_assert_eq!(Day::of(start).to_string(), time.to_string()[..10].to_owned());
        }
    }
}
