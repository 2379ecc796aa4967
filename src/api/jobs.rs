//! Orchestrator and worker: run this, this is how it ended (contract, section 4).

mod result;

pub(super) use result::MAX_ERROR_MESSAGE_BYTES;
pub use result::{Effective, JobError, JobErrorKind, JobResult, Outcome, Truncated};

use super::{JobId, TaskId, check_version, image::ImageRef, problem::Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use strum::{EnumString, IntoStaticStr, VariantNames};

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
pub const NO_NUL_PATTERN: &str = "^[^\\u0000]*$";
/// What names of variables look like to a schema; [`check_env`] reads them.
pub const ENV_NAME_PATTERN: &str =
    "^(?!CYNODE_(TASK_ID|JOB_ID|WORKSPACE_DIR|ARTIFACTS_DIR)$)[A-Za-z_][A-Za-z0-9_]*$";
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
#[derive(
    Clone,
    Copy,
    Default,
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
pub enum NetworkPolicy {
    /// No network but its own loopback.
    None,
    /// Deny all; named separately since it may one day allow what an operator lists.
    #[default]
    Restricted,
}

impl NetworkPolicy {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl RunJob {
    /// Checks everything that can be told from the body alone; answers with the image in normal form.
    pub fn check(&self) -> Result<ImageRef, Problem> {
        check_version("", self.version)?;
        if self.attempt == 0 {
            return Err(Problem::field(
                "/attempt",
                "must be a whole number of at least 1, got 0",
            ));
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
                super::problem::ProblemKind::InferenceNotAvailable,
                "is not available: this worker offers no inference; leave it out",
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
        .map_err(|error: super::image::InvalidImage| Problem::field(pointer, format!("is {error}")))
}

/// A command that a sandbox can run: not empty, no NUL, within the size limits.
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
                "is too long: together with env it takes {total} bytes, the limit is {MAX_COMMAND_BYTES}"
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
        format!("is {length} bytes long; the limit is {most} bytes"),
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

/// At least one second.
pub fn check_timeout(pointer: &str, seconds: Option<u64>) -> Result<(), Problem> {
    if seconds == Some(0) {
        let detail = "must be a whole number of at least 1, got 0";
        return Err(Problem::field(pointer, detail));
    }
    Ok(())
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

crate::api::string_form::deserialize_by_name!(NetworkPolicy);
