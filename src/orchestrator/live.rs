//! Where tasks stand now, for those who watch.
//!
//! A task has an entry while somebody follows or watches it. The entry tells where the task
//! stands and who has what it prints, never what that is: output stays at its node until somebody
//! asks for it.

use crate::api::{JobId, NodeId, TaskId, tasks::TaskStatus};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::sync::watch;

/// Where a task stands for its watchers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    pub(super) status: TaskStatus,
    /// Which attempt; 0 before the first.
    pub(super) attempt: u32,
    /// Who has what this attempt prints; nobody before a node has taken it.
    pub(super) source: Option<Source>,
    /// Whether that one has not answered for a while.
    pub(super) is_silent: bool,
}

/// The node that took an attempt, and what of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Source {
    pub(super) node: NodeId,
    pub(super) job: JobId,
    pub(super) attempt: u32,
}

/// One task that is watched or followed.
pub(super) struct LiveTask(watch::Sender<Moment>);

/// All of them.
#[derive(Default)]
pub(super) struct Live(Mutex<HashMap<TaskId, Weak<LiveTask>>>);

impl Live {
    /// The entry of a task, made when there is none.
    pub(super) fn task(&self, id: TaskId) -> Arc<LiveTask> {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = tasks.get(&id).and_then(Weak::upgrade) {
            return task;
        }
        if tasks.len() >= tasks.capacity() {
            tasks.retain(|_, task| task.strong_count() > 0);
        }
        let queued = Moment::of(TaskStatus::Queued, 0);
        let task = Arc::new(LiveTask(watch::Sender::new(queued)));
        tasks.insert(id, Arc::downgrade(&task));
        task
    }
}

impl Live {
    /// Where a task stands that somebody follows or watches.
    pub(super) fn moment(&self, id: TaskId) -> Option<Moment> {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let task = tasks.get(&id)?.upgrade()?;
        let moment = *task.0.borrow();
        Some(moment)
    }
}

impl Moment {
    /// One in which no node has anything to tell.
    pub(super) const fn of(status: TaskStatus, attempt: u32) -> Self {
        Self {
            status,
            attempt,
            source: None,
            is_silent: false,
        }
    }

    /// Whether a node has this attempt.
    pub(super) fn runs(&self, attempt: u32) -> bool {
        self.status == TaskStatus::Running && self.attempt == attempt
    }
}

impl LiveTask {
    /// The task's state has changed. One that the store has ended stays so, whoever tells late of what
    /// was before.
    pub(super) fn moves_to(&self, moment: Moment) {
        self.0.send_if_modified(|now| {
            let changes = !now.status.is_final() && *now != moment;
            if changes {
                *now = moment;
            }
            changes
        });
    }

    /// Waits until nobody watches it any more, at most for `limit`.
    pub(super) async fn unwatched(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.0.closed()).await;
    }

    /// Tells of where it stands from now on.
    pub(super) fn moments(&self) -> watch::Receiver<Moment> {
        self.0.subscribe()
    }
}
