//! Deserialization of values that travel as strings: ids, times, and enums by name.
//!
//! Their errors name the form that is expected, where serde's derives would name types and variants.

use serde::{
    Deserializer,
    de::{self, Unexpected, Visitor},
};
use std::{fmt, str::FromStr};
use strum::VariantNames;

/// Value that `parse` makes of a string; `expected` names the form in errors.
pub(super) fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(StringVisitor { expected, parse })
}

/// Variant of an enum by its name on the wire; errors list the names.
pub(super) fn named<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr + VariantNames,
{
    let expected = format!("one of {}", T::VARIANTS.join(", "));
    parsed(deserializer, &expected, |name| name.parse().ok())
}

struct StringVisitor<'a, F> {
    expected: &'a str,
    parse: F,
}

impl<T, F: FnOnce(&str) -> Option<T>> Visitor<'_> for StringVisitor<'_, F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let expected = self.expected;
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &expected))
    }
}

/// Implements `Deserialize` for enums with strum's `EnumString` and `VariantNames`.
macro_rules! deserialize_by_name {
    ($($name:ty),+ $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::api::string_form::named(deserializer)
            }
        }
    )+};
}
pub(super) use deserialize_by_name;

/// Defines an enum that travels, and is stored, by the snake_case names of its variants: one list of derives, so that
/// serde, schemas and the database agree on the names.
macro_rules! named_enum {
    ($(#[$attribute:meta])* pub enum $name:ident { $($variants:tt)* }) => {
        $(#[$attribute])*
        #[derive(
            Clone,
            Copy,
            PartialEq,
            Eq,
            Debug,
            serde::Serialize,
            schemars::JsonSchema,
            strum::EnumString,
            strum::IntoStaticStr,
            strum::VariantArray,
            strum::VariantNames,
        )]
        #[serde(rename_all = "snake_case")]
        #[strum(serialize_all = "snake_case")]
        pub enum $name {
            $($variants)*
        }

        impl $name {
            /// Every variant, in the order of the definition.
            pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

            /// Name on the wire and in the database.
            pub fn as_str(self) -> &'static str {
                self.into()
            }
        }

        $crate::api::string_form::deserialize_by_name!($name);
    };
}
pub(super) use named_enum;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        TaskId,
        audit::{AuditAction, AuditOutcome},
        jobs::{NetworkPolicy, Outcome},
        nodes::{AckStatus, NodeStatus},
        tasks::{InputMode, JobStatus, TaskStatus},
        time::Time,
    };
    use serde::{Serialize, de::DeserializeOwned};

    /// Checks that serde, schemas and strum know a type's variants by the same names.
    fn assert_names_agree<T>()
    where
        T: DeserializeOwned + Serialize + FromStr + VariantNames,
    {
        for name in T::VARIANTS {
            let json = format!("{name:?}");
            let value: T = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert!(name.to_uppercase().parse::<T>().is_err());
        }
    }

    #[test]
    fn serde_and_strum_names_agree() {
        assert_names_agree::<AuditAction>();
        assert_names_agree::<AuditOutcome>();
        assert_names_agree::<AckStatus>();
        assert_names_agree::<InputMode>();
        assert_names_agree::<JobStatus>();
        assert_names_agree::<NetworkPolicy>();
        assert_names_agree::<NodeStatus>();
        assert_names_agree::<Outcome>();
        assert_names_agree::<TaskStatus>();
    }

    #[test]
    fn errors_name_expected_form() {
        fn error<T: DeserializeOwned>(json: &str) -> String {
            let error = serde_json::from_str::<T>(json).err();
            error.map_or_else(String::new, |error| error.to_string())
        }
        for (found, expected) in [
            (
                error::<TaskId>("\"x\""),
                "invalid value: string \"x\", expected a UUID",
            ),
            (
                error::<TaskId>("7"),
                "invalid type: integer `7`, expected a UUID",
            ),
            (
                error::<Time>("\"now\""),
                "invalid value: string \"now\", expected a time in RFC 3339, such as 2026-01-31T12:00:00Z",
            ),
            (
                error::<NetworkPolicy>("\"open\""),
                "invalid value: string \"open\", expected one of none, restricted, allowlist",
            ),
        ] {
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
