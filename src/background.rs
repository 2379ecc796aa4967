//! Background tasks with a name.
//!
//! Every task that outlives the call that starts it is spawned here; clippy.toml disallows
//! `tokio::spawn` elsewhere. A task gets a span of its name, which shows at the log level `debug`,
//! and its panic is an error in the log. Where others depend on a task, a caller also awaits its
//! end: through the returned handle, or through a [`BackgroundTasks`] group.

use crate::wait;
use futures_util::FutureExt as _;
use std::{
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};
use tracing::Instrument as _;

/// Starts a background task. Its panic is logged, and reaches the caller that awaits the handle.
#[expect(clippy::disallowed_methods, reason = "the one door to background work")]
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    // A root span: the task is no part of the work that started it.
    let span = tracing::debug_span!(parent: None, "background", background_task = name);
    tokio::spawn(logged(name, task).instrument(span))
}

/// Runs `work` to its end in the background, in the span of the caller, also where the caller is dropped
/// meanwhile: a client that hangs up must not come between a write and what follows it.
///
/// Fails only where `work` panics.
pub async fn run_to_end<T: Send + 'static>(
    name: &'static str,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    spawn(name, work.in_current_span()).await
}

async fn logged<T>(name: &'static str, task: impl Future<Output = T>) -> T {
    tracing::trace!("background task started");
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(output) => {
            tracing::trace!("background task ended");
            output
        }
        Err(panic) => {
            tracing::error!(
                name,
                "background task panicked; the message of the panic is in the log above"
            );
            resume_unwind(panic)
        }
    }
}

/// A group of background tasks that end together.
pub struct BackgroundTasks {
    running: watch::Sender<usize>,
    stop: watch::Sender<bool>,
}

impl Default for BackgroundTasks {
    fn default() -> Self {
        Self {
            running: watch::Sender::new(0),
            stop: watch::Sender::new(false),
        }
    }
}

impl BackgroundTasks {
    /// Starts a task of this group.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let running = Running::enter(self.running.clone());
        let mut stop = self.stop.subscribe();
        spawn(name, async move {
            let _running = running;
            tokio::select! {
                () = task => {}
                Ok(_) = wait::until(&mut stop, |stop| *stop) => {}
            }
        });
    }

    /// Same as [`run_to_end`], for work that [`Self::idle`] waits for. [`Self::stop`] does not drop it.
    pub async fn run_to_end<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        let running = Running::enter(self.running.clone());
        let counted = async move {
            let _running = running;
            work.await
        };
        run_to_end(name, counted).await
    }

    /// Drops all tasks at their next await point. Waits at most `limit` for one that does not yield.
    pub async fn stop(&self, limit: Duration) {
        self.stop.send_replace(true);
        self.idle(limit).await;
    }

    /// Waits until no task is left, at most for `limit`. Returns the number of tasks that are left.
    pub async fn idle(&self, limit: Duration) -> usize {
        let mut running = self.running.subscribe();
        let idle = wait::until(&mut running, |count| *count == 0);
        // The sender lives in `self`, so this can only time out.
        let _ = tokio::time::timeout(limit, idle).await;
        *self.running.borrow()
    }
}

/// One running task of a group; counted until it is dropped, also by a panic.
struct Running(watch::Sender<usize>);

impl Running {
    fn enter(count: watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn panic_reaches_handle() {
        let task = spawn("failing", async { panic!("on purpose") });
        let error = task.await.map(|()| "ended").unwrap_err();
        assert!(error.is_panic());
    }

    #[tokio::test]
    async fn panicked_task_leaves_its_group() {
        let tasks = BackgroundTasks::default();
        tasks.spawn("failing", async { panic!("on purpose") });
        assert_eq!(tasks.idle(LIMIT).await, 0);
    }

    #[tokio::test]
    async fn stop_ends_tasks_that_wait() {
        let tasks = BackgroundTasks::default();
        tasks.spawn("waiting", pending());
        assert_eq!(tasks.idle(Duration::ZERO).await, 1);
        tasks.stop(LIMIT).await;
        assert_eq!(tasks.idle(Duration::ZERO).await, 0);
    }
}
