//! Validated task, as the orchestrator stores it.

use crate::api::jobs::SandboxSpec;
use serde::{Deserialize, Serialize};

/// Validated task, as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Prompt of the user, where the command came from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Base of the name; a number is added where another task of the user has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_name: Option<String>,
    /// Sandbox and command for the Worker API; the image is in normal form.
    pub sandbox: SandboxSpec,
    /// Labels that the node must have, all of them.
    pub node_labels: Vec<String>,
    /// Slug of the only node that may run the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Maximum attempts.
    pub max_attempts: u32,
    /// Priority among the user's own tasks.
    #[serde(default)]
    pub priority: i32,
}
