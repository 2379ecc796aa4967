//! Sandboxes that stay (contract, section 7.1): created by themselves, they run commands until they are deleted, idle, or
//! too old. The User API and the Worker API share everything below a sandbox: [execs](exec) and [files].

mod create;
pub mod exec;
pub mod files;

pub use create::CreateSandbox;

use super::{
    JobId, TaskId,
    egress::Egress,
    jobs::{NetworkPolicy, SandboxSpec},
    problem::Problem,
    secrets::{SecretRef, SecretValues},
    string_form::named_enum,
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Default of `lifetime_seconds`: an hour.
pub const DEFAULT_LIFETIME_SECONDS: u64 = 3600;
/// Largest `lifetime_seconds`: a day.
pub const MAX_LIFETIME_SECONDS: u64 = 86_400;
/// Default of `idle_timeout_seconds`: a quarter of an hour.
pub const DEFAULT_IDLE_TIMEOUT_SECONDS: u64 = 900;
/// Default of `wait_seconds`.
pub const DEFAULT_WAIT_SECONDS: u64 = 30;
/// Largest `wait_seconds`.
pub const MAX_WAIT_SECONDS: u64 = 60;
/// Time before the end of a sandbox at which it is announced, in seconds.
pub const WARNING_SECONDS: u64 = 120;

/// Times of a sandbox that stays; part of the [`SandboxSpec`] of its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// Longest age, in seconds, until it is renewed.
    pub lifetime_seconds: u64,
    /// Longest time without a running exec and without a call, in seconds.
    pub idle_timeout_seconds: u64,
}

impl SessionSpec {
    /// Checks both times.
    pub fn check(&self, pointer: &str) -> Result<(), Problem> {
        check_seconds(
            &format!("{pointer}/lifetime_seconds"),
            self.lifetime_seconds,
        )?;
        check_seconds(
            &format!("{pointer}/idle_timeout_seconds"),
            self.idle_timeout_seconds,
        )
    }
}

/// Checks a time of a sandbox, in seconds.
pub fn check_seconds(pointer: &str, seconds: u64) -> Result<(), Problem> {
    if (1..=MAX_LIFETIME_SECONDS).contains(&seconds) {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        format!("must be from 1 to {MAX_LIFETIME_SECONDS}, got {seconds}"),
    ))
}

named_enum! {
    /// State of a sandbox.
    pub enum SandboxStatus {
        /// Waits for a node with a free slot.
        Queued,
        /// Its node starts it.
        Starting,
        /// Runs commands.
        Running,
        /// Has ended, for the `reason`.
        Ended,
    }
}

named_enum! {
    /// Reason for which a sandbox ended.
    pub enum EndReason {
        /// Its user, or an admin, deleted it.
        Deleted,
        /// Nothing ran in it and no call came for its idle timeout.
        Idle,
        /// It reached its lifetime.
        Lifetime,
        /// Its node failed or was not heard of any more; what its commands did is unknown.
        #[serde(rename = "node-lost")]
        #[strum(serialize = "node-lost")]
        NodeLost,
        /// It used too much memory, or its node had none left.
        Oom,
        /// Its node's machine was shut down, or its node ended and keeps no sandboxes (`cynode dev`).
        Shutdown,
        /// It could not be started, or its node ended it; `detail` says why.
        Failed,
    }
}

/// Answer of the calls about one sandbox.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Sandbox {
    /// Id of the sandbox, which is also the id of its task.
    pub id: TaskId,
    /// Name, unique among the user's sandboxes that have not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// State.
    pub status: SandboxStatus,
    /// Reason of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    /// More about its end, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Slug of its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_slug: Option<String>,
    /// Image, in normal form.
    pub image: String,
    /// Handle of its user; for admins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Network of the sandbox, where the user chose one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// Hosts that the sandbox may reach; those of profiles are in `allow`. Lists leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Secrets that its commands get, by their names. Lists leave them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
    /// Longest age, in seconds.
    pub lifetime_seconds: u64,
    /// Longest time without a running exec and without a call, in seconds.
    pub idle_timeout_seconds: u64,
    /// Time of its creation.
    pub created_at: Time,
    /// Time at which it began to run commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Time at which it ends unless it is renewed; absent before it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Time of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

impl Sandbox {
    /// Same sandbox for a list, without the parts that may be long.
    #[must_use]
    pub fn shortened(self) -> Self {
        Self {
            egress: None,
            secrets: Vec::new(),
            ..self
        }
    }
}

/// Answer of `GET /v1/sandboxes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SandboxList {
    /// Sandboxes, newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Value of `cursor` for the next page; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
}

/// Answer of a worker about a sandbox that stays; times are left in milliseconds, since clocks of two machines differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Id of the sandbox, which is the id of its job.
    pub session_id: JobId,
    /// Time to its end of age, in milliseconds.
    pub expires_in_ms: u64,
    /// Time to its end for want of use, in milliseconds; absent while an exec runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ends_in_ms: Option<u64>,
    /// Execs that run.
    pub running_execs: u32,
}

/// Body of `POST /v1/sandboxes/{id}/renew`: a new lifetime, counted from now.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RenewSandbox {
    /// Time to its end, in seconds.
    #[schemars(range(min = 1, max = MAX_LIFETIME_SECONDS))]
    pub lifetime_seconds: u64,
}

/// Body of `POST /v1/worker/sessions`: the job of a sandbox that stays.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartSession {
    /// Payload version, 1.
    pub version: u64,
    /// Id of the sandbox, the idempotency key.
    pub session_id: JobId,
    /// Task to which it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Attempt, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Sandbox, without a command.
    pub sandbox: SandboxSpec,
    /// Values of the secrets that the sandbox names.
    #[serde(default, skip_serializing_if = "SecretValues::is_empty")]
    pub secrets: SecretValues,
}
