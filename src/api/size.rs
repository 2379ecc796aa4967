//! Sizes in bytes: `4GiB` for people, a whole number for programs.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{borrow::Cow, fmt, str::FromStr};

/// Units, and their bytes.
const UNITS: [(&str, u64); 6] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
const EXPECTED: &str = "a number of bytes, or a size such as 64MiB or 2GiB";

/// A number of bytes. Reads a whole number or a text with a unit, and writes the number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// A text that is not a size.
#[derive(Debug, thiserror::Error)]
#[error("expected a size such as 64MiB or 2GiB")]
pub struct InvalidSize;

impl FromStr for ByteSize {
    type Err = InvalidSize;

    /// Parses a whole number and a unit; a bare number is bytes. A size that is too large to count is the largest
    /// that can be counted.
    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let digits = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or(InvalidSize)?;
        let number: u64 = number.parse().map_err(|_| InvalidSize)?;
        Ok(Self(number.saturating_mul(*factor)))
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit in which the size is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, bytes): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*bytes);
        let (name, bytes) = UNITS[1..].iter().rev().find(whole).unwrap_or(&UNITS[1]);
        write!(f, "{}{name}", self.0 / bytes)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl de::Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<ByteSize, E> {
        // Some languages write whole numbers so; the range is that of f64's exact integers.
        if number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number) {
            Ok(ByteSize(number as u64))
        } else {
            Err(E::invalid_value(de::Unexpected::Float(number), &self))
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse()
            .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes as a whole number, or with a unit, such as 4GiB.",
            "oneOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB|TiB)?$"},
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_or_texts_with_units() {
        let read = |json: &str| {
            serde_json::from_str::<ByteSize>(json)
                .map(|size| size.0)
                .ok()
        };
        for (json, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("4096.0", Some(4096)),
            ("\"7\"", Some(7)),
            ("\"64MiB\"", Some(64 << 20)),
            ("\"99999999999TiB\"", Some(u64::MAX)),
            ("-1", None),
            ("1.5", None),
            ("\"4 GiB\"", None),
            ("\"4GB\"", None),
            ("\"\"", None),
            ("null", None),
            ("true", None),
        ] {
            assert_eq!(read(json), bytes, "{json}");
        }
    }

    #[test]
    fn sizes_are_shown_in_largest_whole_unit() {
        for (bytes, text) in [
            (0, "0B"),
            (1, "1B"),
            (1 << 10, "1KiB"),
            (1536 << 20, "1536MiB"),
            (4 << 30, "4GiB"),
            (u64::MAX, "18446744073709551615B"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes);
        }
    }
}
