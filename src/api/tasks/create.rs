//! Creation of a task: validation of the request, and its conversion to a [`TaskSpec`].

mod attempts;
pub(super) mod prompt;

use super::{
    TaskSpec,
    inputs::FileInput,
    name::{MAX_NAME_CHARS, base_name},
};
use crate::api::{
    ArtifactId, UUID_PATTERN,
    egress::{self, Egress},
    image,
    integer::{check_range, optional_integer},
    jobs::{
        self, Env, NetworkPolicy, PullPolicy, SandboxSpec,
        resources::{Cpus, GpuRequest, MAX_PIDS, MIN_PIDS},
    },
    nodes::{LABEL_PATTERN, MAX_LABELS, SLUG_PATTERN},
    problem::{Problem, ProblemKind},
    requirements::{check_node, pids, resolve_image, text_schema},
    secrets::{self, MAX_JOB_SECRETS, SecretInput},
    size::ByteSize,
    string_form::named_enum,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::ops::RangeInclusive;

/// Default of `max_attempts`.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 3;
/// Largest `max_attempts`.
pub const MAX_ATTEMPTS_LIMIT: u32 = 100;
/// Range of `priority`; 0 by default.
pub const PRIORITY_RANGE: RangeInclusive<i32> = -100..=100;

/// Body of `POST /v1/tasks`: exactly one of `command`, `script` and `prompt`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("allOf" = [prompt::exclusive_input_schema(), egress::policy_schema()]))]
pub struct CreateTask {
    /// Text whose meaning depends on `input_mode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = jobs::MAX_SCRIPT_BYTES), regex(pattern = SCRIPT_PATTERN))]
    pub prompt: Option<String>,
    /// Program and arguments, run without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("prefixItems" = [text_schema(1)], "items" = text_schema(0)))]
    pub command: Option<Vec<String>>,
    /// Script for `/bin/sh -c`, at most 256 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = jobs::MAX_SCRIPT_BYTES), regex(pattern = SCRIPT_PATTERN))]
    pub script: Option<String>,
    /// Meaning of `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_mode: Option<InputMode>,
    /// Model that answers a prompt; the orchestrator's `--default-model` when absent, else one that is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = jobs::MODEL_PATTERN))]
    pub model: Option<String>,
    /// Name of the task. It is normalized (lower case, `-` for other characters) and made unique among the user's
    /// tasks by a number: `build`, `build-2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NAME_CHARS), regex(pattern = jobs::NO_NUL_PATTERN))]
    pub task_name: Option<String>,
    /// Image of the sandbox; the orchestrator's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = image::MAX_INPUT_BYTES), regex(pattern = image::PATTERN))]
    pub image: Option<String>,
    /// Variables added to the environment of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("propertyNames" = {"pattern": jobs::ENV_NAME_PATTERN}, "additionalProperties" = text_schema(0)))]
    pub env: Option<Env>,
    /// Secrets whose values become variables, by their names; or as objects with a `name` and the variable, `env`. With a
    /// `host`, the variable has a placeholder, which the proxy replaces in the `header` of requests to that host alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_JOB_SECRETS))]
    pub secrets: Option<Vec<SecretInput>>,
    /// Whether values of secrets are replaced by `***` in the output; true by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<bool>,
    /// Time limit in seconds, after which the sandbox is killed.
    #[serde(
        default,
        deserialize_with = "timeout_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = u64::MAX))]
    pub timeout_seconds: Option<u64>,
    /// Network of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// Hosts that the sandbox may reach; with network policy `allowlist`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Labels that the node must have, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_LABELS), inner(regex(pattern = LABEL_PATTERN)))]
    pub node_labels: Option<Vec<String>>,
    /// Slug of the only node that may run the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = SLUG_PATTERN))]
    pub node: Option<String>,
    /// Whether the sandbox may use a model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_inference: Option<bool>,
    /// Maximum attempts when a node fails or is lost; 1: never run the command twice.
    #[serde(
        default,
        deserialize_with = "max_attempts",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = MAX_ATTEMPTS_LIMIT))]
    pub max_attempts: Option<u32>,
    /// Priority among the user's own tasks: higher ones start first. Tasks of other users are not affected.
    #[serde(
        default,
        deserialize_with = "priority",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = *PRIORITY_RANGE.start(), max = *PRIORITY_RANGE.end()))]
    pub priority: Option<i32>,
    /// Time between TERM and KILL when the command is stopped, in seconds.
    #[serde(
        default,
        deserialize_with = "grace_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(max = jobs::MAX_GRACE_SECONDS))]
    pub grace_seconds: Option<u32>,
    /// Whether stdin is sent while the command runs, with `POST /v1/tasks/{id}/stdin`. Such a task has one attempt, since
    /// what was sent can't be sent to another node again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// Patterns of files that are collected from `/workspace` after the end, such as `out/*.json`; files in
    /// `/workspace/artifacts` are collected always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = jobs::files::MAX_PATTERNS))]
    pub artifacts: Option<Vec<String>>,
    /// Most bytes that are collected in all, where that is less than the node's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_limit: Option<ByteSize>,
    /// Share of the node's processors; unlimited by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Limit of memory, swap included; unlimited by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Limit of processes and threads; podman's by default.
    #[serde(
        default,
        deserialize_with = "pids",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = MIN_PIDS, max = MAX_PIDS))]
    pub pids: Option<u32>,
    /// Size of `/dev/shm`; podman's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// Graphics processors, which no other job has meanwhile; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<GpuRequest>,
    /// When the node pulls the image; `missing` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Files that are placed in `/workspace` before the command runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = jobs::files::MAX_FILES))]
    pub files: Option<Vec<FileInput>>,
    /// Content of stdin as text, at most 10 MiB; empty by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Content of stdin as base64 of its bytes, in place of `stdin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub stdin_base64: Option<String>,
    /// Artifacts that are placed in `/workspace` under their names; an older form of `files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = jobs::files::MAX_FILES), inner(regex(pattern = UUID_PATTERN)))]
    pub attachments: Option<Vec<ArtifactId>>,
}

/// Pattern of a script, for schemas: no NUL, and not only white space.
const SCRIPT_PATTERN: &str = "^[^\\u0000]*[^\\u0000\\s][^\\u0000]*$";

fn timeout_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    optional_integer(deserializer, 1..)
}

fn grace_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    optional_integer(deserializer, 0..=jobs::MAX_GRACE_SECONDS)
}

fn max_attempts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    optional_integer(deserializer, 1..=MAX_ATTEMPTS_LIMIT)
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    optional_integer(deserializer, PRIORITY_RANGE)
}

named_enum! {
    /// Meaning of a prompt.
    pub enum InputMode {
        /// Prompt for a model.
        Prompt,
        /// Shell script.
        Script,
        /// Shell commands, one a line; same as a script.
        Commands,
    }
}

impl CreateTask {
    /// Checks every field, and converts command, script or prompt into one command.
    pub fn resolve(mut self, default_image: &str) -> Result<TaskSpec, Problem> {
        self.take_inputs()?;
        let prompt = self.take_prompt()?;
        let command = match prompt {
            Some(_) => Vec::new(),
            None => {
                let (command, pointer) = self.take_command()?;
                jobs::check_command(pointer, &command, self.env.as_ref())?;
                command
            }
        };
        jobs::check_env("/env", self.env.as_ref())?;
        jobs::check_timeout("/timeout_seconds", self.timeout_seconds)?;
        check_name(self.task_name.as_deref())?;
        let max_attempts = self.resolve_attempts()?;
        let node_labels = self.node_labels.unwrap_or_default();
        check_node(&node_labels, self.node.as_deref())?;
        let priority = self.priority.unwrap_or_default();
        check_range("/priority", priority, PRIORITY_RANGE)?;
        let image = resolve_image(self.image.as_deref(), default_image)?;
        let secrets = secrets::resolve("/secrets", self.secrets, self.env.as_ref())?;
        let egress = Egress::resolve(self.egress.as_ref(), self.network_policy)?;
        secrets::check_hosts("/secrets", &secrets, egress.as_ref())?;
        let sandbox = SandboxSpec {
            image,
            command,
            env: self.env,
            timeout_seconds: self.timeout_seconds,
            network_policy: self.network_policy,
            egress,
            use_inference: self.use_inference.filter(|is_wanted| *is_wanted),
            grace_seconds: self.grace_seconds,
            interactive: self.interactive,
            artifacts: self.artifacts.unwrap_or_default(),
            artifact_limit: self.artifact_limit,
            cpus: self.cpus,
            memory: self.memory,
            pids: self.pids,
            shm_size: self.shm_size,
            gpus: self.gpus,
            pull: self.pull,
            prompt,
            secrets,
            mask: self.mask,
            ..SandboxSpec::default()
        };
        sandbox.check_extras("")?;
        Ok(TaskSpec {
            prompt: self.prompt,
            task_name: self.task_name.as_deref().and_then(base_name),
            sandbox,
            node_labels,
            node: self.node,
            max_attempts,
            priority,
        })
    }

    /// Command, and the JSON pointer of the field that it comes from.
    fn take_command(&mut self) -> Result<(Vec<String>, &'static str), Problem> {
        if self.prompt.is_none() && self.input_mode == Some(InputMode::Prompt) {
            return Err(Problem::field(
                "/input_mode",
                "must be left out where there is no prompt",
            ));
        }
        match (self.command.take(), &self.script, &self.prompt) {
            (Some(command), None, None) => {
                // A command that looks like a script has the limits of a command.
                for (n, argument) in command.iter().enumerate() {
                    let pointer = format!("/command/{n}");
                    jobs::check_size(&pointer, argument, jobs::MAX_ARGUMENT_BYTES)?;
                }
                Ok((command, "/command"))
            }
            (None, Some(script), None) => Ok((shell("/script", script)?, "/script")),
            (None, None, Some(prompt)) => Ok((shell("/prompt", prompt)?, "/prompt")),
            _ => Err(Problem::new(
                ProblemKind::InvalidRequest,
                "give exactly one of command (an array), script (text for /bin/sh) and prompt",
            )),
        }
    }
}

fn shell(pointer: &str, script: &str) -> Result<Vec<String>, Problem> {
    if script.trim().is_empty() {
        return Err(Problem::field(
            pointer,
            "must not be empty; give the text that /bin/sh runs",
        ));
    }
    jobs::check_size(pointer, script, jobs::MAX_SCRIPT_BYTES)?;
    if script.contains('\0') {
        return Err(Problem::field(pointer, "must not contain a NUL character"));
    }
    let [shell, option] = jobs::SHELL;
    Ok([shell, option, script].map(str::to_owned).into())
}

fn check_name(name: Option<&str>) -> Result<(), Problem> {
    let Some(name) = name else { return Ok(()) };
    if name.contains('\0') {
        return Err(Problem::field(
            "/task_name",
            "must not contain a NUL character",
        ));
    }
    if name.chars().count() > MAX_NAME_CHARS {
        return Err(Problem::field(
            "/task_name",
            format!("must have at most {MAX_NAME_CHARS} characters"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
