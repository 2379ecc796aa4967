//! Audit log of authentication and administration (contract, section 2).

use super::{problem::Problem, time::Time};
use crate::api::string_form::named_enum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

/// Action of an audit event.
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
    /// Login of a user.
    #[serde(rename = "auth.login")]
    #[strum(serialize = "auth.login")]
    Login,
    /// Refresh of a session's tokens.
    #[serde(rename = "auth.refresh")]
    #[strum(serialize = "auth.refresh")]
    Refresh,
    /// Logout of a user.
    #[serde(rename = "auth.logout")]
    #[strum(serialize = "auth.logout")]
    Logout,
    /// Creation of a user.
    #[serde(rename = "user.create")]
    #[strum(serialize = "user.create")]
    UserCreate,
    /// Disabling of a user.
    #[serde(rename = "user.disable")]
    #[strum(serialize = "user.disable")]
    UserDisable,
    /// Enabling of a user.
    #[serde(rename = "user.enable")]
    #[strum(serialize = "user.enable")]
    UserEnable,
    /// End of all sessions of a user.
    #[serde(rename = "user.revoke_sessions")]
    #[strum(serialize = "user.revoke_sessions")]
    UserRevokeSessions,
    /// Reset of a user's password by an admin.
    #[serde(rename = "user.reset_password")]
    #[strum(serialize = "user.reset_password")]
    UserResetPassword,
    /// Change of one's own password.
    #[serde(rename = "user.change_password")]
    #[strum(serialize = "user.change_password")]
    UserChangePassword,
    /// Read of users or of this log; recorded only where it was denied.
    #[serde(rename = "admin.read")]
    #[strum(serialize = "admin.read")]
    AdminRead,
    /// Registration of a node.
    #[serde(rename = "node.register")]
    #[strum(serialize = "node.register")]
    NodeRegister,
    /// Change of the address of a node's Worker API.
    #[serde(rename = "node.change_worker_url")]
    #[strum(serialize = "node.change_worker_url")]
    NodeWorkerUrl,
    /// Detection of two machines that call as one node.
    #[serde(rename = "node.duplicate")]
    #[strum(serialize = "node.duplicate")]
    NodeDuplicate,
    /// Draining of a node.
    #[serde(rename = "node.drain")]
    #[strum(serialize = "node.drain")]
    NodeDrain,
    /// End of a node's draining.
    #[serde(rename = "node.resume")]
    #[strum(serialize = "node.resume")]
    NodeResume,
    /// Removal of a node.
    #[serde(rename = "node.forget")]
    #[strum(serialize = "node.forget")]
    NodeForget,
    /// Creation of a join token.
    #[serde(rename = "join_token.create")]
    #[strum(serialize = "join_token.create")]
    JoinTokenCreate,
    /// Removal of a join token.
    #[serde(rename = "join_token.remove")]
    #[strum(serialize = "join_token.remove")]
    JoinTokenRemove,
    /// Deletion of a finished task.
    #[serde(rename = "task.delete")]
    #[strum(serialize = "task.delete")]
    TaskDelete,
    /// Cancel of a task that had not ended.
    #[serde(rename = "task.cancel")]
    #[strum(serialize = "task.cancel")]
    TaskCancel,
    /// Creation of a sandbox.
    #[serde(rename = "sandbox.create")]
    #[strum(serialize = "sandbox.create")]
    SandboxCreate,
    /// End of a sandbox by a user, or removal of one that had ended.
    #[serde(rename = "sandbox.delete")]
    #[strum(serialize = "sandbox.delete")]
    SandboxDelete,
    /// New lifetime of a sandbox.
    #[serde(rename = "sandbox.renew")]
    #[strum(serialize = "sandbox.renew")]
    SandboxRenew,
    /// Snapshot of a sandbox.
    #[serde(rename = "sandbox.snapshot")]
    #[strum(serialize = "sandbox.snapshot")]
    SandboxSnapshot,
    /// Deletion of a snapshot.
    #[serde(rename = "snapshot.delete")]
    #[strum(serialize = "snapshot.delete")]
    SnapshotDelete,
    /// Start of a command or a terminal in a sandbox, or in that of a task.
    #[serde(rename = "sandbox.exec")]
    #[strum(serialize = "sandbox.exec")]
    SandboxExec,
    /// Access of an admin to the files or commands of another user's sandbox.
    #[serde(rename = "sandbox.access")]
    #[strum(serialize = "sandbox.access")]
    SandboxAccess,
    /// Deletion of an artifact.
    #[serde(rename = "artifact.delete")]
    #[strum(serialize = "artifact.delete")]
    ArtifactDelete,
    /// Push of an image to a node.
    #[serde(rename = "image.push")]
    #[strum(serialize = "image.push")]
    ImagePush,
    /// Creation of an API key.
    #[serde(rename = "key.create")]
    #[strum(serialize = "key.create")]
    KeyCreate,
    /// Revocation of an API key.
    #[serde(rename = "key.revoke")]
    #[strum(serialize = "key.revoke")]
    KeyRevoke,
    /// Use of an API key beyond its scopes; recorded only where it was denied.
    #[serde(rename = "key.use")]
    #[strum(serialize = "key.use")]
    KeyUse,
    /// New value of a secret.
    #[serde(rename = "secret.set")]
    #[strum(serialize = "secret.set")]
    SecretSet,
    /// Deletion of a secret.
    #[serde(rename = "secret.delete")]
    #[strum(serialize = "secret.delete")]
    SecretDelete,
    /// Creation of a task or sandbox that gets secrets.
    #[serde(rename = "secret.use")]
    #[strum(serialize = "secret.use")]
    SecretUse,
    /// New key for all secrets.
    #[serde(rename = "secret.rotate_key")]
    #[strum(serialize = "secret.rotate_key")]
    SecretRotateKey,
    /// Request to a model.
    #[serde(rename = "inference.request")]
    #[strum(serialize = "inference.request")]
    InferenceRequest,
    /// Pull of a model at a node.
    #[serde(rename = "model.pull")]
    #[strum(serialize = "model.pull")]
    ModelPull,
    /// Deletion of a model at a node.
    #[serde(rename = "model.delete")]
    #[strum(serialize = "model.delete")]
    ModelDelete,
}

impl AuditAction {
    /// Every action.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// Name on the wire.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

named_enum! {
    /// Outcome of an action.
    pub enum AuditOutcome {
        /// The action was done.
        Success,
        /// The action failed: wrong credentials, or a state that forbids it.
        Failure,
        /// The actor has no right to the action.
        Denied,
    }
}

/// Origin of a request.
#[derive(Clone, Debug)]
pub struct RequestOrigin {
    /// Address of the client, by a trusted proxy's word where one is in between.
    pub address: IpAddr,
    /// Request id.
    pub request_id: String,
}

/// Event of the audit log: an action that was done or attempted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditEvent {
    /// Time of the action.
    pub at: Time,
    /// Action.
    pub action: AuditAction,
    /// Outcome of an action.
    pub outcome: AuditOutcome,
    /// Id of the acting user or node, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<String>,
    /// Handle or slug of the actor. Unknown names are not kept: people type passwords there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Handle or slug of the target; the id of a task, a sandbox or a join token, the prefix of an API key, the name of a model
    /// or a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Address of the client; absent for actions of the orchestrator itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Request id; absent for actions of the orchestrator itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Reason of a failure; for a changed address, the old one and the new one; for a pushed image, its name; for an
    /// artifact that was deleted to make room for another one, that; for an API key, its name and scopes; for a join token, its
    /// uses, slug and expiry; for a registration by one, its id; for the use of secrets, their names; for a request to a model, its node, tokens and duration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Prefix of the API key by which the actor called; absent for a login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
}

impl AuditEvent {
    /// Successful event without an actor or a target.
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
            api_key: None,
        }
    }

    /// Same event with an actor.
    pub fn by(self, id: impl ToString, name: impl Into<String>) -> Self {
        Self {
            actor_id: Some(id.to_string()),
            actor: Some(name.into()),
            ..self
        }
    }

    /// Same event with a target.
    pub fn to(self, target: impl Into<String>) -> Self {
        Self {
            target: Some(target.into()),
            ..self
        }
    }

    /// Same event with details of a success as its reason.
    pub fn with_details(self, details: impl Into<String>) -> Self {
        Self {
            reason: Some(details.into()),
            ..self
        }
    }

    /// Same event with the changed value as its reason.
    pub fn changed(self, from: &str, to: &str) -> Self {
        Self {
            reason: Some(format!("from {from} to {to}")),
            ..self
        }
    }

    /// Same event as a failure with this problem.
    pub fn refused(self, problem: &Problem) -> Self {
        self.failed(problem.kind.slug())
    }

    /// Same event as a failure, or as denied where the reason is `forbidden`.
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

/// Entry of the audit log: an event with its position.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Position in the log; later entries have greater ones.
    pub seq: i64,
    /// The event.
    #[serde(flatten)]
    pub event: AuditEvent,
}

/// Answer of `GET /v1/audit`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditLog {
    /// Entries, newest first.
    pub events: Vec<AuditEntry>,
    /// Value of `cursor` for the next page; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
}

crate::api::string_form::deserialize_by_name!(AuditAction);
