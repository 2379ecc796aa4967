//! One host at one port, for what is about a single server: a secret that only it may get, TLS that the proxy opens.

use super::{EgressPattern, HostName, InvalidPattern, pattern::MAX_PATTERN_BYTES};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// Port of HTTPS, where a text names none.
pub const HTTPS_PORT: u16 = 443;
/// Port of plain HTTP.
pub const HTTP_PORT: u16 = 80;

/// One host at one port: `api.example.com` (port 443), or `api.example.com:8443`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// Name of the host.
    pub host: HostName,
    /// Port.
    pub port: u16,
}

/// Reason why a text is not one host; a predicate about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidHostPort {
    /// Neither one host nor several.
    #[error(transparent)]
    Form(InvalidPattern),
    /// Several hosts.
    #[error("has *; name one host, such as api.example.com")]
    Wildcard,
}

impl From<InvalidPattern> for InvalidHostPort {
    fn from(error: InvalidPattern) -> Self {
        match error {
            InvalidPattern::Wildcard => Self::Wildcard,
            InvalidPattern::Host(_) | InvalidPattern::Port => Self::Form(error),
        }
    }
}

impl HostPort {
    /// Text of a problem: the lists of a job lack the host.
    pub(in crate::api) fn unlisted(&self) -> String {
        let pattern = EgressPattern::from(self);
        format!(
            "names {self}, which neither egress.allow nor a profile in egress.profiles has; add {pattern} to egress.allow"
        )
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)?;
        match self.port {
            HTTPS_PORT => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

impl FromStr for HostPort {
    type Err = InvalidHostPort;

    fn from_str(text: &str) -> Result<Self, InvalidHostPort> {
        let pattern: EgressPattern = text.parse()?;
        let (host, port) = pattern.into_single().ok_or(InvalidHostPort::Wildcard)?;
        Ok(Self {
            host,
            port: port.unwrap_or(HTTPS_PORT),
        })
    }
}

impl TryFrom<String> for HostPort {
    type Error = InvalidHostPort;

    fn try_from(text: String) -> Result<Self, InvalidHostPort> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(host: HostPort) -> Self {
        host.to_string()
    }
}

impl JsonSchema for HostPort {
    fn schema_name() -> Cow<'static, str> {
        "HostPort".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Name of one host, at port 443, or at another one as in api.example.com:8443. No IP addresses.",
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_PATTERN_BYTES,
            "pattern": "^[^*:/\\[\\]\\s]+(:[0-9]+)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_names_one_host_at_one_port() {
        for (text, host, port, shown) in [
            ("API.example.com", "api.example.com", 443, "api.example.com"),
            (
                "api.example.com:443",
                "api.example.com",
                443,
                "api.example.com",
            ),
            ("a.b:80", "a.b", 80, "a.b:80"),
            (
                "bücher.example.:8443",
                "xn--bcher-kva.example",
                8443,
                "xn--bcher-kva.example:8443",
            ),
        ] {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
            assert_eq!(parsed.to_string(), shown);
        }
    }

    #[test]
    fn errors_say_what_to_write() {
        for (text, part) in [
            ("*.a.b", "name one host"),
            ("*", "name one host"),
            ("a.*", "name one host"),
            ("10.0.0.1", "is an IP address"),
            ("10.0.0.1:443", "is an IP address"),
            ("[::1]:443", "is an IP address"),
            ("", "is empty"),
            (":443", "is empty"),
            ("a.b:0", "has an invalid port"),
            ("a.b:", "has an invalid port"),
            ("a.b:65536", "has an invalid port"),
            ("https://a.b", "write it without scheme and path"),
            ("a.b/c", "write it without scheme and path"),
        ] {
            let error = text.parse::<HostPort>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn one_host_matches_itself_alone(
            host in "[ab](\\.[ab]){0,2}",
            port in proptest::sample::select(vec![80_u16, 443, 8443]),
            other in "[ab](\\.[ab]){0,2}(:80|:443|:8443)?",
        ) {
            let one: HostPort = format!("{host}:{port}").parse().unwrap();
            let json = serde_json::to_value(&one).unwrap();
            prop_assert_eq!(serde_json::from_value::<HostPort>(json).unwrap(), one.clone());
            let other: HostPort = other.parse().unwrap();
            let pattern = EgressPattern::from(&one);
            prop_assert!(pattern.matches(&one.host, one.port));
            prop_assert_eq!(pattern.matches(&other.host, other.port), one == other);
        }
    }
}
