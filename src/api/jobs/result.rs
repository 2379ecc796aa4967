//! Result of a job, as the Worker API answers it and the orchestrator stores it.

use crate::api::{JobId, PAYLOAD_VERSION, TaskId, events::OUTPUT_LIMIT_BYTES, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

/// Longest cause of a failed job that is believed, in bytes.
pub(in crate::api) const MAX_ERROR_MESSAGE_BYTES: usize = 16 * 1024;
/// Longest word on what a sandbox got that is believed, in bytes.
const MAX_EFFECTIVE_BYTES: usize = 1024;

/// How a job ended at its node.
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
pub enum Outcome {
    /// Exit code 0.
    Completed,
    /// Another exit code, a signal, or an `error` that kept it from running.
    Failed,
    /// Killed at its time limit.
    Timeout,
    /// Killed on request.
    Canceled,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Which streams were longer than what is kept.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Truncated {
    /// Of stdout something is missing.
    pub stdout: bool,
    /// Of stderr something is missing.
    pub stderr: bool,
}

/// Result of a job, as the Worker API answers it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobResult {
    /// Payload version, 1.
    pub version: u64,
    /// Whose job it was.
    pub task_id: TaskId,
    /// Which job.
    pub job_id: JobId,
    /// Which attempt of it.
    pub attempt: u32,
    /// How it ended.
    pub status: Outcome,
    /// The command's exit code, 128+N when signal N killed it; only for `completed` and `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The first 256 KiB of stdout.
    pub stdout: String,
    /// The first 256 KiB of stderr.
    pub stderr: String,
    /// When the sandbox was started.
    pub started_at: Time,
    /// When its command had ended.
    pub ended_at: Time,
    /// Which streams were longer.
    pub truncated: Truncated,
    /// What was really enforced; absent when nothing was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// Why the command could not run, or how it was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
}

impl JobResult {
    /// Whether it can be the end of any job, and nothing in it is out of all proportion.
    pub fn is_valid(&self) -> bool {
        self.version == PAYLOAD_VERSION
            && self.stdout.len() <= OUTPUT_LIMIT_BYTES
            && self.stderr.len() <= OUTPUT_LIMIT_BYTES
            && self
                .error
                .as_ref()
                .is_none_or(|error| error.message.len() <= MAX_ERROR_MESSAGE_BYTES)
            && self
                .effective
                .as_ref()
                .is_none_or(Effective::is_within_limits)
            && match (self.status, self.exit_code, &self.error) {
                (Outcome::Completed, code, error) => code == Some(0) && error.is_none(),
                (Outcome::Failed, Some(code), None) => (1..=255).contains(&code),
                (Outcome::Failed, None, Some(_)) => true,
                (Outcome::Failed, ..) => false,
                (Outcome::Timeout | Outcome::Canceled, code, _) => code.is_none(),
            }
    }
}

/// What a sandbox really got.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Effective {
    /// The image's id.
    pub image_id: String,
    /// podman's network mode.
    pub network: String,
    /// The OCI runtime; `default` for podman's own choice.
    pub runtime: String,
    /// Seconds after which the sandbox would have been killed.
    pub timeout_seconds: u64,
    /// Filter of system calls that the command had on top of podman's; absent where a node has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<String>,
}

impl Effective {
    /// Whether nothing in it is out of all proportion.
    pub(in crate::api) fn is_within_limits(&self) -> bool {
        let seccomp = self.seccomp.as_deref().unwrap_or_default();
        [&self.image_id, &self.network, &self.runtime, seccomp]
            .iter()
            .all(|text| text.len() <= MAX_EFFECTIVE_BYTES)
    }
}

/// Why a command could not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobError {
    /// What kind of trouble.
    #[serde(rename = "type")]
    pub kind: JobErrorKind,
    /// The engine's own words, or ours.
    pub message: String,
}

/// Kinds of trouble that keep a command from running.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobErrorKind {
    /// The node's or orchestrator's patterns don't allow the image.
    ImageNotAllowed,
    /// No registry has it.
    ImageNotFound,
    /// It is there, and no sandbox can be started from it, on any node.
    ImageNotRunnable,
    /// It could not be fetched this time.
    ImagePullFailed,
    /// podman, or the sandbox's init, failed.
    EngineError,
    /// The command may have run, and nobody can know how it ended.
    Lost,
    /// The node was short of room on its disk, and ended the job that used the most.
    OutOfDisk,
    /// Something that this release has no word for.
    #[serde(other)]
    Other,
}

impl JobErrorKind {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ImageNotAllowed => "image-not-allowed",
            Self::ImageNotFound => "image-not-found",
            Self::ImageNotRunnable => "image-not-runnable",
            Self::ImagePullFailed => "image-pull-failed",
            Self::EngineError => "engine-error",
            Self::Lost => "lost",
            Self::OutOfDisk => "out-of-disk",
            Self::Other => "other",
        }
    }

    /// Whether another attempt may end better.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::ImagePullFailed | Self::EngineError | Self::Lost)
    }

    /// Whether only this node can't run it: another one may allow the image, have it, or have the user ids and
    /// the runtime that it needs.
    pub const fn is_node_specific(self) -> bool {
        matches!(
            self,
            Self::ImageNotAllowed | Self::ImageNotFound | Self::ImageNotRunnable
        )
    }
}

crate::api::string_form::deserialize_by_name!(Outcome);
