//! Artifacts: files that were uploaded or collected. The store knows their names and hashes, not their bytes.

use crate::api::{ArtifactId, TaskId, UserId, jobs::files::Content, time::Time};
use std::collections::BTreeMap;

/// Artifact to be stored; its content is in the store of contents already, and pinned there meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewArtifact {
    /// Name: of a collected file, its path in the workspace.
    pub name: String,
    /// Content.
    pub content: Content,
    /// Whether it was executable in the workspace.
    pub is_executable: bool,
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

/// Bytes of a user's unfinished uploads.
#[derive(Clone, Copy, Default, Debug)]
pub struct UnfinishedBytes {
    /// Bytes of all of them.
    pub all: u64,
    /// Bytes of those that may go.
    pub idle: u64,
}

/// Upload that needs room.
#[derive(Clone, Debug)]
pub struct RoomRequest {
    /// Its user.
    pub owner: UserId,
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Bytes that are to be freed for it.
    pub missing: u64,
    /// Bytes that the uploads of all users may take.
    pub quota: u64,
    /// Time since which no upload goes that was sent.
    pub keep_since: Time,
    /// Unfinished uploads of each user.
    pub unfinished: BTreeMap<UserId, UnfinishedBytes>,
}

/// Uploads that go to make room for another one.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Evicted {
    /// Number of uploads that were deleted.
    pub uploads: usize,
    /// Bytes of unfinished uploads that are to be removed of each user.
    pub unfinished: BTreeMap<UserId, u64>,
}

/// Use of the room by a user and by others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreUse {
    /// Bytes of the user's artifacts.
    pub own: u64,
    /// Number of users with artifacts, and this one.
    pub holders: u64,
    /// Number of users who are not disabled, and this one.
    pub users: u64,
}
