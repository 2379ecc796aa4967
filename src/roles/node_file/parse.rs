//! From the text of `node.yaml` to its sections. An error names the key, its line and the form that is expected,
//! and never repeats a value: a secret may stand in the wrong place.

use super::NodeFile;
use crate::{api::egress::AllowedEntry, cli};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_saphyr::{Error, SnippetMode, UserMessageFormatter};
use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

/// Parses a whole file; one of nothing but comments has no settings.
pub(super) fn file(text: &str) -> Result<NodeFile, String> {
    let mut key = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize::<_, Option<NodeFile>>(deserializer).map_err(|error| {
            key = error.path().to_string();
            error.into_inner()
        })
    });
    parsed
        .map(Option::unwrap_or_default)
        .map_err(|error| describe(&error, &key))
}

/// Line, key, and what is expected there.
fn describe(error: &Error, key: &str) -> String {
    let error = match error {
        Error::WithSnippet { error, .. } => error,
        other => other,
    };
    let (key, expected) = match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => {
            let section = key
                .trim_end_matches(['.', '?'])
                .trim_end_matches(field)
                .trim_end_matches('.');
            let field = crate::text::clean(field);
            let key = if section.is_empty() {
                field
            } else {
                format!("{section}.{field}")
            };
            (
                key,
                format!("is not a setting; expected one of {}", expected.join(", ")),
            )
        }
        Error::SerdeUnknownVariant { expected, .. } => (
            key.to_owned(),
            format!("expected one of {}", expected.join(", ")),
        ),
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map(crate::text::clean).unwrap_or_default();
            (key, "is there twice; keep one of them".to_owned())
        }
        Error::Unexpected { expected, .. } => (key.to_owned(), form(expected).to_owned()),
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => {
            (key.to_owned(), form("").to_owned())
        }
        Error::Message { msg, .. } => (key.to_owned(), msg.clone()),
        other => {
            let plain = serde_saphyr::render_options! {
                formatter: &UserMessageFormatter,
                snippets: SnippetMode::Off,
            };
            return format!("not valid YAML: {}", other.render_with_options(plain));
        }
    };
    let line = error.location().map_or(0, |location| location.line());
    let key = if matches!(key.as_str(), "" | ".") {
        "the file".to_owned()
    } else {
        key
    };
    format!("line {line}: {key}: {expected}")
}

/// The form of a value, from the parser's name of its first token.
fn form(token: &str) -> &'static str {
    match token {
        "mapping start" => "expected settings below it, one `name: value` a line",
        "sequence start" => "expected a list such as [a, b]",
        _ => "expected one value",
    }
}

/// A section; one of which every line is commented out is null, and has no settings.
pub(super) fn section<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A value, by the parser of its flag.
fn value<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse(&text))
        .transpose()
        .map_err(D::Error::custom)
}

/// A list, each entry by the parser of its flag. One without entries is a setting, too.
fn list<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<Vec<T>>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parsed: Result<Vec<T>, String> = texts.iter().map(|text| parse(text)).collect();
    parsed.map(Some).map_err(D::Error::custom)
}

/// Entries of a list of allowed hosts.
pub(super) fn hosts<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Vec<AllowedEntry>>, D::Error> {
    list(from, cli::parse_entry)
}

/// Networks, as CIDR.
pub(super) fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<IpNet>>, D::Error> {
    list(from, cli::parse_network)
}

/// URL of a proxy.
pub(super) fn upstream<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    value(from, cli::parse_upstream)
}

pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    value(from, cli::parse_duration)
}

/// A duration or `off`.
pub(super) fn duration_or_off<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Duration>, D::Error> {
    value(from, cli::parse_duration_or_off)
}

/// A number of bytes.
pub(super) fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    value(from, cli::parse_size)
}

pub(super) fn listen<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    value(from, cli::parse_listen)
}

pub(super) fn host<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    value(from, |text| {
        text.parse()
            .map_err(|_| "expected an IP address, such as 0.0.0.0".to_owned())
    })
}

/// A whole number.
pub(super) fn count<'de, D: Deserializer<'de>, T>(from: D) -> Result<Option<T>, D::Error>
where
    T: FromStr + PartialOrd + std::fmt::Display + 'static,
{
    value(from, cli::number(..))
}

/// A whole number, at least 1.
pub(super) fn positive<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    value(from, cli::number(1..))
}

/// A port, not 0.
pub(super) fn port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    value(from, cli::number(1..=u16::MAX))
}

/// A port; 0 picks a free one.
pub(super) fn any_port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    value(from, cli::number(0..=u16::MAX))
}
