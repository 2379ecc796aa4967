//! The queue as the scheduler sees it: lanes of jobs that ask the same of a node.

use super::Placement;
use crate::api::{JobId, NodeId, UserId, time::Time};
use std::{collections::HashMap, time::Duration};

/// Longest pause between two attempts. A stored backoff that is longer doesn't count: the clock was set back.
pub const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// Maximum number of lanes of one user: different requirements on nodes that the queued tasks of a user may
/// have. As many as there are nodes by default.
pub const MAX_LANES_PER_USER: usize = 1024;

/// Queued jobs of one user that ask the same of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Owner of the jobs.
    pub user: UserId,
    /// Requirements of the jobs.
    pub placement: Placement,
}

/// Job that waits for a node. Jobs of a lane sort in the order in which they are assigned: by priority, then
/// by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueuedJob {
    /// Minus the priority of the job.
    pub rank: i32,
    /// Id of the job; ids sort by age.
    pub id: JobId,
    /// Earliest time at which the job could have been assigned.
    pub eligible_at: Time,
}

/// Details of a job that decide between nodes that fit, beside its placement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobDetails {
    /// Image in normal form.
    pub image: String,
    /// Time limit that the user asked for, in seconds.
    pub timeout_seconds: Option<u64>,
    /// Whether the node must have the image.
    pub never_pulls: bool,
    /// Nodes that had no room for its files lately. Not stored: the scheduler adds them.
    pub nodes_without_room: Vec<NodeId>,
}

/// Whether any queued job may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Whether some may run now.
    pub has_eligible: bool,
    /// End of the next backoff.
    pub next_at: Option<Time>,
}

/// Request for the next jobs of a lane.
#[derive(Clone, Debug)]
pub struct LaneRead {
    /// Lane to read.
    pub lane: Lane,
    /// Last job that was read before; `None` reads from the head.
    pub after: Option<QueuedJob>,
    /// Maximum number of jobs.
    pub limit: u32,
}

/// Data for one scheduling decision, all of it read at the same time.
#[derive(Clone, Debug, Default)]
pub struct LaneHeads {
    /// Number of running jobs by user; users without any are left out.
    pub running: HashMap<UserId, u32>,
    /// Eligible jobs at the head of each lane, one list for each read, in their order.
    pub jobs: Vec<Vec<QueuedJob>>,
}

/// Position in the history of lanes; by default before its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCursor {
    pub(in crate::store) epoch: u64,
    pub(in crate::store) clock: u64,
}

/// Lanes that were entered since a [`LaneCursor`].
#[derive(Debug)]
pub struct LaneChanges {
    /// Whether these are all lanes, which replace those that were known before.
    pub is_complete: bool,
    /// Lanes that were entered, some of which may have been known.
    pub entered: Vec<Lane>,
}
