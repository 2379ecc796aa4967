//! Tasks: lists, creation, deletion and retention.

use super::{Placement, Refusals};
use crate::api::{
    JobId, TaskId, UserId,
    tasks::{Task, TaskStatus},
};
use std::{fmt, time::Duration};

/// Largest offset of a page: the tasks before it are read and thrown away, which a cursor avoids.
pub const MAX_OFFSET: u32 = 10_000;

/// Filter for a list of tasks.
pub struct TaskFilter {
    /// Only tasks of this user; tasks of all users where it is `None`.
    pub owner: Option<UserId>,
    /// Only tasks in this status.
    pub status: Option<TaskStatus>,
    /// Only tasks of this name, with a number or without.
    pub name: Option<String>,
    /// Only tasks older than this one.
    pub before: Option<TaskId>,
    /// Number of the newest tasks to leave out; at most [`MAX_OFFSET`].
    pub offset: u32,
    /// Maximum number of tasks.
    pub limit: u32,
}

/// Page of a list of tasks.
pub struct TaskPage {
    /// Tasks, newest first.
    pub tasks: Vec<Task>,
    /// Whether there are older ones.
    pub more: bool,
}

/// Task that a word stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum TaskMatch {
    /// Exactly this task.
    One(TaskId),
    /// Several tasks have this name: of a release before names were unique, or of several users.
    SeveralNames,
    /// Several ids begin with this word.
    SeveralIds,
    /// No task that the caller may see.
    None,
}

/// Idempotency key of a request, and the SHA-256 of the body that it came with.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// Key that the client chose.
    pub key: String,
    /// SHA-256 of the body, in hex.
    pub body_sha256: String,
}

/// Limits on the number and the size of queued tasks.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Number of tasks of all users.
    pub all: u64,
    /// Number of tasks of one user.
    pub per_user: u64,
    /// Bytes of the tasks of all users.
    pub bytes: u64,
    /// Bytes of the tasks of one user.
    pub bytes_per_user: u64,
}

/// Limit of the queue that a new task would exceed; its text is the beginning of a sentence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueLimit {
    /// Number of tasks of the user.
    User,
    /// Bytes of the tasks of the user.
    UserBytes,
    /// Number of tasks of all users.
    All,
    /// Bytes of the tasks of all users.
    AllBytes,
}

impl fmt::Display for QueueLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "your queue",
            Self::UserBytes => "your queue, counted in bytes (--max-queued-bytes-per-user),",
            Self::All => "the queue of all users",
            Self::AllBytes => "the queue of all users, counted in bytes (--max-queued-bytes),",
        })
    }
}

/// Result of creating a task.
pub enum CreateOutcome {
    /// The task was stored.
    Created(Task),
    /// The same request came before: the task that it created.
    Repeated(Task),
    /// The idempotency key came before, with another body.
    KeyReused,
    /// The task would exceed a limit of the queue.
    QueueFull(QueueLimit),
    /// The queued tasks of the user ask for [`MAX_LANES_PER_USER`](super::MAX_LANES_PER_USER) different sets of
    /// labels.
    TooManyLanes,
}

/// Result of deleting a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeleteOutcome {
    /// The task was deleted.
    Deleted,
    /// The task stays: it has not ended.
    Unfinished(TaskStatus),
    /// No such task.
    Unknown,
}

/// Requirements of a queued task, and the nodes that could not meet them.
#[derive(Clone, Debug, Default)]
pub struct TaskRequirements {
    /// Requirements on the node.
    pub placement: Placement,
    /// Refusals by node.
    pub refusals: Refusals,
}

/// Limits on the finished tasks that are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Time for which a finished task is kept; `None` keeps it forever.
    pub age: Option<Duration>,
    /// Maximum number of finished tasks, of which the newest are kept; `None` keeps any number.
    pub max_tasks: Option<u64>,
}

/// Result of one batch of deletes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExpiredBatch {
    /// Number of tasks that were deleted.
    pub tasks: usize,
    /// Their jobs.
    pub jobs: Vec<JobId>,
    /// Whether there may be more to delete.
    pub more: bool,
}
