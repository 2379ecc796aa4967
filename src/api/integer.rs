//! Whole numbers as JSON Schema counts them: `5.0` is 5, and some languages write it so.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Number;

/// For `deserialize_with`: a whole number within the limits of `T`, or null.
pub(super) fn optional_integer<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i128>,
{
    let Some(number) = Option::<Number>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let float = || {
        let float = number.as_f64()?;
        (float.fract() == 0.0).then_some(float as i128)
    };
    let whole = number
        .as_i128()
        .or_else(float)
        .ok_or_else(|| D::Error::custom(format!("expected a whole number, not {number}")))?;
    let fits = T::try_from(whole).map(Some);
    fits.map_err(|_| {
        let which = if whole < 0 { "small" } else { "large" };
        D::Error::custom(format!("{number} is too {which}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: TryFrom<i128>>(json: &str) -> Option<Option<T>> {
        optional_integer(&mut serde_json::Deserializer::from_str(json)).ok()
    }

    #[test]
    fn whole_numbers_have_no_fraction() {
        for (json, number) in [
            ("null", None),
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("1e2", Some(100)),
            ("-0.0", Some(0)),
        ] {
            assert_eq!(read::<u32>(json), Some(number), "{json}");
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
            assert_eq!(read::<u32>(json), None, "{json}");
        }
        assert_eq!(read::<i32>("-1.0"), Some(Some(-1)));
        assert_eq!(read::<u64>("18446744073709551615"), Some(Some(u64::MAX)));
        assert_eq!(read::<u64>("18446744073709551616"), None);
    }
}
