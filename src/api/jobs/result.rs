//! Result of a job, as the Worker API answers it and the orchestrator stores it.

use super::{
    JobInference,
    artifacts::{self, JobArtifact, SkippedArtifacts},
    resources::{Cpus, MAX_GPUS},
};
use crate::api::{
    JobId, PAYLOAD_VERSION, TaskId, egress::EgressTotals, events::OUTPUT_LIMIT_BYTES,
    nodes::ModelDetails, size::ByteSize, string_form::named_enum, time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest error message of a job, in bytes.
pub(in crate::api) const MAX_ERROR_MESSAGE_BYTES: usize = 16 * 1024;
/// Longest text of [`Effective`], in bytes.
const MAX_EFFECTIVE_BYTES: usize = 1024;

named_enum! {
    /// Outcome of a job at its node.
    pub enum Outcome {
        /// Exit code 0.
        Completed,
        /// Another exit code, a signal, or an `error` that kept it from running.
        Failed,
        /// Killed at its time limit.
        Timeout,
        /// Killed by a cancel.
        Canceled,
    }
}

/// Output streams that were longer than the limit.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Truncated {
    /// Whether stdout is incomplete.
    pub stdout: bool,
    /// Whether stderr is incomplete.
    pub stderr: bool,
}

/// Result of a job, as the Worker API answers it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobResult {
    /// Payload version, 1.
    pub version: u64,
    /// Task of the job.
    pub task_id: TaskId,
    /// Id of the job.
    pub job_id: JobId,
    /// Attempt of the job.
    pub attempt: u32,
    /// Outcome of the job.
    pub status: Outcome,
    /// Exit code of the command, 128+N when signal N killed it; only for `completed` and `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// First 256 KiB of stdout; bytes that are not UTF-8 are replaced by U+FFFD.
    pub stdout: String,
    /// First 256 KiB of stderr.
    pub stderr: String,
    /// Start of the sandbox.
    pub started_at: Time,
    /// End of the command.
    pub ended_at: Time,
    /// Streams that were longer.
    pub truncated: Truncated,
    /// Settings that were enforced; absent when no sandbox was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// Reason why the command could not run, or was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// Whether the kernel killed a process of the sandbox for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Explanation of the end, where exit code and error don't give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Use of a model by a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<JobInference>,
    /// Files that were collected from the workspace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<JobArtifact>,
    /// Files that should have been collected and were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts_skipped: Option<SkippedArtifacts>,
}

impl JobResult {
    /// Whether the job made requests to hosts, whose events its log has.
    pub fn has_egress(&self) -> bool {
        let effective = self.effective.as_ref();
        let totals = effective.and_then(|effective| effective.egress.as_ref());
        totals.is_some_and(|totals| totals.requests > 0)
    }

    /// Whether the fields are consistent and within their limits.
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
            && self
                .reason
                .as_ref()
                .is_none_or(|reason| reason.len() <= MAX_ERROR_MESSAGE_BYTES)
            && self
                .inference
                .as_ref()
                .is_none_or(|inference| ModelDetails::is_valid_name(&inference.model))
            && artifacts::are_valid(&self.artifacts, self.artifacts_skipped.as_ref())
            && match (self.status, self.exit_code, &self.error) {
                (Outcome::Completed, code, error) => code == Some(0) && error.is_none(),
                (Outcome::Failed, Some(code), None) => (1..=255).contains(&code),
                (Outcome::Failed, None, Some(_)) => true,
                (Outcome::Failed, ..) => false,
                (Outcome::Timeout | Outcome::Canceled, code, _) => code.is_none(),
            }
    }
}

/// Settings that were enforced on a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Effective {
    /// Id of the image.
    pub image_id: String,
    /// Network mode of podman.
    pub network: String,
    /// OCI runtime; `default` for podman's default.
    pub runtime: String,
    /// Time limit in seconds.
    pub timeout_seconds: u64,
    /// Filter of system calls on top of podman's; absent where the node has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<String>,
    /// Share of the processors; absent where unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Limit of memory in bytes, swap included; absent where unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Limit of processes and threads; absent where it is podman's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Size of `/dev/shm` in bytes; absent where it is podman's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// Graphics processors that the sandbox had, by their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// Limit of what the job may have on the node's disk, in bytes; absent where unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_limit: Option<ByteSize>,
    /// Sums of what the job sent and received through the proxy; absent where it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressTotals>,
}

impl Effective {
    /// Whether every text is within its limit.
    pub(in crate::api) fn is_within_limits(&self) -> bool {
        let seccomp = self.seccomp.as_deref().unwrap_or_default();
        [&self.image_id, &self.network, &self.runtime, seccomp]
            .iter()
            .all(|text| text.len() <= MAX_EFFECTIVE_BYTES)
            && self.gpus.len() <= MAX_GPUS
            && self
                .gpus
                .iter()
                .all(|text| text.len() <= MAX_EFFECTIVE_BYTES)
    }
}

/// Reason why a command could not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobError {
    /// Kind of the error.
    #[serde(rename = "type")]
    pub kind: JobErrorKind,
    /// Message of podman or of cynode.
    pub message: String,
}

impl JobError {
    /// Message for a log; `None` for a model server's, which may repeat what it was asked.
    pub fn loggable_message(&self) -> Option<&str> {
        let is_of_model = matches!(
            self.kind,
            JobErrorKind::ModelServerFailed | JobErrorKind::ModelNotFound
        );
        (!is_of_model).then_some(self.message.as_str())
    }
}

/// Kind of an error that kept a command from running.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobErrorKind {
    /// The image is not allowed by the node's or the orchestrator's patterns.
    ImageNotAllowed,
    /// No registry has the image.
    ImageNotFound,
    /// The image exists, but no sandbox can be started from it.
    ImageNotRunnable,
    /// The image could not be pulled this time.
    ImagePullFailed,
    /// podman or PID 1 of the sandbox failed.
    EngineError,
    /// The command may have run; its outcome is unknown.
    Lost,
    /// The node's disk was nearly full, and this job used the most of it.
    OutOfDisk,
    /// The node's memory was nearly full, and this job's use of it grew the most.
    OutOfMemory,
    /// The job had more on the node's disk than the node allows to one.
    WorkspaceLimit,
    /// The node can't enforce a limit that the job asks for.
    LimitUnsupported,
    /// A file of the job can't be placed: a path or an entry of an archive is not allowed, or an archive is damaged.
    FilesInvalid,
    /// The node has fewer or other graphics processors than the job asks for.
    GpuUnavailable,
    /// The model server of the node does not have the model.
    ModelNotFound,
    /// The model server of the node does not answer, or broke off.
    ModelServerFailed,
    /// The node was restarted before the command began, and had the values of the job's secrets only in its memory.
    SecretsLost,
    /// Kind that this release does not know.
    #[serde(other)]
    Other,
}

impl JobErrorKind {
    /// Name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ImageNotAllowed => "image-not-allowed",
            Self::ImageNotFound => "image-not-found",
            Self::ImageNotRunnable => "image-not-runnable",
            Self::ImagePullFailed => "image-pull-failed",
            Self::EngineError => "engine-error",
            Self::Lost => "lost",
            Self::OutOfDisk => "out-of-disk",
            Self::OutOfMemory => "out-of-memory",
            Self::WorkspaceLimit => "workspace-limit",
            Self::LimitUnsupported => "limit-unsupported",
            Self::FilesInvalid => "files-invalid",
            Self::GpuUnavailable => "gpu-unavailable",
            Self::ModelNotFound => "model-not-found",
            Self::ModelServerFailed => "model-server-failed",
            Self::SecretsLost => "secrets-lost",
            Self::Other => "other",
        }
    }

    /// Whether another attempt may succeed.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::ImagePullFailed
                | Self::EngineError
                | Self::Lost
                | Self::ModelServerFailed
                | Self::SecretsLost
        )
    }

    /// Whether the error is specific to the node: another one may allow the image, have it, have the user ids
    /// and the runtime that it needs, enforce the limits, or have the graphics processors or the model.
    pub const fn is_node_specific(self) -> bool {
        matches!(
            self,
            Self::ImageNotAllowed
                | Self::ImageNotFound
                | Self::ImageNotRunnable
                | Self::LimitUnsupported
                | Self::GpuUnavailable
                | Self::ModelNotFound
        )
    }
}
