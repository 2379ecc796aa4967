//! API keys, and the use of models.

use crate::api::{
    ApiKeyId, TaskId, UserId,
    api_keys::{ApiKey, Scope},
    audit::AuditEvent,
    auth::User,
    time::Time,
    usage::{Day, UsageField},
};
use std::time::Duration;

/// Key to be created.
pub struct NewApiKey {
    /// Name, for people.
    pub name: String,
    /// Beginning of the key, which may be shown.
    pub prefix: String,
    /// SHA-256 of the whole key.
    pub key_sha256: String,
    /// Calls that the key may make.
    pub scopes: Vec<Scope>,
    /// Time from which on the key is invalid.
    pub expires_at: Option<Time>,
}

/// Interval in which further uses of a key are not noted.
pub const API_KEY_USE_INTERVAL: Duration = Duration::from_mins(1);

/// Valid key, found by its secret.
#[derive(Clone, Debug)]
pub struct ValidApiKey {
    /// The key.
    pub key: ApiKey,
    /// User to whom it belongs.
    pub user: User,
}

impl ValidApiKey {
    /// Whether a use of the key at the time `now` is to be noted.
    pub fn is_use_due(&self, now: Time) -> bool {
        let limit = now.minus(API_KEY_USE_INTERVAL);
        self.key.last_used_at.is_none_or(|last| last <= limit)
    }
}

/// Filter for keys.
pub struct ApiKeyFilter {
    /// Only keys of this user.
    pub owner: Option<UserId>,
    /// Only keys that were created before this one.
    pub before: Option<ApiKeyId>,
    /// Maximum number of keys.
    pub limit: u32,
}

/// Task and user with whom a call of a model is recorded that a job makes.
#[derive(Clone, Debug)]
pub struct InferenceUser {
    /// Task of the job.
    pub task: TaskId,
    /// Owner of the task.
    pub user: UserId,
    /// Handle of the owner.
    pub handle: String,
}

/// Request to a model that has ended.
#[derive(Clone, Debug)]
pub struct UsageRecord {
    /// User who pays: the caller, or the owner of the task.
    pub user: UserId,
    /// API key of the request, with its name.
    pub key: Option<(ApiKeyId, String)>,
    /// Task whose sandbox sent the request.
    pub task: Option<TaskId>,
    /// Model that was asked.
    pub model: String,
    /// Tokens that the model read.
    pub prompt_tokens: u64,
    /// Tokens that the model wrote.
    pub completion_tokens: u64,
    /// Event for the audit log, whose time counts.
    pub event: AuditEvent,
}

/// Sums of use that are wanted.
pub struct UsageFilter {
    /// Only use by this user.
    pub owner: Option<UserId>,
    /// Only use by the user of this handle.
    pub handle: Option<String>,
    /// First day.
    pub since: Day,
    /// Last day.
    pub until: Day,
    /// Fields by which to sum up, at least one and each once.
    pub by: Vec<UsageField>,
    /// Number of sums to skip.
    pub offset: u32,
    /// Maximum number of sums.
    pub limit: u32,
}
