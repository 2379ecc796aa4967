//! Classes of pulls that failed.
//!
//! A user chooses the registry that a node connects to, so podman's words about it are for the node's log
//! alone: they would tell a stranger which machines and ports of its network answer, and how.

use super::EngineError;
use crate::text::clean_prefix;

/// Longest cause of a failed pull in the log, in bytes.
const MAX_LOGGED_BYTES: usize = 1000;

/// Class of a failed pull, as users see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PullFault {
    /// The registry has no such image, or shows it to nobody without a login.
    #[error(
        "its registry has no such image, or none without a login; check its name and tag, or log the node in with podman login"
    )]
    NotFound,
    /// The registry wants other credentials.
    #[error("its registry refuses the node's credentials; log the node in with podman login")]
    Unauthorized,
    /// No connection to the registry that the node trusts.
    #[error(
        "its registry could not be reached by a trusted connection; check its name, and the node's network"
    )]
    Unreachable,
    /// The time limit.
    #[error("its registry did not answer in time; try again, or pull the image at the node")]
    TimedOut,
    /// No room for it.
    #[error("the node has no room for it; make room there (podman image prune --all)")]
    NoRoom,
    /// What was pulled is no image for this node.
    #[error(
        "what its registry has is no image that this node can use, such as one for another architecture"
    )]
    Invalid,
    /// Anything else.
    #[error("the node's log says why")]
    Other,
}

impl PullFault {
    /// The class that users see of a pull from a registry that no operator named: whoever has chosen it could
    /// send the node elsewhere, by a redirect, a login server or the address of a name, and learn from the class what
    /// answers there.
    pub(super) fn for_unnamed_registry(self) -> Self {
        match self {
            Self::NotFound | Self::Unauthorized | Self::NoRoom | Self::Other => self,
            Self::Unreachable | Self::TimedOut | Self::Invalid => Self::Other,
        }
    }

    /// Class of a pull that ended with `error`. Podman has no codes for this, only words; those of the
    /// registry protocol and of the operating system are stable.
    pub(super) fn classify(error: &EngineError) -> Self {
        if matches!(error, EngineError::TimedOut { .. }) {
            return Self::TimedOut;
        }
        let words = error.to_string().to_lowercase();
        let classes: [(Self, &[&str]); 6] = [
            (Self::NoRoom, &["no space left", "disk quota exceeded"]),
            (
                Self::NotFound,
                &[
                    "manifest unknown",
                    "name unknown",
                    "not found: ",
                    "requested access to the resource is denied",
                ],
            ),
            (
                Self::Unauthorized,
                &[
                    "unauthorized",
                    "authentication required",
                    "forbidden",
                    "invalid username/password",
                ],
            ),
            (
                Self::TimedOut,
                &["timeout", "timed out", "deadline exceeded"],
            ),
            (
                Self::Unreachable,
                &[
                    "dial tcp",
                    "connection refused",
                    "connection reset",
                    "no route to host",
                    "network is unreachable",
                    "no such host",
                    "x509",
                    "tls: ",
                    "server gave http response",
                    "pinging container registry",
                ],
            ),
            (
                Self::Invalid,
                &[
                    "no image found in",
                    "manifest invalid",
                    "unsupported",
                    "invalid",
                ],
            ),
        ];
        let says = |(_, known): &(Self, &[&str])| known.iter().any(|known| words.contains(known));
        classes
            .into_iter()
            .find(says)
            .map_or(Self::Other, |(class, _)| class)
    }
}

/// Words of podman for one line of the log: a registry may have written a part of them.
pub(super) fn sanitize_for_log(words: &str) -> String {
    clean_prefix(words, MAX_LOGGED_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn podmans_words_are_sorted_into_classes() {
        for (words, class) in [
            (
                "reading manifest 9 in docker.io/a/b: manifest unknown: manifest unknown",
                PullFault::NotFound,
            ),
            (
                "reading manifest latest in docker.io/no/such: errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required",
                PullFault::NotFound,
            ),
            (
                "unable to retrieve auth token: invalid username/password: unauthorized",
                PullFault::Unauthorized,
            ),
            (
                "Get \"https://x/v2/\": dial tcp 10.1.2.3:443: connect: connection refused",
                PullFault::Unreachable,
            ),
            (
                "Get \"https://x/v2/\": dial tcp 10.1.2.3:443: i/o timeout",
                PullFault::TimedOut,
            ),
            (
                "Get \"https://x/v2/\": net/http: TLS handshake timeout",
                PullFault::TimedOut,
            ),
            (
                "Get \"https://x/v2/\": x509: certificate signed by unknown authority",
                PullFault::Unreachable,
            ),
            (
                "writing blob: adding layer: no space left on device",
                PullFault::NoRoom,
            ),
            (
                "no image found in manifest list for architecture riscv64",
                PullFault::Invalid,
            ),
            ("the registry is on fire", PullFault::Other),
        ] {
            let error = EngineError::Failed {
                call: "pull".to_owned(),
                message: words.to_owned(),
            };
            assert_eq!(PullFault::classify(&error), class, "{words}");
        }
        let limit = Duration::from_secs(1);
        let call = "pull".to_owned();
        let late = EngineError::TimedOut { call, limit };
        assert_eq!(PullFault::classify(&late), PullFault::TimedOut);
    }

    #[test]
    fn unnamed_registries_have_one_class_for_what_answers() {
        for told in [
            PullFault::NotFound,
            PullFault::Unauthorized,
            PullFault::NoRoom,
        ] {
            assert_eq!(told.for_unnamed_registry(), told);
        }
        for hidden in [
            PullFault::Unreachable,
            PullFault::TimedOut,
            PullFault::Invalid,
            PullFault::Other,
        ] {
            assert_eq!(hidden.for_unnamed_registry(), PullFault::Other);
        }
    }

    #[test]
    fn log_texts_are_one_short_line() {
        let line = sanitize_for_log(&"a\u{1b}[2J\nb".repeat(1000));
        assert_eq!(line.chars().count(), MAX_LOGGED_BYTES);
        assert!(!line.contains(char::is_control));
    }
}
