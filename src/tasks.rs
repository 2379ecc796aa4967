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
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            running: watch::Sender::new(0),
        }
    }
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.send_modify(|n| *n += 1);
        let running = self.running.clone();
        tokio::spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!("a background task panicked; the lines above say where");
            }
            running.send_modify(|n| *n -= 1);
        });
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
