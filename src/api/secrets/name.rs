//! Names of secrets.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};

/// Longest name, in characters.
pub const MAX_SECRET_NAME_CHARS: usize = 64;
/// Pattern of names, for schemas.
pub const SECRET_NAME_PATTERN: &str = "^[A-Z_][A-Z0-9_]{0,63}$";
/// Form of a name, in errors.
const EXPECTED: &str = "1 to 64 of A-Z, 0-9 and _, not beginning with a digit, such as API_TOKEN";

/// Name of a secret, also that of its environment variable where a job gives no other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SecretName(String);

/// Text that is not the name of a secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the name of a secret must be {}", EXPECTED)]
pub struct InvalidSecretName;

impl SecretName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = InvalidSecretName;

    fn from_str(text: &str) -> Result<Self, InvalidSecretName> {
        let is_letter = |b: u8| b.is_ascii_uppercase() || b == b'_';
        let mut bytes = text.bytes();
        let is_valid = bytes.next().is_some_and(is_letter)
            && bytes.all(|b| is_letter(b) || b.is_ascii_digit())
            && text.len() <= MAX_SECRET_NAME_CHARS;
        if is_valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSecretName)
        }
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for SecretName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::api::string_form::parsed(deserializer, EXPECTED, |text| text.parse().ok())
    }
}

impl JsonSchema for SecretName {
    fn schema_name() -> Cow<'static, str> {
        "SecretName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": SECRET_NAME_PATTERN})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_that_of_variable() {
        for name in ["A", "_", "API_TOKEN", "A1", &"A".repeat(64)] {
            assert_eq!(name.parse::<SecretName>().unwrap().as_str(), name);
        }
        for name in [
            "",
            "a",
            "1A",
            "A-B",
            "A.B",
            "Ä",
            "A B",
            "A\n",
            &"A".repeat(65),
        ] {
            assert!(name.parse::<SecretName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn error_says_expected_form() {
        let error = serde_json::from_str::<SecretName>("\"a\"").unwrap_err();
        assert!(error.to_string().contains("such as API_TOKEN"), "{error}");
    }
}
