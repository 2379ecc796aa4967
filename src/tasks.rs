//! Background work that somebody waits for.
//!
//! Every task of a role that outlives the call that started it is spawned through here, so
//! that its end can be awaited at shutdown and its panic shows in the log.

use crate::wait;
use futures_util::FutureExt as _;
use std::{future::Future, panic::AssertUnwindSafe, time::Duration};
use tokio::sync::watch;

/// A group of background tasks.
pub struct Tasks {
    running: watch::Sender<usize>,
    stop: watch::Sender<bool>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            running: watch::Sender::new(0),
            stop: watch::Sender::new(false),
        }
    }
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.send_modify(|n| *n += 1);
        let running = self.running.clone();
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                outcome = AssertUnwindSafe(task).catch_unwind() => if outcome.is_err() {
                    tracing::error!("a background task panicked; the lines above say where");
                },
                Ok(_) = wait::until(&mut stop, |stop| *stop) => {}
            }
            running.send_modify(|n| *n -= 1);
        });
    }

    /// Drops all tasks where they are, at most after `limit` for one that doesn't yield.
    pub async fn stop(&self, limit: Duration) {
        self.stop.send_replace(true);
        self.idle(limit).await;
    }

    /// Waits until none is left, at most for `limit`; how many were left then.
    pub async fn idle(&self, limit: Duration) -> usize {
        let mut running = self.running.subscribe();
        let idle = wait::until(&mut running, |n| *n == 0);
        // An error can't be: the sender lives in `self`.
        let _ = tokio::time::timeout(limit, idle).await;
        *self.running.borrow()
    }
}
