//! Jobs on the Worker API: the request to run one, its state, and its result (contract, section 4).

pub mod artifacts;
pub mod files;
mod limits;
pub mod patterns;
mod policy;
mod prompt;
pub mod resources;
mod result;
pub mod stdin;

pub use artifacts::{JobArtifact, SkippedArtifacts};
pub use policy::{NetworkPolicy, PullPolicy};
pub use prompt::{JobInference, MAX_PROMPT_BYTES, MODEL_PATTERN, Prompt};
pub(super) use result::MAX_ERROR_MESSAGE_BYTES;
pub use result::{Effective, JobError, JobErrorKind, JobResult, Outcome, Truncated};

use super::{
    JobId, TaskId, check_version,
    egress::EgressSpec,
    image::ImageRef,
    problem::Problem,
    sandboxes::SessionSpec,
    secrets::{SecretRef, SecretValues},
    size::ByteSize,
};
use files::{Content, JobFile};
use resources::{Cpus, GpuRequest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest element of `command`, in bytes; the kernel's limit is 128 KiB.
pub const MAX_ARGUMENT_BYTES: usize = 120 * 1024;
/// Longest script, in bytes: third element of a `command` that begins with [`SHELL`]; init passes it as a file.
pub const MAX_SCRIPT_BYTES: usize = 256 * 1024;
/// First elements of the command of a script.
pub const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Largest `command` and `env` together, in bytes, as the kernel counts them.
pub const MAX_COMMAND_BYTES: usize = 1024 * 1024;
/// Longest time limit of a job that any node can allow, in seconds: 30 days.
pub const MAX_TIMEOUT_SECONDS: u64 = 30 * 24 * 3600;
/// Longest time limit of a job at a node whose operator says nothing else, in seconds.
pub const DEFAULT_MAX_TIMEOUT_SECONDS: u64 = 10_800;
/// Variables that the node sets for a job with graphics processors.
const GPU_VARIABLES: [&str; 2] = ["NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"];
/// Default of `grace_seconds`.
pub const DEFAULT_GRACE_SECONDS: u32 = 5;
/// Largest `grace_seconds`.
pub const MAX_GRACE_SECONDS: u32 = 300;
/// Default time limit of a job, in seconds.
pub const DEFAULT_TIMEOUT_SECONDS: u64 = 3600;
/// Pattern of arguments, scripts and values of variables, for schemas: no NUL.
pub const NO_NUL_PATTERN: &str = "^[^\\u0000]*$";
/// Pattern of names of variables, for schemas; see [`check_env`].
pub const ENV_NAME_PATTERN: &str =
    "^(?!CYNODE_(TASK_ID|JOB_ID|WORKSPACE_DIR|ARTIFACTS_DIR)$)[A-Za-z_][A-Za-z0-9_]*$";
/// Environment variables of a sandbox that only cynode sets. Other names with `CYNODE_` are free.
pub const RESERVED_ENV: [&str; 4] = [
    "CYNODE_TASK_ID",
    "CYNODE_JOB_ID",
    "CYNODE_WORKSPACE_DIR",
    "CYNODE_ARTIFACTS_DIR",
];

/// Environment variables of a command.
pub type Env = BTreeMap<String, String>;

/// Body of `POST /v1/worker/jobs:run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunJob {
    /// Payload version, 1.
    pub version: u64,
    /// Task of the job.
    pub task_id: TaskId,
    /// Id of the job, the idempotency key of the Worker API.
    pub job_id: JobId,
    /// Attempt, counted from 1; a higher one replaces a lower one.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
    /// Sandbox and command.
    pub sandbox: SandboxSpec,
    /// Values of the secrets that the sandbox names. They are apart from it, since it is kept on disk and they are not.
    #[serde(default, skip_serializing_if = "SecretValues::is_empty")]
    pub secrets: SecretValues,
}

const fn first_attempt() -> u32 {
    1
}

/// Sandbox and command of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Image reference in any form that [`ImageRef`] reads.
    pub image: String,
    /// Program and arguments, run without a shell; none in a sandbox that stays.
    #[serde(default)]
    pub command: Vec<String>,
    /// Variables added to the environment of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Env>,
    /// Time limit in seconds, after which the sandbox is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Network of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// Hosts that the sandbox may reach, with network policy `allowlist`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSpec>,
    /// Whether the sandbox may use the node's model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_inference: Option<bool>,
    /// Time between TERM and KILL when the command is stopped, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
    /// Files that are placed in `/workspace` before the command runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<JobFile>,
    /// Patterns of files that are collected from `/workspace` after the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Most bytes that are collected; the node's own limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_limit: Option<ByteSize>,
    /// Content of stdin; empty by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Content>,
    /// Whether stdin is sent while the command runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// Share of the processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Limit of memory, swap included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Limit of processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Size of `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// Graphics processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<GpuRequest>,
    /// When the image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Prompt that the node's model server answers: no command is run then, and no sandbox is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// Times of a sandbox that stays and runs [execs](super::sandboxes::exec): it has no command of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionSpec>,
    /// Secrets whose values become variables, or go into requests: their names alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
    /// Whether values of secrets are masked in output; true where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<bool>,
}

impl SandboxSpec {
    /// Contents that the sandbox needs, in no order; one may be there several times.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        self.files
            .iter()
            .map(|file| &file.content)
            .chain(&self.stdin)
    }
}

impl RunJob {
    /// Checks every field; returns the image in normal form.
    pub fn check(&self) -> Result<ImageRef, Problem> {
        check_version("", self.version)?;
        if self.attempt == 0 {
            return Err(Problem::field(
                "/attempt",
                "must be a whole number of at least 1, got 0",
            ));
        }
        match (&self.sandbox.prompt, &self.sandbox.session) {
            (Some(prompt), _) => prompt.check("/sandbox/prompt/text", "/sandbox/prompt/model")?,
            (None, Some(session)) => session.check("/sandbox/session")?,
            (None, None) => {
                let env = self.sandbox.env.as_ref();
                check_command("/sandbox/command", &self.sandbox.command, env)?;
            }
        }
        check_env("/sandbox/env", self.sandbox.env.as_ref())?;
        check_timeout("/sandbox/timeout_seconds", self.sandbox.timeout_seconds)?;
        self.sandbox.check_extras("/sandbox")?;
        self.secrets.check("/secrets", &self.sandbox.secrets)?;
        parse_image("/sandbox/image", &self.sandbox.image)
    }
}

/// Refuses variables that the node sets for a job with graphics processors.
fn check_gpu_env(pointer: &str, env: Option<&Env>) -> Result<(), Problem> {
    let names = env.into_iter().flat_map(|env| env.keys());
    let mut reserved = names.filter(|name| GPU_VARIABLES.contains(&name.as_str()));
    match reserved.next() {
        Some(name) => Err(Problem::field(
            &format!("{pointer}/{name}"),
            "is set by the node for a task with gpus; leave it out",
        )),
        None => Ok(()),
    }
}

/// Image in normal form; `pointer` names the field in the problem.
pub fn parse_image(pointer: &str, image: &str) -> Result<ImageRef, Problem> {
    image
        .parse()
        .map_err(|error: super::image::InvalidImage| Problem::field(pointer, format!("is {error}")))
}

/// Checks that a sandbox can run a command: a program, no NUL, within the size limits.
pub fn check_command(pointer: &str, command: &[String], env: Option<&Env>) -> Result<(), Problem> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Problem::field(
            pointer,
            "must hold a program and its arguments, such as [\"echo\",\"hello\"]",
        ));
    }
    let is_script = command.len() == 3 && command[..2] == SHELL;
    for (n, argument) in command.iter().enumerate() {
        let pointer = format!("{pointer}/{n}");
        if argument.contains('\0') {
            return Err(Problem::field(&pointer, "must not contain a NUL character"));
        }
        let most = if is_script && n == 2 {
            MAX_SCRIPT_BYTES
        } else {
            MAX_ARGUMENT_BYTES
        };
        check_size(&pointer, argument, most)?;
    }
    // The kernel adds a pointer and a NUL to each.
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
                "is too long: together with env it takes {total} bytes, the limit is {MAX_COMMAND_BYTES}"
            ),
        ));
    }
    Ok(())
}

/// Checks that a text has at most `most` bytes.
pub fn check_size(pointer: &str, text: &str, most: usize) -> Result<(), Problem> {
    let length = text.len();
    if length <= most {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        format!("is {length} bytes long; the limit is {most} bytes"),
    ))
}

/// Checks environment variables: names that a shell can use and that are not reserved, values without NUL.
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
                "is not a valid environment variable name ([A-Za-z_][A-Za-z0-9_]*)",
            ));
        }
        if RESERVED_ENV.contains(&name.as_str()) {
            return Err(Problem::field(
                &pointer,
                "is set by cynode; choose another name",
            ));
        }
        if value.contains('\0') {
            return Err(Problem::field(&pointer, "must not contain a NUL character"));
        }
        check_size(&pointer, value, MAX_ARGUMENT_BYTES)?;
    }
    Ok(())
}

/// Checks a time limit: at least one second.
pub fn check_timeout(pointer: &str, seconds: Option<u64>) -> Result<(), Problem> {
    if seconds == Some(0) {
        let detail = "must be a whole number of at least 1, got 0";
        return Err(Problem::field(pointer, detail));
    }
    Ok(())
}

/// State of a job at its node; entry of `GET /v1/worker/jobs`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobState {
    /// Payload version, 1.
    pub version: u64,
    /// Task of the job.
    pub task_id: TaskId,
    /// Id of the job.
    pub job_id: JobId,
    /// Attempt of the job.
    pub attempt: u32,
    /// `running`, or the outcome.
    pub status: String,
}

impl JobState {
    /// Status of a job that has not ended.
    pub const RUNNING: &str = "running";
}

/// Answer of `GET /v1/worker/jobs`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobList {
    /// Running jobs, and ended ones whose result is still kept.
    pub jobs: Vec<JobState>,
}
