//! Whole numbers as JSON Schema counts them: `5.0` is 5, and some languages write it so.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Number;

/// For `deserialize_with`: a whole number within the limits of `T`, or null.
pub(super) fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let Some(number) = Option::<Number>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let range = 0.0..u64::MAX as f64;
    let float = || {
        let float = number.as_f64()?;
        (float.fract() == 0.0 && range.contains(&float)).then_some(float as u64)
    };
    let whole = number.as_u64().or_else(float);
    whole
        .and_then(|whole| T::try_from(whole).ok())
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("expected a whole number from 0 on, not {number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<Option<u32>> {
        whole(&mut serde_json::Deserializer::from_str(json)).ok()
    }

    #[test]
    fn whole_is_what_has_no_fraction() {
        for (json, number) in [
            ("null", None),
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("1e2", Some(100)),
            ("-0.0", Some(0)),
        ] {
            assert_eq!(read(json), Some(number), "{json}");
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
            assert_eq!(read(json), None, "{json}");
        }
    }
}
