//! Operations on the disk, off the threads of the runtime, and not more than a few at a time: a disk that hangs takes no
//! more threads than that, and no download waits for it for long.

use std::{io, sync::Arc, time::Duration};
use tokio::{runtime::Handle, sync::Semaphore, task::spawn_blocking, time::timeout};

/// Operations at a time.
const MAX_OPERATIONS: usize = 16;
/// Time for a look into the directory, and for some bytes to be written: after that, the download goes on without the
/// cache.
pub(super) const SHORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for some bytes to be read, without which the answer breaks off.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Places of operations; cheap to clone.
#[derive(Clone)]
pub(super) struct Disk(Arc<Semaphore>);

impl Disk {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_OPERATIONS)))
    }

    /// Runs an operation. Fails with `TimedOut` where it takes longer; it goes on then, and its result is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        operation: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut waiting = Waiting(Some(operation));
        let work = async {
            let place = Arc::clone(&self.0).acquire_owned().await;
            let place = place.map_err(io::Error::other)?;
            let operation = waiting.0.take();
            let done = spawn_blocking(move || {
                let _place = place;
                operation.map_or_else(|| Err(io::ErrorKind::Other.into()), |operation| operation())
            });
            done.await?
        };
        timeout(limit, work).await?
    }
}

/// Operation that has no place yet. It may have a file that goes when it is dropped.
struct Waiting<F: Send + 'static>(Option<F>);

impl<F: Send + 'static> Drop for Waiting<F> {
    fn drop(&mut self) {
        if let Some(operation) = self.0.take() {
            discard(operation);
        }
    }
}

/// Drops what may remove a file when dropped, off the threads of the runtime: the last one that has a file open, which was
/// removed meanwhile, waits until its space is free.
pub(super) fn discard<T: Send + 'static>(value: T) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn_blocking(move || drop(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{self, ThreadId};
    use tokio::sync::oneshot;

    /// Tells the thread on which it is dropped.
    struct Dropped(Option<oneshot::Sender<ThreadId>>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            if let Some(sender) = self.0.take() {
                let _ = sender.send(thread::current().id());
            }
        }
    }

    #[tokio::test]
    async fn operation_without_place_is_dropped_on_another_thread() {
        let disk = Disk(Arc::new(Semaphore::new(0)));
        let (sender, dropped) = oneshot::channel();
        let file = Dropped(Some(sender));
        let done = disk.run(Duration::from_millis(1), move || {
            drop(file);
            Ok(())
        });
        assert_eq!(done.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_ne!(dropped.await.unwrap(), thread::current().id());
    }
}
