//! Readers for payloads of other implementations, for `deserialize_with`: a field that isn't needed may be
//! missing, null or of another type without making the whole payload unreadable.
//!
//! Only for fields whose loss changes nothing that an operator relies on. A limit or a policy that can't be
//! read is an error, never a default.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// Null as if the field were missing; a wrong type is an error.
pub(super) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Null, or a value that is no `T`, as if the field were missing.
pub(super) fn invalid_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// A text; null, another type and the empty text as if the field were missing.
pub(super) fn empty_as_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text: Option<String> = invalid_as_default(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// True, or what the field says: for a flag whose object being there says enough.
pub(super) fn null_as_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(true))
}

/// The default of a flag that [`null_as_true`] reads.
pub(super) const fn default_true() -> bool {
    true
}
