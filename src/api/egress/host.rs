//! Host names in one normal form, so that a list, a request and a TLS client hello name a server alike.

use idna::AsciiDenyList;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// Longest host name, in bytes, without the final dot (RFC 1035).
const MAX_HOST_BYTES: usize = 253;
/// Longest part of a host name between two dots, in bytes.
const MAX_LABEL_BYTES: usize = 63;
/// Longest text that is read as a host name, in bytes: conversion of a longer one is not worth its time. Characters that
/// are not ASCII take more bytes here than in the result.
const MAX_INPUT_BYTES: usize = 1024;

/// Name of a host: ASCII in lower case (IDNA), without a final dot, and never an IP address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// Reason why a text is not a host name; completes a sentence that begins with `host`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidHost {
    /// No text.
    #[error("is empty; write a name such as api.example.com")]
    Empty,
    /// An IP address in any of its forms.
    #[error("is an IP address; write the name of the server, such as api.example.com")]
    Address,
    /// A name or a label beyond the limits of DNS.
    #[error("is too long: a name has at most 253 bytes, and 63 between two dots")]
    TooLong,
    /// Other characters than names have.
    #[error("is not a valid name; write it without scheme and path, such as api.example.com")]
    Form,
}

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        if text.is_empty() {
            return Err(InvalidHost::Empty);
        }
        if text.len() > MAX_INPUT_BYTES {
            return Err(InvalidHost::TooLong);
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok() {
            return Err(InvalidHost::Address);
        }
        let ascii = idna::domain_to_ascii_cow(text.as_bytes(), AsciiDenyList::URL)
            .map_err(|_| InvalidHost::Form)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() {
            return Err(InvalidHost::Empty);
        }
        if name.len() > MAX_HOST_BYTES {
            return Err(InvalidHost::TooLong);
        }
        let mut last = "";
        for label in name.split('.') {
            check_label(label)?;
            last = label;
        }
        // Resolvers take 127.1, 0x7f000001 and the like as addresses, and no top-level domain is a number.
        if is_number(last) {
            return Err(InvalidHost::Address);
        }
        Ok(Self(name.to_owned()))
    }
}

/// Checks one label. Underscores are no part of host names by the letter of RFC 952, but of names that exist.
fn check_label(label: &str) -> Result<(), InvalidHost> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if label.len() > MAX_LABEL_BYTES {
        return Err(InvalidHost::TooLong);
    }
    let has_form =
        label.bytes().all(is_allowed) && !label.starts_with('-') && !label.ends_with('-');
    if label.is_empty() || !has_form {
        return Err(InvalidHost::Form);
    }
    Ok(())
}

/// Whether a label is a number as C libraries read one: decimal, octal, or hexadecimal after `0x`.
fn is_number(label: &str) -> bool {
    let digits = label.strip_prefix("0x");
    digits.map_or_else(
        || label.bytes().all(|b| b.is_ascii_digit()),
        |digits| digits.bytes().all(|b| b.is_ascii_hexdigit()),
    )
}

impl TryFrom<String> for HostName {
    type Error = InvalidHost;

    fn try_from(text: String) -> Result<Self, InvalidHost> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(host: HostName) -> Self {
        host.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<String, InvalidHost> {
        text.parse::<HostName>().map(|host| host.to_string())
    }

    #[test]
    fn names_have_one_form() {
        for (text, name) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.COM", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("localhost", "localhost"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("api。example．com", "api.example.com"),
            ("_dns.a-b.1e100.net", "_dns.a-b.1e100.net"),
            ("1.2.3.example", "1.2.3.example"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(name), "{text}");
        }
    }

    #[test]
    fn addresses_are_no_names() {
        for text in [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "0x",
            "a.0x7f",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "１２７.0.0.1",
        ] {
            assert_eq!(parsed(text), Err(InvalidHost::Address), "{text}");
        }
    }

    #[test]
    fn hostile_texts_are_refused() {
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            "-a",
            "a-",
            "a.-b",
            "a b",
            "a\0",
            "a\n",
            "a\r\nHost: b",
            "*",
            "*.a",
            "a.*",
            "a/b",
            "a:80",
            "user@a",
            "a%2eb",
            "http://a",
            "a?b",
            "a#b",
            "a\\b",
            "fe80::1%eth0",
            "[::1]:80",
            "xn--a",
            "xn--",
            "\u{200b}",
            "a\u{202e}b",
            "a,b",
            "a;b",
            "a\"b",
        ] {
            assert!(parsed(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn long_names_are_refused() {
        let label = "a".repeat(MAX_LABEL_BYTES);
        assert!(parsed(&label).is_ok());
        assert_eq!(parsed(&format!("{label}a")), Err(InvalidHost::TooLong));
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(longest.len(), MAX_HOST_BYTES);
        assert!(parsed(&longest).is_ok() && parsed(&format!("{longest}.")).is_ok());
        assert_eq!(parsed(&format!("a{longest}")), Err(InvalidHost::TooLong));
        for endless in [
            "a".repeat(1 << 20),
            "ü".repeat(1 << 20),
            "a.".repeat(1 << 20),
        ] {
            assert_eq!(parsed(&endless), Err(InvalidHost::TooLong));
        }
    }

    proptest! {
        #[test]
        fn name_is_stable_and_bounded(text in "[a-zA-Z0-9._ü。\\-]{0,40}|\\PC{0,20}|.{0,20}") {
            if let Ok(host) = text.parse::<HostName>() {
                let name = host.as_str();
                prop_assert_eq!(name.parse::<HostName>(), Ok(host.clone()));
                prop_assert!((1..=MAX_HOST_BYTES).contains(&name.len()));
                prop_assert!(name.is_ascii() && !name.bytes().any(|b| b.is_ascii_uppercase()));
                prop_assert!(!name.ends_with('.') && name.parse::<IpAddr>().is_err());
            }
        }

        #[test]
        fn ascii_case_makes_no_difference(text in "[a-zA-Z0-9._-]{0,40}") {
            prop_assert_eq!(
                text.to_ascii_uppercase().parse::<HostName>(),
                text.to_ascii_lowercase().parse::<HostName>()
            );
        }
    }
}
