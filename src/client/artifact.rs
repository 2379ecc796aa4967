//! Artifacts and files of tasks, as the User API has them.

use crate::api::{jobs::files::FileMode, tasks::CreateTask, time::Time};
use serde::{Deserialize, Serialize};

/// Artifact in an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Artifact {
    pub(super) artifact_id: String,
    /// Name; of a task's artifact, the path in its workspace.
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<Time>,
}

/// List of artifacts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ArtifactList {
    pub(super) artifacts: Vec<Artifact>,
    #[serde(default)]
    pub(super) next_cursor: String,
}

/// File of a new task.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NewFile {
    pub(super) path: String,
    pub(super) artifact_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<FileMode>,
    pub(super) extract: bool,
}

/// New task with its files.
#[derive(Debug, Serialize)]
pub(super) struct NewTask {
    #[serde(flatten)]
    pub(super) task: CreateTask,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) files: Vec<NewFile>,
}
