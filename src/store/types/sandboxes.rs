//! Sandboxes that stay: creation, lists, and a sandbox as it is stored.

use super::QueueLimit;
use crate::api::{
    JobId, NodeId, TaskId, UserId,
    jobs::{JobError, SandboxSpec},
    tasks::JobStatus,
    time::Time,
};
use serde::{Deserialize, Serialize};

/// Part of a sandbox that its task does not have, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Name, unique among the sandboxes of the user that have not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Time when the sandbox began to run; `None` before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Time of its end at the latest, unless it is renewed. An estimate before it runs.
    pub expires_at: Time,
}

/// Limits on the number of sandboxes that have not ended.
#[derive(Clone, Copy, Debug)]
pub struct SandboxLimits {
    /// Number of sandboxes of one user.
    pub per_user: u32,
    /// Number of sandboxes of all users.
    pub all: u32,
}

/// Result of creating a sandbox.
pub enum CreateSandboxOutcome {
    /// The sandbox was stored.
    Created(TaskId),
    /// A sandbox of the user that has not ended has the name.
    NameTaken(TaskId),
    /// The user has as many sandboxes as one may have.
    TooManyOfUser,
    /// There are as many sandboxes as there may be.
    TooMany,
    /// The sandbox would exceed a limit of the queue.
    QueueFull(QueueLimit),
    /// The queued tasks and sandboxes of the user ask for [`MAX_LANES_PER_USER`](super::MAX_LANES_PER_USER) different
    /// sets of requirements.
    TooManyLanes,
}

/// Filter for a list of sandboxes.
pub struct SandboxFilter {
    /// Only sandboxes of this user; those of all users where it is `None`.
    pub owner: Option<UserId>,
    /// Whether those that have ended are among them.
    pub with_ended: bool,
    /// Only sandboxes older than this one.
    pub before: Option<TaskId>,
    /// Maximum number of sandboxes.
    pub limit: u32,
}

/// Page of a list of sandboxes.
pub struct SandboxPage {
    /// Sandboxes, newest first.
    pub sandboxes: Vec<StoredSandbox>,
    /// Whether there are older ones.
    pub more: bool,
}

/// Sandbox as it is stored.
#[derive(Clone, Debug)]
pub struct StoredSandbox {
    /// Id, which is that of its task.
    pub id: TaskId,
    /// User that it belongs to.
    pub user: UserId,
    /// Handle of that user.
    pub owner: Option<String>,
    /// Part that its task does not have.
    pub record: SandboxRecord,
    /// Sandbox as its node runs it, without its environment.
    pub spec: SandboxSpec,
    /// Job that runs it.
    pub job: JobId,
    /// Status of the job.
    pub status: JobStatus,
    /// Node that has it, or had it.
    pub node: Option<NodeId>,
    /// Slug of that node.
    pub node_slug: Option<String>,
    /// Time of creation.
    pub created_at: Time,
    /// Time of the end.
    pub ended_at: Option<Time>,
    /// End of its job, where it has ended.
    pub end: SandboxEnd,
}

/// Queued task or sandbox that starts from a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotWaiter {
    /// Id of the task, or of the sandbox.
    pub task: TaskId,
    /// Name, where it has one.
    pub name: Option<String>,
    /// Whether it is a sandbox that stays.
    pub is_sandbox: bool,
}

/// End of the job of a sandbox, as far as it is stored.
#[derive(Clone, Debug, Default)]
pub struct SandboxEnd {
    /// Reason in its node's words.
    pub reason: Option<String>,
    /// Error of its node.
    pub error: Option<JobError>,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// Summary in one line.
    pub summary: Option<String>,
}
