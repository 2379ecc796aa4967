//! Lenient deserialization for payloads of other implementations, for `deserialize_with`: an optional field may be
//! missing, `null` or of another type without making the whole payload invalid.
//!
//! Only for fields whose loss changes nothing that an operator relies on. An invalid limit or policy is an
//! error, never a default.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// Value, or the default for `null`. A wrong type is an error.
pub(super) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Value, or the default for `null` and for any value that is not a `T`.
pub(super) fn invalid_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// String; `None` for `null`, another type and the empty string.
pub(super) fn empty_as_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text: Option<String> = invalid_as_default(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// Boolean, or `true` for `null`: for a flag whose object implies it by being there.
pub(super) fn null_as_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(true))
}

/// Default of a flag that [`null_as_true`] reads.
pub(super) const fn default_true() -> bool {
    true
}

/// Whether a field has its default, for `skip_serializing_if`: older readers then need not know it.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
