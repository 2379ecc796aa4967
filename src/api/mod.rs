//! Wire types of the User API, the Node API and the Worker API, with their validation.
//!
//! One file per conversation; both ends share one definition. Nothing here reads a clock, a file or a socket.
//! Validation fails with a [`Problem`](problem::Problem) that names the field. Section numbers refer to the
//! contract between orchestrator, nodes and users.

pub mod api_keys;
pub mod artifacts;
pub mod audit;
pub mod auth;
pub mod egress;
pub mod error;
pub mod events;
pub mod image;
pub mod images;
mod integer;
pub mod job_document;
pub mod jobs;
mod lenient;
pub mod models;
pub mod nodes;
pub mod problem;
mod requirements;
pub mod sandboxes;
pub mod secrets;
pub mod size;
pub mod snapshots;
mod string_form;
pub mod tasks;
pub mod time;
pub mod usage;
pub mod users;
pub mod warning;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Header with the instance id of an orchestrator's process, a random id made at each start (contract, section 4).
pub const INSTANCE_HEADER: &str = "cynode-instance-id";
/// Header of answers to reports with the reason for which the orchestrator can't reach the node; absent otherwise.
pub const UNREACHABLE_HEADER: &str = "cynode-unreachable";
/// Header with the id of the job for which a node passes on a call of a model.
pub const JOB_HEADER: &str = "cynode-job-id";
/// Longest instance id, in bytes.
pub const MAX_INSTANCE_ID_BYTES: usize = 64;

/// Whether a text is a valid instance id: 1 to 64 visible ASCII characters.
pub fn is_valid_instance_id(text: &str) -> bool {
    (1..=MAX_INSTANCE_ID_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Version of all payloads between orchestrator and node.
pub const PAYLOAD_VERSION: u64 = 1;

/// Checks the version of the payload at the JSON pointer `at`. The problem names the received version and the
/// supported one.
pub fn check_version(at: &str, received: u64) -> Result<(), problem::Problem> {
    if received == PAYLOAD_VERSION {
        return Ok(());
    }
    Err(problem::Problem::new(
        problem::ProblemKind::UnsupportedPayloadVersion,
        format!(
            "payload version {received} is not supported; this cynode speaks version {PAYLOAD_VERSION}. \
             Run the same release of cynode on both sides."
        ),
    )
    .at(&format!("{at}/version")))
}

/// Checks the version of a payload before its other fields, so that another version is reported as such and not
/// as the first field that looks wrong. The version is a field of the payload or, in a registration, of
/// `capability`. Text that is not JSON, or has no number there, passes: the parser reports it.
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

/// Pattern of ids, for schemas.
pub const UUID_PATTERN: &str =
    "^[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$";

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(inline)]
        pub struct $name(Uuid);

        impl $name {
            /// New id. UUIDs of version 7 sort by the time they were made.
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
    /// Id of a user.
    UserId
);
id!(
    /// Id of a session: one login of a user, until the logout.
    SessionId
);
id!(
    /// Id of an API key.
    ApiKeyId
);
id!(
    /// Id of a join token.
    JoinTokenId
);
id!(
    /// Id of a task.
    TaskId
);
id!(
    /// Id of an artifact.
    ArtifactId
);
id!(
    /// Id of a job, the unit that a node runs; idempotency key of the Worker API.
    JobId
);
id!(
    /// Id of an exec in a sandbox that stays; the caller may choose it.
    ExecId
);
id!(
    /// Id of a registered node, independent of its slug.
    NodeId
);

/// Longest [`OrchestratorId`], in bytes.
const MAX_ORCHESTRATOR_ID_BYTES: usize = 256;

/// Identity of an orchestrator, made at its first start and kept in its database (contract, section 3). Nodes
/// only compare it, so other implementations may use any form.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct OrchestratorId(String);

impl OrchestratorId {
    /// New identity.
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
            "must be 1 to {MAX_ORCHESTRATOR_ID_BYTES} bytes long"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_version_is_named_with_pointer() {
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
