//! Files that a node collected after a job's end.

use super::files::{MAX_PATH_BYTES, check_path};
use crate::api::lenient::is_default;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Directory in a workspace whose files are always collected.
pub const ARTIFACTS_DIRECTORY: &str = "artifacts";
/// Maximum number of artifacts of a job.
pub const MAX_ARTIFACTS: usize = 10_000;
/// Maximum bytes of all paths of a job's artifacts: the list is part of the result.
pub const MAX_ARTIFACT_PATHS_BYTES: usize = 512 * 1024;
/// Longest reason for which artifacts are missing, in bytes.
pub const MAX_SKIPPED_REASON_BYTES: usize = 4 * 1024;

/// File that was collected from the workspace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobArtifact {
    /// Path in `/workspace`.
    pub path: String,
    /// Number of bytes.
    pub size_bytes: u64,
    /// Whether its owner may execute it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub executable: bool,
}

/// Files that should have been collected, or stored, and were not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SkippedArtifacts {
    /// Number of files; 0 where it is not known.
    pub count: u64,
    /// Reason.
    pub reason: String,
    /// How many of them are links, devices and the like, which are never collected.
    #[serde(default, skip_serializing_if = "is_default")]
    pub irregular: u64,
}

impl SkippedArtifacts {
    /// Files with the reason, which is cut where it is too long.
    pub fn new(count: u64, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(MAX_SKIPPED_REASON_BYTES));
        Self {
            count,
            reason,
            irregular: 0,
        }
    }

    /// Same, of which so many are never collected.
    #[must_use]
    pub fn with_irregular(self, irregular: u64) -> Self {
        Self { irregular, ..self }
    }

    /// Both, as one.
    pub fn and(self, other: Self) -> Self {
        let reason = format!("{}; {}", self.reason, other.reason);
        let irregular = self.irregular.saturating_add(other.irregular);
        Self::new(self.count.saturating_add(other.count), reason).with_irregular(irregular)
    }
}

/// Whether a list of artifacts, and what is said of those that are missing, are within their limits.
pub(super) fn are_valid(artifacts: &[JobArtifact], skipped: Option<&SkippedArtifacts>) -> bool {
    let is_valid = |artifact: &JobArtifact| {
        artifact.path.len() <= MAX_PATH_BYTES && check_path("", &artifact.path, false).is_ok()
    };
    let bytes: usize = artifacts.iter().map(|artifact| artifact.path.len()).sum();
    artifacts.len() <= MAX_ARTIFACTS
        && bytes <= MAX_ARTIFACT_PATHS_BYTES
        && artifacts.iter().all(is_valid)
        && skipped.is_none_or(|skipped| skipped.reason.len() <= MAX_SKIPPED_REASON_BYTES)
}
