//! Who did what: authentication and administration (contract, section 2).

use super::{problem::Problem, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
pub enum AuditAction {
    /// A user's login.
    #[serde(rename = "auth.login")]
    Login,
    /// Tokens traded for new ones.
    #[serde(rename = "auth.refresh")]
    Refresh,
    /// A session ended by its user.
    #[serde(rename = "auth.logout")]
    Logout,
    /// A user made.
    #[serde(rename = "user.create")]
    UserCreate,
    /// A user kept out.
    #[serde(rename = "user.disable")]
    UserDisable,
    /// A user let in again.
    #[serde(rename = "user.enable")]
    UserEnable,
    /// All sessions of a user ended.
    #[serde(rename = "user.revoke_sessions")]
    UserRevokeSessions,
    /// A user's password changed by an admin.
    #[serde(rename = "user.reset_password")]
    UserResetPassword,
    /// A look at users or at this log.
    #[serde(rename = "admin.read")]
    AdminRead,
    /// A node's registration.
    #[serde(rename = "node.register")]
    NodeRegister,
    /// Another address of a node's Worker API.
    #[serde(rename = "node.change_worker_url")]
    NodeWorkerUrl,
    /// Two machines found to call as one node.
    #[serde(rename = "node.duplicate")]
    NodeDuplicate,
    /// A node that gets no more jobs.
    #[serde(rename = "node.drain")]
    NodeDrain,
    /// A node that gets jobs again.
    #[serde(rename = "node.resume")]
    NodeResume,
    /// A node forgotten.
    #[serde(rename = "node.forget")]
    NodeForget,
    /// A finished task deleted before its time.
    #[serde(rename = "task.delete")]
    TaskDelete,
}

impl AuditAction {
    /// Every action there is.
    pub const ALL: [Self; 16] = [
        Self::Login,
        Self::Refresh,
        Self::Logout,
        Self::UserCreate,
        Self::UserDisable,
        Self::UserEnable,
        Self::UserRevokeSessions,
        Self::UserResetPassword,
        Self::AdminRead,
        Self::NodeRegister,
        Self::NodeWorkerUrl,
        Self::NodeDuplicate,
        Self::NodeDrain,
        Self::NodeResume,
        Self::NodeForget,
        Self::TaskDelete,
    ];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "auth.login",
            Self::Refresh => "auth.refresh",
            Self::Logout => "auth.logout",
            Self::UserCreate => "user.create",
            Self::UserDisable => "user.disable",
            Self::UserEnable => "user.enable",
            Self::UserRevokeSessions => "user.revoke_sessions",
            Self::UserResetPassword => "user.reset_password",
            Self::AdminRead => "admin.read",
            Self::NodeRegister => "node.register",
            Self::NodeWorkerUrl => "node.change_worker_url",
            Self::NodeDuplicate => "node.duplicate",
            Self::NodeDrain => "node.drain",
            Self::NodeResume => "node.resume",
            Self::NodeForget => "node.forget",
            Self::TaskDelete => "task.delete",
        }
    }
}

impl std::str::FromStr for AuditAction {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let all = Self::ALL.into_iter();
        all.into_iter()
            .find(|action| action.as_str() == name)
            .ok_or(())
    }
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// It was done.
    Success,
    /// It was not: wrong credentials, or a state that forbids it.
    Failure,
    /// Whoever asked may not ask for it.
    Denied,
}

impl AuditOutcome {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Denied => "denied",
        }
    }
}

/// Where a request came from.
#[derive(Clone, Debug)]
pub struct RequestOrigin {
    /// The caller's address; what a trusted proxy says it is, where one is between.
    pub address: IpAddr,
    /// The request's id.
    pub request_id: String,
}

/// Something that was done, or tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditEvent {
    /// When.
    pub at: Time,
    /// What.
    pub action: AuditAction,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// The id of the user or node that did it, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<String>,
    /// Their handle or slug. A name that nobody has isn't kept: people type passwords there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The handle or slug of whom it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Where the request came from; absent for what the orchestrator did by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Why it was not done; of an address that changed, the old one and the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl AuditEvent {
    /// An action that succeeded, of nobody in particular; the rest is filled in by whoever knows it.
    pub fn new(action: AuditAction, at: Time, origin: Option<&RequestOrigin>) -> Self {
        Self {
            at,
            action,
            outcome: AuditOutcome::Success,
            actor_id: None,
            actor: None,
            target: None,
            address: origin.map(|origin| origin.address.to_string()),
            request_id: origin.map(|origin| origin.request_id.clone()),
            reason: None,
        }
    }

    /// By whom.
    pub fn by(self, id: impl ToString, name: impl Into<String>) -> Self {
        Self {
            actor_id: Some(id.to_string()),
            actor: Some(name.into()),
            ..self
        }
    }

    /// To whom.
    pub fn to(self, target: impl Into<String>) -> Self {
        Self {
            target: Some(target.into()),
            ..self
        }
    }

    /// What it changed.
    pub fn changed(self, from: &str, to: &str) -> Self {
        Self {
            reason: Some(format!("from {from} to {to}")),
            ..self
        }
    }

    /// That it was not done, as the caller was told.
    pub fn refused(self, problem: &Problem) -> Self {
        self.failed(problem.kind.slug())
    }

    /// That it was not done, and why.
    pub fn failed(self, reason: &str) -> Self {
        Self {
            outcome: if reason == "forbidden" {
                AuditOutcome::Denied
            } else {
                AuditOutcome::Failure
            },
            reason: Some(reason.to_owned()),
            ..self
        }
    }
}

/// An event with its place in the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Its place; later ones are greater.
    pub seq: i64,
    /// What it is about.
    #[serde(flatten)]
    pub event: AuditEvent,
}

/// Answer of `GET /v1/audit`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditLog {
    /// Newest first.
    pub events: Vec<AuditEntry>,
    /// Give it as `cursor` to read on; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_all_their_places() {
        for action in AuditAction::ALL {
            let name = action.as_str();
            assert_eq!(serde_json::json!(action), name);
            assert_eq!(name.parse(), Ok(action));
        }
        for outcome in [
            AuditOutcome::Success,
            AuditOutcome::Failure,
            AuditOutcome::Denied,
        ] {
            assert_eq!(serde_json::json!(outcome), outcome.as_str());
        }
    }
}
