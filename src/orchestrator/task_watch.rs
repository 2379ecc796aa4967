//! Where tasks stand now, for those who watch.
//!
//! A task has an entry while somebody follows or watches it. The entry tells where the task
//! stands and who has what it prints, never what that is: output stays at its node until somebody
//! asks for it.

use crate::api::{JobId, NodeId, TaskId, tasks::TaskStatus};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::sync::watch;

/// Where a task stands for its watchers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TaskState {
    pub(super) status: TaskStatus,
    /// Which attempt; 0 before the first.
    pub(super) attempt: u32,
    /// Who has what this attempt prints; nobody before a node has taken it.
    pub(super) source: Option<LogSource>,
    /// Whether that one has not answered for a while.
    pub(super) is_unreachable: bool,
}

/// The node that took an attempt, and what of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogSource {
    pub(super) node: NodeId,
    pub(super) job: JobId,
    pub(super) attempt: u32,
}

/// One task that is watched or followed.
pub(super) struct TaskWatch(watch::Sender<TaskState>);

/// All of them.
#[derive(Default)]
pub(super) struct TaskWatches(Mutex<HashMap<TaskId, Weak<TaskWatch>>>);

impl TaskWatches {
    /// The entry of a task, made when there is none.
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
}

impl TaskWatches {
    /// Where a task stands that somebody follows or watches.
    pub(super) fn current(&self, id: TaskId) -> Option<TaskState> {
        let tasks = self.0.lock();
        let task = tasks.get(&id)?.upgrade()?;
        let state = *task.0.borrow();
        Some(state)
    }
}

impl TaskState {
    /// One in which no node has anything to tell.
    pub(super) const fn new(status: TaskStatus, attempt: u32) -> Self {
        Self {
            status,
            attempt,
            source: None,
            is_unreachable: false,
        }
    }

    /// Whether a node has this attempt.
    pub(super) fn is_running(&self, attempt: u32) -> bool {
        self.status == TaskStatus::Running && self.attempt == attempt
    }
}

impl TaskWatch {
    /// The task's state has changed. One that the store has ended stays so, whoever tells late of what
    /// was before.
    pub(super) fn publish(&self, state: TaskState) {
        self.0.send_if_modified(|now| {
            let changes = !now.status.is_final() && *now != state;
            if changes {
                *now = state;
            }
            changes
        });
    }

    /// Waits until nobody watches it any more, at most for `limit`.
    pub(super) async fn wait_unobserved(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.0.closed()).await;
    }

    /// Tells of where it stands from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<TaskState> {
        self.0.subscribe()
    }
}
