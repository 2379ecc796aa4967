//! Tasks and their jobs as users see them.

use crate::api::{
    JobId, TaskId,
    jobs::{JobResult, Truncated},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

/// Where a task stands.
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
    VariantArray,
    VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TaskStatus {
    /// Waits for a node.
    Queued,
    /// A node has it.
    Running,
    /// Exit code 0.
    Completed,
    /// Anything else, a timeout too.
    Failed,
    /// Ended on request.
    Canceled,
}

impl TaskStatus {
    /// Every status, in the order of a task's life.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// The name on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether it stays as it is.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }
}

/// Where a job stands, as the orchestrator sees it.
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
pub enum JobStatus {
    /// Waits for a node.
    Queued,
    /// A node has it.
    Running,
    /// Exit code 0.
    Completed,
    /// Another exit code, or it could not run.
    Failed,
    /// Killed at its time limit.
    Timeout,
    /// Ended on request.
    Canceled,
    /// Nobody can know how it ended, and it may not run twice.
    Lost,
}

impl JobStatus {
    /// The name on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// What the job's task is then.
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

/// A task as users see it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// The task's id.
    pub id: TaskId,
    /// Same as `id`.
    pub task_id: TaskId,
    /// Where it stands.
    pub status: TaskStatus,
    /// Why it still waits, for a node or for a word of its own, where that is more than a moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// One line on how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The user's name for it, which no other task of theirs has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_name: Option<String>,
    /// The user's prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// In which image, in normal form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Seconds after which its sandbox is killed, where the user asked for a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Which of the user's own tasks start first: the higher, the sooner.
    #[serde(default)]
    pub priority: i32,
    /// When it was accepted.
    pub created_at: Time,
    /// When it last changed.
    pub updated_at: Time,
    /// When a node first took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// The command's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

impl Task {
    /// As it was when it was created.
    pub fn as_created(self) -> Self {
        Self {
            status: TaskStatus::Queued,
            summary: None,
            updated_at: self.created_at,
            started_at: None,
            ended_at: None,
            exit_code: None,
            ..self
        }
    }
}

/// Answer of `GET /v1/tasks`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskList {
    /// Newest first.
    pub tasks: Vec<Task>,
    /// Give it as `cursor` to read on; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
    /// The same for callers that count (`offset`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
}

/// Answer of `GET /v1/tasks/{id}/result`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskResult {
    /// Which task.
    pub task_id: TaskId,
    /// Where it stands.
    pub status: TaskStatus,
    /// Its jobs; one, today.
    pub jobs: Vec<JobView>,
}

/// A job as users see it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobView {
    /// The job's id.
    pub id: JobId,
    /// Where it stands.
    pub status: JobStatus,
    /// The Worker API's result as a JSON string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The same as an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_object: Option<JobResult>,
    /// The node that has, or had, it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_slug: Option<String>,
    /// How often it was given to a node.
    pub attempt: u32,
    /// When the sandbox started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

/// Answer of `GET /v1/tasks/{id}/logs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskLogs {
    /// Which task.
    pub task_id: TaskId,
    /// What it printed on stdout.
    pub stdout: String,
    /// What it printed on stderr.
    pub stderr: String,
    /// Which of them was longer than what is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Truncated>,
}

/// Answer of `POST /v1/tasks/{id}/cancel`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CancelAnswer {
    /// Which task.
    pub task_id: TaskId,
    /// Whether it ended as canceled; false when it ended otherwise before it could be.
    pub canceled: bool,
}

crate::api::string_form::deserialize_by_name!(TaskStatus, JobStatus);
