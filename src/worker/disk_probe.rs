//! Short looks at the disk that a disk which hangs can't stop.
//!
//! A call such as `stat` never returns while a disk hangs. Here it runs on a thread of its own and has a time limit,
//! and only so many threads are given to it: `/readyz` and the other calls of the Worker API go on.

use crate::api::problem::{Problem, ProblemKind};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// Time in which a disk has to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of threads that a disk which hangs may hold.
const MAX_PROBE_THREADS: usize = 4;

/// The threads of all looks at the disk.
pub(super) struct DiskProbes {
    timeout: Duration,
    threads: Arc<Semaphore>,
}

impl Default for DiskProbes {
    fn default() -> Self {
        Self::new(PROBE_TIMEOUT)
    }
}

impl DiskProbes {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            threads: Arc::new(Semaphore::new(MAX_PROBE_THREADS)),
        }
    }

    /// Runs `look`; fails when it does not end in time.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let threads = Arc::clone(&self.threads);
        let looked = async {
            let thread = threads.acquire_owned().await.ok()?;
            // Given back by the thread, not by the call that waits for it no longer.
            let look = move || (look(), thread).0;
            spawn_blocking(look).await.ok()
        };
        let looked = timeout(self.timeout, looked).await.ok().flatten();
        looked.ok_or_else(|| {
            let seconds = self.timeout.as_secs();
            let detail = format!(
                "a disk of this node has not answered for {seconds} s; check the filesystems of its --data-dir, its \
                 --jobs-dir and podman's storage (findmnt, dmesg)"
            );
            Problem::new(ProblemKind::Unavailable, detail)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn hung_disk_holds_few_threads() {
        let probes = DiskProbes::new(Duration::from_millis(50));
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(parking_lot::Mutex::new(hang));
        for _ in 0..2 * MAX_PROBE_THREADS {
            let hang = Arc::clone(&hang);
            let looked = probes.run(move || hang.lock().recv()).await;
            assert!(looked.unwrap_err().detail.contains("has not answered"));
        }
        assert_eq!(probes.threads.available_permits(), 0);
        drop(release);
        let all = u32::try_from(MAX_PROBE_THREADS).unwrap();
        let returned = probes.threads.acquire_many(all).await.unwrap();
        drop(returned);
        assert_eq!(probes.run(|| 7).await, Ok(7), "the disk is back");
    }
}
