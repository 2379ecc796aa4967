//! Artifacts on the User API: files that were uploaded for tasks, and files that tasks left.

use super::{ArtifactId, TaskId, jobs::files::ContentHash, lenient::is_default, time::Time};
use crate::api::problem::{Problem, ProblemKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest name of an artifact, in bytes: that of a path in a workspace.
pub const MAX_NAME_BYTES: usize = 4096;
/// Name of an artifact that was uploaded without one.
pub const DEFAULT_NAME: &str = "artifact";

/// Artifact without its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Artifact {
    /// Id.
    pub artifact_id: ArtifactId,
    /// Name; of a file that a task left, its path in the workspace. Any text: not safe as a file name as it is.
    pub name: String,
    /// Number of bytes.
    pub size_bytes: u64,
    /// SHA-256 of the bytes.
    pub sha256: ContentHash,
    /// Time of the upload, or of the end of the task.
    pub created_at: Time,
    /// Whether the file is a program or script that the task made executable.
    #[serde(default, skip_serializing_if = "is_default")]
    pub executable: bool,
    /// Task that left the file; absent for an upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
}

/// Page of artifacts, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactList {
    /// Artifacts.
    pub artifacts: Vec<Artifact>,
    /// Cursor of the next page; empty on the last one.
    pub next_cursor: String,
}

/// Checks the name of an upload.
pub fn check_name(name: &str) -> Result<(), Problem> {
    let problem = |detail: String| {
        let detail = format!("query parameter `name` {detail}");
        Err(Problem::new(ProblemKind::InvalidRequest, detail))
    };
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return problem(format!(
            "must be 1 to {MAX_NAME_BYTES} bytes, got {}",
            name.len()
        ));
    }
    if name.contains('\0') {
        return problem("must not contain a NUL character".to_owned());
    }
    Ok(())
}
