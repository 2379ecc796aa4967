//! Patterns of hosts and ports: the entries of lists of allowed names.

use super::{
    HostPort,
    host::{HostName, InvalidHost},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

/// Ports that a pattern without a port stands for: HTTPS and HTTP.
const DEFAULT_PORTS: [u16; 2] = [443, 80];
/// Prefix of a pattern for all names below a domain.
const WILDCARD: &str = "*.";
/// Longest text that is read as a pattern, in bytes.
pub(super) const MAX_PATTERN_BYTES: usize = 1024;

/// Hosts that may be reached: one name, or with `*.` all names below a domain and not the domain itself; at one port, or
/// without a port at 443 and 80.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressPattern {
    host: HostName,
    is_wildcard: bool,
    port: Option<u16>,
}

/// Reason why a text is not a pattern; a predicate about the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidPattern {
    /// The host is none.
    #[error(transparent)]
    Host(#[from] InvalidHost),
    /// Another port than a number from 1 to 65535.
    #[error("has an invalid port; write a number from 1 to 65535, as in api.example.com:8443")]
    Port,
    /// A star elsewhere than for the first labels.
    #[error(
        "has * at another place than the beginning; write one name, or *.example.com for all names below a domain"
    )]
    Wildcard,
}

impl EgressPattern {
    /// Whether a connection to this host and port fits.
    pub fn matches(&self, host: &HostName, port: u16) -> bool {
        self.ports().contains(&port) && self.has_name(host)
    }

    /// Whether it names this host itself, and not a domain above it, at this port.
    pub fn names(&self, host: &HostName, port: u16) -> bool {
        !self.is_wildcard && self.matches(host, port)
    }

    /// Whether everything that fits `other` fits this pattern, too.
    pub fn covers(&self, other: &Self) -> bool {
        let has_ports = other.ports().iter().all(|port| self.ports().contains(port));
        let has_names = match (self.is_wildcard, other.is_wildcard) {
            (_, false) => self.has_name(&other.host),
            (true, true) => self.host == other.host || self.has_name(&other.host),
            (false, true) => false,
        };
        has_ports && has_names
    }

    /// Ports that the pattern stands for.
    pub(super) fn ports(&self) -> &[u16] {
        match &self.port {
            Some(port) => std::slice::from_ref(port),
            None => &DEFAULT_PORTS,
        }
    }

    /// The same hosts at one port.
    pub(super) fn at(&self, port: u16) -> Self {
        Self {
            port: Some(port),
            ..self.clone()
        }
    }

    /// Host and port of a pattern that stands for one host; `None` for all names below a domain.
    pub(super) fn into_single(self) -> Option<(HostName, Option<u16>)> {
        (!self.is_wildcard).then_some((self.host, self.port))
    }

    fn has_name(&self, host: &HostName) -> bool {
        if !self.is_wildcard {
            return self.host == *host;
        }
        let below = host.as_str().strip_suffix(self.host.as_str());
        // The dot keeps notexample.com out of *.example.com.
        below.is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
    }
}

impl From<&HostPort> for EgressPattern {
    fn from(HostPort { host, port }: &HostPort) -> Self {
        Self {
            host: host.clone(),
            is_wildcard: false,
            port: Some(*port),
        }
    }
}

impl fmt::Display for EgressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_wildcard {
            f.write_str(WILDCARD)?;
        }
        self.host.fmt(f)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl FromStr for EgressPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(InvalidHost::TooLong.into());
        }
        if text.starts_with('[') || text.parse::<IpAddr>().is_ok() {
            return Err(InvalidHost::Address.into());
        }
        if text.contains("://") {
            return Err(InvalidHost::Form.into());
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (text, None),
        };
        let (name, is_wildcard) = match host.strip_prefix(WILDCARD) {
            Some(domain) => (domain, true),
            None => (host, false),
        };
        if name.contains('*') {
            return Err(InvalidPattern::Wildcard);
        }
        Ok(Self {
            host: name.parse()?,
            is_wildcard,
            port,
        })
    }
}

/// Port in digits alone, since a sign is none of a port.
fn parse_port(text: &str) -> Result<u16, InvalidPattern> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse::<u16>().ok();
    let port = port.filter(|port| *port > 0 && is_number);
    port.ok_or(InvalidPattern::Port)
}

impl TryFrom<String> for EgressPattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        text.parse()
    }
}

impl From<EgressPattern> for String {
    fn from(pattern: EgressPattern) -> Self {
        pattern.to_string()
    }
}

impl JsonSchema for EgressPattern {
    fn schema_name() -> Cow<'static, str> {
        "EgressPattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Name of a host, or *.example.com for all names below a domain; at one port, as in \
                            api.example.com:8443, or without a port at 443 and 80. No IP addresses.",
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_PATTERN_BYTES,
            "pattern": "^(\\*\\.)?[^*:/\\[\\]\\s]+(:[0-9]+)?$",
        })
    }
}

#[cfg(test)]
mod tests;
