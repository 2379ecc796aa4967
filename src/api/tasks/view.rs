//! Tasks and their jobs as users see them.

use super::details::TaskDetails;
use crate::api::{
    JobId, TaskId,
    jobs::{JobResult, Truncated},
    string_form::named_enum,
    time::Time,
    warning::Warning,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

named_enum! {
    /// Status of a task.
    pub enum TaskStatus {
        /// Waiting for a node.
        Queued,
        /// Accepted by a node.
        Running,
        /// Ended with exit code 0.
        Completed,
        /// Ended in any other way, a timeout included.
        Failed,
        /// Canceled by a user.
        Canceled,
    }
}

impl TaskStatus {
    /// Whether the status can't change any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }
}

named_enum! {
    /// Status of a job at the orchestrator.
    pub enum JobStatus {
        /// Waiting for a node.
        Queued,
        /// Accepted by a node.
        Running,
        /// Ended with exit code 0.
        Completed,
        /// Ended with another exit code, or could not run.
        Failed,
        /// Killed at its time limit.
        Timeout,
        /// Canceled by a user.
        Canceled,
        /// Outcome unknown, and no attempt left.
        Lost,
    }
}

impl JobStatus {
    /// Status of the job's task.
    pub const fn task_status(self) -> TaskStatus {
        match self {
            Self::Queued => TaskStatus::Queued,
            Self::Running => TaskStatus::Running,
            Self::Completed => TaskStatus::Completed,
            Self::Failed | Self::Timeout | Self::Lost => TaskStatus::Failed,
            Self::Canceled => TaskStatus::Canceled,
        }
    }
}

/// Task in answers of the User API.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// Id of the task.
    pub id: TaskId,
    /// Same as `id`.
    pub task_id: TaskId,
    /// Status.
    pub status: TaskStatus,
    /// Reason why the task waits for a node, or for news of its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// Summary of the end, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Name, unique among the tasks of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_name: Option<String>,
    /// Prompt of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Program and arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Image, in normal form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Time limit in seconds, where the user set one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Priority among the user's own tasks: higher ones start first.
    #[serde(default)]
    pub priority: i32,
    /// Time of creation.
    pub created_at: Time,
    /// Time of the last change.
    pub updated_at: Time,
    /// Time when a node first accepted the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Time of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Exit code of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Owner, node and settings.
    #[serde(flatten)]
    pub details: TaskDetails,
}

impl Task {
    /// Same task as it was when it was created.
    pub fn as_created(self) -> Self {
        Self {
            status: TaskStatus::Queued,
            summary: None,
            updated_at: self.created_at,
            started_at: None,
            ended_at: None,
            exit_code: None,
            details: self.details.as_created(),
            ..self
        }
    }
}

/// Answer of `GET /v1/tasks`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskList {
    /// Tasks, newest first.
    pub tasks: Vec<Task>,
    /// Value of `cursor` for the next page; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
    /// Value of `offset` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
}

/// Answer of `GET /v1/tasks/{id}/result`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskResult {
    /// Id of the task.
    pub task_id: TaskId,
    /// Status.
    pub status: TaskStatus,
    /// Jobs of the task; always one so far.
    pub jobs: Vec<JobView>,
}

/// Job in answers of the User API.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobView {
    /// Id of the job.
    pub id: JobId,
    /// Status.
    pub status: JobStatus,
    /// Result of the Worker API as a JSON string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Same result as an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_object: Option<JobResult>,
    /// Node of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_slug: Option<String>,
    /// Number of the last attempt; 0 before the first.
    pub attempt: u32,
    /// Start of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Time of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

/// Answer of `GET /v1/tasks/{id}/logs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskLogs {
    /// Id of the task.
    pub task_id: TaskId,
    /// Output on stdout, where text was asked for.
    #[serde(default)]
    pub stdout: String,
    /// Output on stderr, where text was asked for.
    #[serde(default)]
    pub stderr: String,
    /// Output on stdout, where base64 was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// Output on stderr, where base64 was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// Streams of which not everything is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Truncated>,
    /// Reasons why there is less than was printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// Answer of `POST /v1/tasks/{id}/stdin`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StdinAnswer {
    /// Id of the task.
    pub task_id: TaskId,
    /// Bytes that were received so far: the offset of the next piece.
    pub offset: u64,
    /// Whether the command reads no more; the rest need not be sent.
    pub closed: bool,
}

/// Answer of `POST /v1/tasks/{id}/cancel`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CancelAnswer {
    /// Id of the task.
    pub task_id: TaskId,
    /// Whether the task ended as canceled; `false` when it had ended otherwise before.
    pub canceled: bool,
}
