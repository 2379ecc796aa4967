//! Watches of tasks: their current state, for log readers and cancels that wait for a change.
//!
//! A task has a watch while its attempt is followed or a subscriber waits for it. The watch holds the status and
//! the node that has the output, never the output itself, which stays on its node until it is read.

use crate::api::{JobId, NodeId, TaskId, tasks::TaskStatus};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::sync::watch;

/// State of a task, as its watchers see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TaskState {
    pub(super) status: TaskStatus,
    /// Number of the attempt; 0 before the first.
    pub(super) attempt: u32,
    /// Node that has the output of this attempt; `None` before a node has accepted it.
    pub(super) source: Option<LogSource>,
    /// Whether the node has reported the start of the command, or that the sandbox runs. Kept for the attempt.
    pub(super) has_started: bool,
    /// Whether that node has not answered for a while.
    pub(super) is_unreachable: bool,
    /// Node that is being sent the files of the attempt, and how far that is, in percent.
    pub(super) sending: Option<(NodeId, u8)>,
}

/// Node and attempt from which output can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogSource {
    pub(super) node: NodeId,
    pub(super) job: JobId,
    pub(super) attempt: u32,
}

/// Watch of one task.
pub(super) struct TaskWatch(watch::Sender<TaskState>);

/// Watches of all tasks that have one.
#[derive(Default)]
pub(super) struct TaskWatches(Mutex<HashMap<TaskId, Weak<TaskWatch>>>);

impl TaskWatches {
    /// Watch of a task, created if there is none.
    pub(super) fn for_task(&self, id: TaskId) -> Arc<TaskWatch> {
        let mut tasks = self.0.lock();
        if let Some(task) = tasks.get(&id).and_then(Weak::upgrade) {
            return task;
        }
        if tasks.len() >= tasks.capacity() {
            tasks.retain(|_, task| task.strong_count() > 0);
        }
        let queued = TaskState::new(TaskStatus::Queued, 0);
        let task = Arc::new(TaskWatch(watch::Sender::new(queued)));
        tasks.insert(id, Arc::downgrade(&task));
        task
    }

    /// Current state of a task, if it has a watch.
    pub(super) fn current(&self, id: TaskId) -> Option<TaskState> {
        let tasks = self.0.lock();
        let task = tasks.get(&id)?.upgrade()?;
        let state = *task.0.borrow();
        Some(state)
    }
}

impl TaskState {
    /// State in which no node has output.
    pub(super) const fn new(status: TaskStatus, attempt: u32) -> Self {
        Self {
            status,
            attempt,
            source: None,
            has_started: false,
            is_unreachable: false,
            sending: None,
        }
    }

    /// Whether a node runs this attempt.
    pub(super) fn is_running(&self, attempt: u32) -> bool {
        self.status == TaskStatus::Running && self.attempt == attempt
    }
}

impl TaskWatch {
    /// Publishes a new state. A final state stays: a late update from before does not replace it. Nor does what is known
    /// later make a start of the same attempt unknown.
    pub(super) fn publish(&self, mut state: TaskState) {
        self.0.send_if_modified(|now| {
            state.has_started |= now.has_started && now.is_running(state.attempt);
            let changes = !now.status.is_final() && *now != state;
            if changes {
                *now = state;
            }
            changes
        });
    }

    /// Waits until there are no subscribers, at most for `limit`.
    pub(super) async fn wait_unobserved(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.0.closed()).await;
    }

    /// Receiver of the current state and its changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<TaskState> {
        self.0.subscribe()
    }
}
