//! Details of a task: its owner, its place, and the settings that it was created with.

use super::TaskSpec;
use crate::api::{
    egress::Egress,
    jobs::{
        NetworkPolicy, PullPolicy,
        resources::{Cpus, GpuRequest},
    },
    secrets::SecretRef,
    size::ByteSize,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// File that a task got, without its content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskFile {
    /// Path in `/workspace`; of an archive, the directory that it is extracted to.
    pub path: String,
    /// Size of the content.
    pub size_bytes: u64,
    /// Whether the content is an archive that is extracted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extract: bool,
}

/// Part of a task that says whose it is, where it runs, and with which settings. Lists leave out the names of
/// variables, the hosts, the files and the patterns.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TaskDetails {
    /// Handle of the user who created the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Node of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_slug: Option<String>,
    /// Slug of the only node that may run the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Time limit in force at the node, in seconds; while the task waits, the longest that a suitable node allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_timeout_seconds: Option<u64>,
    /// Number of the last attempt; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// Maximum attempts.
    #[serde(default)]
    pub max_attempts: u32,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_labels: Vec<String>,
    /// Names of the variables that the task sets; their values are not shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_names: Vec<String>,
    /// Secrets that the task gets, by their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
    /// Time between TERM and KILL, in seconds, where the user set one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
    /// Share of the processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Limit of memory.
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
    /// Network of the sandbox, where the user chose one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// Hosts that the sandbox may reach; those of profiles are in `allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// When the node pulls the image, where the user said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Files that are placed in `/workspace` before the command runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<TaskFile>,
    /// Patterns of files that are collected after the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Most bytes that are collected in all, where the user set a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_limit: Option<ByteSize>,
    /// Model that answers the prompt, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl TaskDetails {
    /// Details that stand in the task as it is stored.
    pub fn of(spec: &TaskSpec) -> Self {
        let sandbox = &spec.sandbox;
        let files = sandbox.files.iter().map(|file| TaskFile {
            path: file.path.clone(),
            size_bytes: file.content.size_bytes,
            extract: file.extract,
        });
        Self {
            owner: None,
            node_slug: None,
            node: spec.node.clone(),
            effective_timeout_seconds: None,
            attempt: 0,
            max_attempts: spec.max_attempts,
            node_labels: spec.node_labels.clone(),
            env_names: sandbox
                .env
                .iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
            secrets: sandbox.secrets.clone(),
            grace_seconds: sandbox.grace_seconds,
            cpus: sandbox.cpus,
            memory: sandbox.memory,
            pids: sandbox.pids,
            shm_size: sandbox.shm_size,
            gpus: sandbox.gpus.clone(),
            network_policy: sandbox.network_policy,
            egress: sandbox.egress.as_ref().map(Egress::from),
            pull: sandbox.pull,
            files: files.collect(),
            artifacts: sandbox.artifacts.clone(),
            artifact_limit: sandbox.artifact_limit,
            model: sandbox
                .prompt
                .as_ref()
                .and_then(|prompt| prompt.model.clone()),
        }
    }

    /// Same details as they were when the task was created.
    #[must_use]
    pub fn as_created(self) -> Self {
        Self {
            node_slug: None,
            effective_timeout_seconds: None,
            attempt: 0,
            ..self
        }
    }

    /// Same details for a list, without the parts that may be long.
    #[must_use]
    pub fn shortened(self) -> Self {
        Self {
            env_names: Vec::new(),
            secrets: Vec::new(),
            egress: None,
            files: Vec::new(),
            artifacts: Vec::new(),
            ..self
        }
    }
}
