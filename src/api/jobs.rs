//! Orchestrator and worker: run this, this is how it ended (contract, section 4).

use super::{
    JobId, PAYLOAD_VERSION, TaskId, check_version, events::KEPT_BYTES, image::ImageRef,
    problem::Problem, time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest single element of `command`, in bytes; the kernel's own limit is 128 KiB.
pub const MAX_ARGUMENT_BYTES: usize = 120 * 1024;
/// Largest script, in bytes: the third element of a `command` that begins with [`SHELL`]. Init hands a long
/// one over as a file.
pub const MAX_SCRIPT_BYTES: usize = 256 * 1024;
/// How the command of a script begins.
pub const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Largest `command` and `env` together, in bytes.
pub const MAX_COMMAND_BYTES: usize = 1024 * 1024;
/// Longest time limit of a job, in seconds; a node or an orchestrator may set less.
pub const MAX_TIMEOUT_SECONDS: u64 = 10_800;
/// Time limit of a job that names none, in seconds.
pub const DEFAULT_TIMEOUT_SECONDS: u64 = 3600;
/// What arguments, scripts and values of variables look like to a schema: no NUL.
pub const TEXT_PATTERN: &str = "^[^\\u0000]*$";
/// What names of variables look like to a schema; [`check_env`] reads them.
pub const ENV_NAME_PATTERN: &str =
    "^(?!CYNODE_(TASK_ID|JOB_ID|WORKSPACE_DIR|ARTIFACTS_DIR)$)[A-Za-z_][A-Za-z0-9_]*$";
/// Longest cause of a failed job that is believed, in bytes.
pub(super) const MAX_MESSAGE: usize = 16 * 1024;
/// Longest word on what a sandbox got that is believed, in bytes.
const MAX_EFFECTIVE: usize = 1024;
/// Variables that only cynode sets inside a sandbox, the last one once jobs can hand over files. Others that
/// start with `CYNODE_` are the job's own.
pub const RESERVED_ENV: [&str; 4] = [
    "CYNODE_TASK_ID",
    "CYNODE_JOB_ID",
    "CYNODE_WORKSPACE_DIR",
    "CYNODE_ARTIFACTS_DIR",
];

/// Environment of a command.
pub type Env = BTreeMap<String, String>;

/// Body of `POST /v1/worker/jobs:run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunJob {
    /// Payload version, 1.
    pub version: u64,
    /// Whose job it is.
    pub task_id: TaskId,
    /// The idempotency key of the whole conversation.
    pub job_id: JobId,
    /// A higher attempt replaces a lower one.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
    /// What to run, and in what.
    pub sandbox: SandboxSpec,
}

const fn first_attempt() -> u32 {
    1
}

/// What to run, and in what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Image reference in any form that [`ImageRef`] reads.
    pub image: String,
    /// Program and arguments; no shell in between.
    pub command: Vec<String>,
    /// Added to the image's own environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Env>,
    /// Seconds until the sandbox is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// What network the sandbox gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// Whether the sandbox may reach the node's model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_inference: Option<bool>,
}

/// What network a sandbox gets. Both are `--network=none` today.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPolicy {
    /// No network but its own loopback.
    None,
    /// Deny all; named separately since it may one day allow what an operator lists.
    #[default]
    Restricted,
}

impl NetworkPolicy {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Restricted => "restricted",
        }
    }
}

impl RunJob {
    /// Checks everything that can be told from the body alone; answers with the image in normal form.
    pub fn check(&self) -> Result<ImageRef, Problem> {
        check_version("", self.version)?;
        if self.attempt == 0 {
            return Err(Problem::field("/attempt", "attempts are counted from 1"));
        }
        check_command(
            "/sandbox/command",
            &self.sandbox.command,
            self.sandbox.env.as_ref(),
        )?;
        check_env("/sandbox/env", self.sandbox.env.as_ref())?;
        check_timeout("/sandbox/timeout_seconds", self.sandbox.timeout_seconds)?;
        if self.sandbox.use_inference == Some(true) {
            return Err(Problem::new(
                super::problem::Kind::InferenceNotAvailable,
                "this worker has no inference to offer; send the job without use_inference",
            )
            .at("/sandbox/use_inference"));
        }
        parse_image("/sandbox/image", &self.sandbox.image)
    }
}

/// The image at `pointer` in normal form.
pub fn parse_image(pointer: &str, image: &str) -> Result<ImageRef, Problem> {
    image
        .parse()
        .map_err(|error: super::image::InvalidImage| Problem::field(pointer, error.to_string()))
}

/// A command that a sandbox can run: not empty, no NUL, within the size limits.
pub fn check_command(pointer: &str, command: &[String], env: Option<&Env>) -> Result<(), Problem> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Problem::field(
            pointer,
            "is empty; give a program and its arguments, such as [\"echo\",\"hello\"]",
        ));
    }
    let is_script = command.len() == 3 && command[..2] == SHELL;
    for (n, argument) in command.iter().enumerate() {
        let pointer = format!("{pointer}/{n}");
        if argument.contains('\0') {
            return Err(Problem::field(
                &pointer,
                "holds a NUL character, which no argument can",
            ));
        }
        let most = if is_script && n == 2 {
            MAX_SCRIPT_BYTES
        } else {
            MAX_ARGUMENT_BYTES
        };
        check_size(&pointer, argument, most)?;
    }
    // The kernel needs a pointer and a NUL more for each.
    let total = command
        .iter()
        .map(|argument| argument.len() + 9)
        .sum::<usize>()
        + env
            .into_iter()
            .flatten()
            .map(|(name, value)| name.len() + value.len() + 10)
            .sum::<usize>();
    if total > MAX_COMMAND_BYTES {
        return Err(Problem::field(
            pointer,
            format!(
                "command and env are {total} bytes together; at most {MAX_COMMAND_BYTES} are possible"
            ),
        ));
    }
    Ok(())
}

/// A text of `most` bytes or fewer.
pub fn check_size(pointer: &str, text: &str, most: usize) -> Result<(), Problem> {
    let length = text.len();
    if length <= most {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        format!("is {length} bytes long; at most {most} are possible"),
    ))
}

/// Environment names a shell can use, outside of what is cynode's own.
pub fn check_env(pointer: &str, env: Option<&Env>) -> Result<(), Problem> {
    for (name, value) in env.into_iter().flatten() {
        let pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        let mut bytes = name.bytes();
        let valid = bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !valid {
            return Err(Problem::field(
                &pointer,
                "is not a valid name for an environment variable ([A-Za-z_][A-Za-z0-9_]*)",
            ));
        }
        if RESERVED_ENV.contains(&name.as_str()) {
            return Err(Problem::field(
                &pointer,
                format!("{name} is set by cynode; choose another name"),
            ));
        }
        if value.contains('\0') {
            return Err(Problem::field(
                &pointer,
                "holds a NUL character, which no variable can",
            ));
        }
        check_size(&pointer, value, MAX_ARGUMENT_BYTES)?;
    }
    Ok(())
}

/// At least one second.
pub fn check_timeout(pointer: &str, seconds: Option<u64>) -> Result<(), Problem> {
    if seconds == Some(0) {
        return Err(Problem::field(pointer, "must be at least 1 second"));
    }
    Ok(())
}

/// How a job ended at its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
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
    /// Every outcome there is.
    pub const ALL: [Self; 4] = [Self::Completed, Self::Failed, Self::Timeout, Self::Canceled];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
        }
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
    pub fn is_sound(&self) -> bool {
        self.version == PAYLOAD_VERSION
            && self.stdout.len() <= KEPT_BYTES
            && self.stderr.len() <= KEPT_BYTES
            && self
                .error
                .as_ref()
                .is_none_or(|error| error.message.len() <= MAX_MESSAGE)
            && self.effective.as_ref().is_none_or(Effective::is_small)
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
    pub(super) fn is_small(&self) -> bool {
        let seccomp = self.seccomp.as_deref().unwrap_or_default();
        [&self.image_id, &self.network, &self.runtime, seccomp]
            .iter()
            .all(|text| text.len() <= MAX_EFFECTIVE)
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
            Self::Other => "other",
        }
    }

    /// Whether another attempt may end better.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::ImagePullFailed | Self::EngineError | Self::Lost)
    }

    /// Whether only this node can't run it: another one may allow the image, or have it.
    pub const fn is_of_one_node(self) -> bool {
        matches!(self, Self::ImageNotAllowed | Self::ImageNotFound)
    }
}

/// Where a job stands at its node; one entry of `GET /v1/worker/jobs`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobState {
    /// Payload version, 1.
    pub version: u64,
    /// Whose job it is.
    pub task_id: TaskId,
    /// Which job.
    pub job_id: JobId,
    /// Which attempt of it.
    pub attempt: u32,
    /// `running`, or how it ended.
    pub status: String,
}

impl JobState {
    /// The status of a job that has not ended.
    pub const RUNNING: &str = "running";
}

/// Answer of `GET /v1/worker/jobs`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobList {
    /// All that the node holds, running and ended.
    pub jobs: Vec<JobState>,
}
