//! Deserialization of whole numbers as JSON Schema counts them: `5.0` is 5, and some languages write it so.

use super::problem::Problem;
use serde::{
    Deserializer,
    de::{self, Unexpected, Visitor},
};
use std::{
    fmt,
    marker::PhantomData,
    ops::{Bound, RangeBounds, RangeInclusive},
};

/// Optional whole number within `range`; `null` counts as absent.
///
/// # Errors
/// Says the range and what came instead.
pub(super) fn optional_integer<'de, D, T>(
    deserializer: D,
    range: impl RangeBounds<T>,
) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Copy + PartialOrd + TryFrom<i128> + fmt::Display,
{
    deserializer.deserialize_any(IntegerVisitor(range, PhantomData))
}

/// Form of a whole number within `range`, in words.
pub(super) fn range_text<T: fmt::Display>(range: &impl RangeBounds<T>) -> String {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(least), Bound::Included(most)) => {
            format!("a whole number from {least} to {most}")
        }
        (Bound::Included(least), _) => format!("a whole number of at least {least}"),
        _ => "a whole number".to_owned(),
    }
}

struct IntegerVisitor<R, T>(R, PhantomData<T>);

impl<R, T> IntegerVisitor<R, T>
where
    R: RangeBounds<T>,
    T: Copy + PartialOrd + TryFrom<i128> + fmt::Display,
{
    fn accept<E: de::Error>(&self, number: i128, found: Unexpected<'_>) -> Result<Option<T>, E> {
        let number = T::try_from(number).ok();
        match number.filter(|number| self.0.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(E::invalid_value(found, self)),
        }
    }
}

impl<R, T> Visitor<'_> for IntegerVisitor<R, T>
where
    R: RangeBounds<T>,
    T: Copy + PartialOrd + TryFrom<i128> + fmt::Display,
{
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&range_text(&self.0))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Option<T>, E> {
        self.accept(number.into(), Unexpected::Signed(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Option<T>, E> {
        self.accept(number.into(), Unexpected::Unsigned(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Option<T>, E> {
        let found = Unexpected::Float(number);
        if number.fract() == 0.0 {
            // A float beyond the limits of i128 becomes the nearest of these, which no type here holds.
            self.accept(number as i128, found)
        } else {
            Err(E::invalid_value(found, &self))
        }
    }
}

/// Checks that a number is in a range; `pointer` names its field in the problem.
pub(super) fn check_range<T: PartialOrd + fmt::Display>(
    pointer: &str,
    number: T,
    range: RangeInclusive<T>,
) -> Result<(), Problem> {
    if range.contains(&number) {
        return Ok(());
    }
    let expected = range_text(&range);
    let detail = format!("must be {expected}, got {number}");
    Err(Problem::field(pointer, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(json: &str, range: impl RangeBounds<T>) -> Option<Option<T>>
    where
        T: Copy + PartialOrd + TryFrom<i128> + fmt::Display,
    {
        optional_integer(&mut serde_json::Deserializer::from_str(json), range).ok()
    }

    #[test]
    fn only_whole_numbers_are_integers() {
        for (json, number) in [
            ("null", None),
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("1e2", Some(100)),
            ("-0.0", Some(0)),
        ] {
            assert_eq!(read::<u32>(json, 0..), Some(number), "{json}");
        }
        for json in [
            "5.5",
            "-1",
            "-1.0",
            "4294967296",
            "1e20",
            "1e400",
            "\"5\"",
            "true",
            "[]",
        ] {
            assert_eq!(read::<u32>(json, 0..), None, "{json}");
        }
        assert_eq!(read::<i32>("-1.0", ..), Some(Some(-1)));
        assert_eq!(
            read::<u64>("18446744073709551615", 1..),
            Some(Some(u64::MAX))
        );
        assert_eq!(read::<u64>("18446744073709551616", 1..), None);
    }

    #[test]
    fn range_is_enforced_and_named() {
        assert_eq!(read::<u32>("100", 1..=100), Some(Some(100)));
        for (json, range, text) in [
            (
                "101",
                1..=100,
                "invalid value: integer `101`, expected a whole number from 1 to 100",
            ),
            (
                "true",
                1..=9,
                "invalid type: boolean `true`, expected a whole number from 1 to 9",
            ),
        ] {
            let error =
                optional_integer::<_, u32>(&mut serde_json::Deserializer::from_str(json), range);
            assert!(error.unwrap_err().to_string().starts_with(text), "{json}");
        }
    }
}
