//! Who did what: authentication and administration (contract, section 2).

use super::{problem::Problem, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

/// What was done.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Debug,
    Serialize,
    JsonSchema,
    EnumString,
    IntoStaticStr,
    VariantArray,
    VariantNames,
)]
pub enum AuditAction {
    /// A user's login.
    #[serde(rename = "auth.login")]
    #[strum(serialize = "auth.login")]
    Login,
    /// Tokens traded for new ones.
    #[serde(rename = "auth.refresh")]
    #[strum(serialize = "auth.refresh")]
    Refresh,
    /// A session ended by its user.
    #[serde(rename = "auth.logout")]
    #[strum(serialize = "auth.logout")]
    Logout,
    /// A user made.
    #[serde(rename = "user.create")]
    #[strum(serialize = "user.create")]
    UserCreate,
    /// A user kept out.
    #[serde(rename = "user.disable")]
    #[strum(serialize = "user.disable")]
    UserDisable,
    /// A user let in again.
    #[serde(rename = "user.enable")]
    #[strum(serialize = "user.enable")]
    UserEnable,
    /// All sessions of a user ended.
    #[serde(rename = "user.revoke_sessions")]
    #[strum(serialize = "user.revoke_sessions")]
    UserRevokeSessions,
    /// A user's password changed by an admin.
    #[serde(rename = "user.reset_password")]
    #[strum(serialize = "user.reset_password")]
    UserResetPassword,
    /// A look at users or at this log.
    #[serde(rename = "admin.read")]
    #[strum(serialize = "admin.read")]
    AdminRead,
    /// A node's registration.
    #[serde(rename = "node.register")]
    #[strum(serialize = "node.register")]
    NodeRegister,
    /// Another address of a node's Worker API.
    #[serde(rename = "node.change_worker_url")]
    #[strum(serialize = "node.change_worker_url")]
    NodeWorkerUrl,
    /// Two machines found to call as one node.
    #[serde(rename = "node.duplicate")]
    #[strum(serialize = "node.duplicate")]
    NodeDuplicate,
    /// A node that gets no more jobs.
    #[serde(rename = "node.drain")]
    #[strum(serialize = "node.drain")]
    NodeDrain,
    /// A node that gets jobs again.
    #[serde(rename = "node.resume")]
    #[strum(serialize = "node.resume")]
    NodeResume,
    /// A node forgotten.
    #[serde(rename = "node.forget")]
    #[strum(serialize = "node.forget")]
    NodeForget,
    /// A finished task deleted before its time.
    #[serde(rename = "task.delete")]
    #[strum(serialize = "task.delete")]
    TaskDelete,
}

impl AuditAction {
    /// Every action.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// How it ended.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Serialize,
    JsonSchema,
    EnumString,
    IntoStaticStr,
    VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
    pub fn as_str(self) -> &'static str {
        self.into()
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

crate::api::string_form::deserialize_by_name!(AuditAction, AuditOutcome);
