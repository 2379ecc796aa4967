//! Classes of failed pulls.
//!
//! A user chooses the registry that a node connects to, so podman's message about it goes only to the node's log: it
//! would tell a stranger which machines and ports of the node's network answer, and how.

use super::EngineError;
use crate::text::clean_prefix;

/// Longest cause of a failed pull in the log, in bytes.
const MAX_LOGGED_BYTES: usize = 1000;

/// Class of a failed pull, as users see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PullFault {
    /// The registry doesn't have the image, or requires a login for it.
    #[error(
        "its registry does not have it, or requires a login; check its name and tag, or log the node in with podman login"
    )]
    NotFound,
    /// The registry requires other credentials.
    #[error("its registry refuses the node's credentials; log the node in with podman login")]
    Unauthorized,
    /// No connection to the registry that the node trusts.
    #[error(
        "its registry could not be reached over a trusted connection; check its name, and the node's network"
    )]
    Unreachable,
    /// The time limit was exceeded.
    #[error("its registry did not answer in time; try again, or pull the image on the node")]
    TimedOut,
    /// The node's disk is full.
    #[error("the node's disk is full; free space there (podman image prune --all)")]
    NoRoom,
    /// The registry's answer is not an image for this node.
    #[error(
        "its registry does not have an image that this node can use; it may be for another architecture"
    )]
    Invalid,
    /// Podman said that it has pulled the image, and then did not have it under that name.
    #[error(
        "it was pulled, and was gone right after; if this repeats, look for another program that removes images on the node"
    )]
    Vanished,
    /// Any other reason.
    #[error("the node's log says why")]
    Other,
}

impl PullFault {
    /// Class that users see where no operator named the registry. A user could lead the node elsewhere, by a redirect,
    /// a login server or the address of a name, and learn from the class what answers there.
    pub(super) fn for_unnamed_registry(self) -> Self {
        match self {
            Self::NotFound | Self::Unauthorized | Self::NoRoom | Self::Vanished | Self::Other => {
                self
            }
            Self::Unreachable | Self::TimedOut | Self::Invalid => Self::Other,
        }
    }

    /// Class of a pull that failed with `error`. Podman has no codes for this, only messages; the terms of the
    /// registry protocol and of the operating system in them are stable.
    pub(super) fn classify(error: &EngineError) -> Self {
        if matches!(error, EngineError::TimedOut { .. }) {
            return Self::TimedOut;
        }
        let message = error.to_string().to_lowercase();
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
        let is_class =
            |(_, known): &(Self, &[&str])| known.iter().any(|known| message.contains(known));
        classes
            .into_iter()
            .find(is_class)
            .map_or(Self::Other, |(class, _)| class)
    }
}

/// A message of podman for one line of the log; a registry may have written a part of it.
pub(super) fn sanitize_for_log(message: &str) -> String {
    clean_prefix(message, MAX_LOGGED_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn podman_messages_are_classified() {
        for (message, class) in [
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
                message: message.to_owned(),
            };
            assert_eq!(PullFault::classify(&error), class, "{message}");
        }
        let limit = Duration::from_secs(1);
        let call = "pull".to_owned();
        let late = EngineError::TimedOut { call, limit };
        assert_eq!(PullFault::classify(&late), PullFault::TimedOut);
    }

    #[test]
    fn unnamed_registries_reveal_no_peer() {
        for shown in [
            PullFault::NotFound,
            PullFault::Unauthorized,
            PullFault::NoRoom,
        ] {
            assert_eq!(shown.for_unnamed_registry(), shown);
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
