//! List of the hosts that an operator lets jobs reach.

use super::{EgressPattern, InvalidPattern, Profile};
use std::{fmt, str::FromStr};

/// Entry that stands for all hosts.
const ANY: &str = "*";
/// Prefix of an entry that names a profile.
const PROFILE: &str = "profile:";

/// Entry of an operator's list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AllowedEntry {
    /// Every host at every port, `*`.
    Any,
    /// Hosts of a pattern.
    Pattern(EgressPattern),
    /// Hosts of a profile, `profile:python`.
    Profile(Profile),
}

/// Reason why a text is not an entry of an operator's list; a predicate about the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidEntry {
    /// Not a pattern.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    /// No such profile.
    #[error(
        "names no profile; write one of profile:python, node, rust, debian, alpine, models and git"
    )]
    Profile,
}

impl FromStr for AllowedEntry {
    type Err = InvalidEntry;

    fn from_str(text: &str) -> Result<Self, InvalidEntry> {
        if text == ANY {
            return Ok(Self::Any);
        }
        match text.strip_prefix(PROFILE) {
            Some(name) => {
                let profile = name.parse::<Profile>();
                profile
                    .map(Self::Profile)
                    .map_err(|_| InvalidEntry::Profile)
            }
            None => Ok(Self::Pattern(text.parse()?)),
        }
    }
}

impl fmt::Display for AllowedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str(ANY),
            Self::Pattern(pattern) => pattern.fmt(f),
            Self::Profile(profile) => write!(f, "{PROFILE}{}", profile.as_str()),
        }
    }
}

/// Hosts that an operator lets jobs reach; none by default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AllowedHosts {
    is_any: bool,
    patterns: Vec<EgressPattern>,
}

impl AllowedHosts {
    /// Whether no host is allowed.
    pub fn is_empty(&self) -> bool {
        !self.is_any && self.patterns.is_empty()
    }

    /// Patterns of the hosts; `None` where every host is allowed.
    pub fn into_patterns(self) -> Option<Vec<EgressPattern>> {
        (!self.is_any).then_some(self.patterns)
    }

    /// Whether all hosts of a pattern are allowed, at each of its ports. Several entries may do it together.
    pub fn covers(&self, wanted: &EgressPattern) -> bool {
        let is_covered = |port: &u16| {
            let wanted = wanted.at(*port);
            self.patterns.iter().any(|pattern| pattern.covers(&wanted))
        };
        self.is_any || wanted.ports().iter().all(is_covered)
    }
}

impl FromIterator<AllowedEntry> for AllowedHosts {
    fn from_iter<I: IntoIterator<Item = AllowedEntry>>(entries: I) -> Self {
        let mut hosts = Self::default();
        for entry in entries {
            match entry {
                AllowedEntry::Any => hosts.is_any = true,
                AllowedEntry::Pattern(pattern) => hosts.patterns.push(pattern),
                AllowedEntry::Profile(profile) => hosts.patterns.extend(profile.patterns()),
            }
        }
        hosts.patterns.sort_unstable();
        hosts.patterns.dedup();
        hosts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(entries: &[&str]) -> AllowedHosts {
        entries
            .iter()
            .map(|entry| entry.parse::<AllowedEntry>().unwrap())
            .collect()
    }

    fn covers(entries: &[&str], wanted: &str) -> bool {
        hosts(entries).covers(&wanted.parse().unwrap())
    }

    #[test]
    fn list_covers_what_entries_cover() {
        assert!(!covers(&[], "a.b"));
        assert!(covers(&["*"], "*.b:22"));
        assert!(covers(&["a.b"], "a.b") && !covers(&["a.b"], "a.b:22"));
        assert!(covers(&["*.b"], "*.a.b") && !covers(&["*.a.b"], "*.b"));
        assert!(covers(&["a.b:80", "*.b:443"], "a.b"));
        assert!(!covers(&["a.b:80", "*.c:443"], "a.b"));
    }

    #[test]
    fn profile_covers_its_own_patterns() {
        for profile in Profile::ALL {
            let entry = format!("profile:{}", profile.as_str());
            let allowed = hosts(&[&entry]);
            assert!(
                profile
                    .patterns()
                    .iter()
                    .all(|pattern| allowed.covers(pattern))
            );
            let other = hosts(&["a.b"]);
            assert!(
                profile
                    .patterns()
                    .iter()
                    .all(|pattern| !other.covers(pattern))
            );
        }
    }

    #[test]
    fn entries_are_any_pattern_or_profile() {
        for text in ["*", "a.b", "*.a.b:443", "profile:models"] {
            assert_eq!(text.parse::<AllowedEntry>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "*:443",
            "profile:",
            "profile:Python",
            "profile:perl",
            "10.0.0.0/8",
            "127.0.0.1",
        ] {
            assert!(text.parse::<AllowedEntry>().is_err(), "{text}");
        }
        assert!(hosts(&[]).is_empty() && !hosts(&["*"]).is_empty());
        assert_eq!(hosts(&["*", "a.b"]).into_patterns(), None);
        assert_eq!(
            hosts(&["a.b", "A.B"]).into_patterns().map(|all| all.len()),
            Some(1)
        );
    }
}
