//! Artifacts: files that were uploaded or collected. The store knows their names and hashes, not their bytes.

use crate::api::{ArtifactId, TaskId, UserId, jobs::files::Content};

/// Artifact to be stored; its content is in the store of contents already, and pinned there meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewArtifact {
    /// Name: of a collected file, its path in the workspace.
    pub name: String,
    /// Content.
    pub content: Content,
}

/// Filter for a list of artifacts.
#[derive(Clone, Debug)]
pub struct ArtifactFilter {
    /// Only artifacts of this user; those of all users where it is `None`.
    pub owner: Option<UserId>,
    /// Only artifacts of exactly this name.
    pub name: Option<String>,
    /// Only artifacts that were collected from this task.
    pub task: Option<TaskId>,
    /// Only artifacts older than this one.
    pub before: Option<ArtifactId>,
    /// Maximum number of artifacts.
    pub limit: u32,
}
