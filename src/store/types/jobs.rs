//! Jobs: the ones that run, the way they end, and the nodes that refused them.

use super::{NewArtifact, Placement};
use crate::api::{
    JobId, NodeId, TaskId, events::Outline, jobs::JobResult, tasks::JobStatus, time::Time,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Job that runs on a node.
#[derive(Clone, Debug)]
pub struct RunningJob {
    /// Id of the job.
    pub id: JobId,
    /// Task that the job belongs to.
    pub task_id: TaskId,
    /// Current attempt; every write about the job names it.
    pub attempt: u32,
    /// Highest attempt that any node may know.
    pub last_attempt: u32,
    /// Maximum number of attempts.
    pub max_attempts: u32,
    /// Node that runs the current attempt.
    pub node_id: NodeId,
    /// Other node that is offered `last_attempt`.
    pub offered_to: Option<NodeId>,
    /// Whether the job is to be canceled.
    pub cancel_requested: bool,
    /// Earliest time at which the job could have been assigned to a node.
    pub eligible_at: Time,
    /// Start of the attempt; unknown for one that is only offered.
    pub started_at: Option<Time>,
    /// Requirements on the node.
    pub placement: Placement,
    /// Timeout that the user asked for, in seconds; at most that of the contract.
    pub timeout_seconds: Option<u64>,
    /// Time limit in force at the node, in seconds; unknown for an attempt that is only offered.
    pub effective_timeout_seconds: Option<u64>,
    /// Whether the job is a sandbox that stays. Its own lifetime limits it, and no other node can take it.
    pub is_sandbox: bool,
}

impl RunningJob {
    /// Whether the job may have another attempt.
    pub fn may_retry(&self) -> bool {
        self.last_attempt < self.max_attempts
    }

    /// The attempt that another node is offered, if any.
    pub fn offered_attempt(&self) -> Option<Self> {
        Some(Self {
            attempt: self.last_attempt,
            node_id: self.offered_to?,
            offered_to: None,
            started_at: None,
            effective_timeout_seconds: None,
            ..self.clone()
        })
    }
}

/// End of an attempt, ready to be stored.
#[derive(Clone, Debug)]
pub struct FinishedJob {
    /// Id of the job.
    pub id: JobId,
    /// Attempt that ended; must still be the current one.
    pub attempt: u32,
    /// Final status.
    pub status: JobStatus,
    /// Result from the Worker API; missing where the attempt was lost or never started.
    pub result: Option<JobResult>,
    /// Files that were collected, whose contents are stored; see [`artifacts`](super::artifacts).
    pub artifacts: Vec<NewArtifact>,
    /// Order in which the output came; see [`OutputLog::outline`](crate::api::events::OutputLog::outline).
    pub outline: Option<Outline>,
    /// Exit code of the command.
    pub exit_code: Option<i32>,
    /// One line for people.
    pub summary: String,
}

/// Number of jobs that have not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobCounts {
    /// Jobs in the queue, in a backoff or not.
    pub queued: u32,
    /// Jobs on nodes.
    pub running: u32,
    /// Sandboxes that stay, whose jobs are among both.
    pub sandboxes: u32,
}

/// Result of a request to cancel a task.
pub enum CancelOutcome {
    /// The job was queued and has ended now.
    Dequeued {
        /// Number of attempts before the cancel.
        attempt: u32,
    },
    /// The job runs on a node.
    Running(JobId),
    /// The job had ended before.
    Ended {
        /// Whether it ended as canceled.
        canceled: bool,
    },
}

/// Attempts of a job that this orchestrator still waits for, and the nodes that have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobOwnership {
    /// Task that the job belongs to.
    pub task: TaskId,
    /// Whether the job runs on a node.
    pub is_running: bool,
    /// Current attempt, and its node.
    pub current: (u32, Option<NodeId>),
    /// Attempt that is offered, and the node that it is offered to.
    pub offered: Option<(u32, NodeId)>,
    /// Highest attempt that this database has given out.
    pub last_attempt: u32,
}

/// Ways in which a running job may still go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobOutlook {
    /// Whether the job is to be canceled.
    pub is_canceled: bool,
    /// Whether another node may be assigned the job.
    pub may_move: bool,
}

/// Refusal of a job by one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Slug of the node.
    pub node: String,
    /// Reason, for people.
    pub reason: String,
}

/// Refusals of a job, by node.
pub type Refusals = BTreeMap<NodeId, Refusal>;

/// Queued job that some nodes refused.
#[derive(Clone, Debug)]
pub struct RefusedJob {
    /// Id of the job.
    pub id: JobId,
    /// Task that the job belongs to.
    pub task: TaskId,
    /// Attempt that was refused last.
    pub attempt: u32,
    /// Refusals by node.
    pub refusals: Refusals,
    /// Whether the task is a sandbox that stays.
    pub is_sandbox: bool,
}
