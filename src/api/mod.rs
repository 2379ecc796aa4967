//! What travels on the wire: types, their JSON, and the rules a value must keep.
//!
//! One file per conversation. Nothing here reads a clock, a file or a socket, so every
//! rule can be tested by itself, and both ends of a conversation share one definition.
//! Validation answers with a [`Problem`](problem::Problem) that names the field.

pub mod audit;
pub mod auth;
pub mod error;
pub mod events;
pub mod image;
mod integer;
pub mod job_document;
pub mod jobs;
mod lenient;
pub mod nodes;
pub mod problem;
mod string_form;
pub mod tasks;
pub mod time;
pub mod users;
pub mod warning;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Header in which an orchestrator names its process to nodes: a random id, made at each start.
pub const INSTANCE_HEADER: &str = "cynode-instance-id";
/// Longest id of a process, in bytes.
pub const MAX_INSTANCE_ID_BYTES: usize = 64;

/// Whether a text can be the id of a process.
pub fn is_valid_instance_id(text: &str) -> bool {
    (1..=MAX_INSTANCE_ID_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The only payload version spoken between orchestrator and node.
pub const PAYLOAD_VERSION: u64 = 1;

/// Refuses a payload of another version, naming the one received and those supported. The payload
/// stands at the pointer `at`.
pub fn check_version(at: &str, received: u64) -> Result<(), problem::Problem> {
    if received == PAYLOAD_VERSION {
        return Ok(());
    }
    Err(problem::Problem::new(
        problem::ProblemKind::UnsupportedPayloadVersion,
        format!(
            "payload version {received} was received; this cynode speaks version {PAYLOAD_VERSION}. \
             Run the same release of cynode on both sides."
        ),
    )
    .at(&format!("{at}/version")))
}

/// Checks the version of a payload whose other fields this release may not know: a different version
/// is told as such, and not as the first field that looks wrong. It stands at the top, or, in a
/// registration, in `capability`. What isn't JSON, or has no number there, is left to the real parser.
pub fn check_envelope_version(payload: &[u8]) -> Result<(), problem::Problem> {
    #[derive(Deserialize)]
    struct Envelope {
        version: Option<u64>,
        capability: Option<Inner>,
    }
    #[derive(Deserialize)]
    struct Inner {
        version: Option<u64>,
    }
    let Ok(envelope) = serde_json::from_slice::<Envelope>(payload) else {
        return Ok(());
    };
    let inner = envelope.capability.and_then(|inner| inner.version);
    match (envelope.version, inner) {
        (Some(version), _) => check_version("", version),
        (None, Some(version)) => check_version("/capability", version),
        (None, None) => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(inline)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id; version 7, so that ids sort by the time they were made.
            #[allow(clippy::new_without_default, reason = "a default that differs each time misleads")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                string_form::parsed(deserializer, "a UUID", |text| text.parse().ok())
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(
    /// A person who may log in.
    UserId
);
id!(
    /// One login of a user; ends at logout.
    SessionId
);
id!(
    /// What a user asked for.
    TaskId
);
id!(
    /// The unit that a node runs; idempotency key of the Worker API.
    JobId
);
id!(
    /// A registered machine, independent of its slug.
    NodeId
);

/// Longest [`OrchestratorId`] that a node accepts, in bytes.
const MAX_ORCHESTRATOR_ID_BYTES: usize = 256;

/// Identity of an orchestrator, made at its first start and kept in its database (contract, section 3).
/// A node compares it and reads nothing into it, so that a peer may give it a form of its own.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct OrchestratorId(String);

impl OrchestratorId {
    /// A new identity.
    #[allow(
        clippy::new_without_default,
        reason = "a default that differs each time misleads"
    )]
    pub fn new() -> Self {
        Self(Uuid::now_v7().to_string())
    }
}

impl fmt::Display for OrchestratorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for OrchestratorId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if (1..=MAX_ORCHESTRATOR_ID_BYTES).contains(&text.len()) {
            return Ok(Self(text));
        }
        Err(format!(
            "an orchestrator_id must be 1 to {MAX_ORCHESTRATOR_ID_BYTES} bytes long"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_named_where_it_stands() {
        for (payload, pointer) in [
            (r#"{"version":2,"new":[]}"#, "#/version"),
            (
                r#"{"psk":"x","capability":{"version":2}}"#,
                "#/capability/version",
            ),
        ] {
            let problem = check_envelope_version(payload.as_bytes()).unwrap_err();
            assert_eq!(
                problem.kind,
                problem::ProblemKind::UnsupportedPayloadVersion
            );
            assert_eq!(problem.errors[0].pointer, pointer);
        }
        for left in [r#"{"version":1}"#, r#"{"version":"2"}"#, "[]", "{"] {
            assert!(check_envelope_version(left.as_bytes()).is_ok(), "{left}");
        }
    }
}
