//! What running tasks print, for those who watch.
//!
//! A task has an entry while somebody fills or watches it. The entry holds the log of the
//! current attempt; readers take events from it by number, so that a late one gets what was
//! printed before and a slow one slows nobody.

use crate::api::{
    TaskId,
    events::{JobEvent, OutputLog, Stream},
    jobs::Truncated,
    tasks::TaskStatus,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::sync::watch;

/// Where a task stands for its watchers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    pub(super) status: TaskStatus,
    /// Which attempt; 0 before the first.
    pub(super) attempt: u32,
}

struct State {
    moment: Moment,
    log: OutputLog,
}

/// One task that is watched or filled.
pub(super) struct LiveTask {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

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
        let moment = Moment {
            status: TaskStatus::Queued,
            attempt: 0,
        };
        let state = Mutex::new(State {
            moment,
            log: OutputLog::default(),
        });
        let task = Arc::new(LiveTask {
            state,
            changed: watch::Sender::new(()),
        });
        tasks.insert(id, Arc::downgrade(&task));
        task
    }
}

impl LiveTask {
    /// A task that has ended, for those who come late.
    pub(super) fn ended(moment: Moment, log: OutputLog) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { moment, log }),
            changed: watch::Sender::new(()),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task's state has changed; a new attempt begins with an empty log.
    pub(super) fn moves_to(&self, moment: Moment) {
        let mut state = self.state();
        if state.moment.status.is_final() {
            // The store has ended it; who tells of what was before comes late.
            return;
        }
        if moment.attempt != state.moment.attempt {
            state.log = OutputLog::default();
        }
        state.moment = moment;
        drop(state);
        self.changed.send_replace(());
    }

    /// Adds an event. One that was seen before is passed over, and one that leaves a hole too: the
    /// result will have it all.
    pub(super) fn push(&self, event: &JobEvent) {
        if self.state().log.take(event) {
            self.changed.send_replace(());
        }
    }

    /// Number of the newest event.
    pub(super) fn last_seq(&self) -> u64 {
        self.state().log.last_seq()
    }

    /// How the events came; see [`OutputLog::outline`].
    pub(super) fn outline(&self) -> Vec<(u8, u64)> {
        self.state().log.outline()
    }

    /// What was printed so far.
    pub(super) fn texts(&self) -> (String, String) {
        let state = self.state();
        (
            state.log.text(Stream::Stdout).to_owned(),
            state.log.text(Stream::Stderr).to_owned(),
        )
    }

    /// Which streams lost something.
    pub(super) fn truncated(&self) -> Truncated {
        self.state().log.truncated()
    }

    /// Where the task stands, and the event after `seq` of that attempt, if there is one.
    pub(super) fn look(&self, attempt: u32, seq: u64) -> (Moment, Option<JobEvent>) {
        let state = self.state();
        let event = (attempt == state.moment.attempt)
            .then(|| state.log.event_after(attempt, seq))
            .flatten();
        (state.moment, event)
    }

    /// Tells of changes from now on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
