//! Read-only connections, and the threads that reads run on.
//!
//! Most reads take less time than the wake-up of another thread, which is milliseconds on a busy machine. So a
//! read begins on the thread of its caller, which serves requests. A long one is interrupted there and
//! repeated on a blocking thread: it holds the caller's thread for [`INLINE_READ_TIMEOUT`] and the few rows, or
//! pages of a slow disk, that were under way at that time.

use super::{BUSY_TIMEOUT, StoreError, error::is_interrupted, keep_statements};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest time for which a read holds the thread of its caller.
const INLINE_READ_TIMEOUT: Duration = Duration::from_millis(1);
/// Steps of SQLite's virtual machine between two checks of the time; a row takes about twenty.
const PROGRESS_STEPS: i32 = 64;

#[derive(Clone)]
pub(super) struct ReaderPool {
    free: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
    count: usize,
    /// Longest read; `None` sets no limit.
    limit: Option<Duration>,
}

impl ReaderPool {
    /// Opens `count` connections; a read that takes longer than `limit` is ended.
    pub(super) fn open(
        path: &Path,
        count: usize,
        limit: Option<Duration>,
    ) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let free = (0..count)
            .map(|_| {
                let connection = Connection::open_with_flags(path, flags)?;
                connection.busy_timeout(BUSY_TIMEOUT)?;
                keep_statements(&connection)?;
                Ok(connection)
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Self {
            free: Arc::new(Mutex::new(free)),
            permits: Arc::new(Semaphore::new(count)),
            count,
            limit,
        })
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        mut f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.permit().await?;
        match self.attempt(&mut f, Some(INLINE_READ_TIMEOUT)) {
            Err(error) if is_interrupted(&error) => {}
            answer => return answer,
        }
        self.blocking(permit, f).await
    }

    /// Runs a read on a blocking thread from the start.
    pub(super) async fn read_blocking<T: Send + 'static>(
        &self,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.permit().await?;
        self.blocking(permit, f).await
    }

    /// Waits for the pending reads, at most for `limit`, and closes the connections; later reads fail.
    pub(super) async fn close(&self, limit: Duration) {
        let all = self.permits.acquire_many(self.count as u32);
        let all = tokio::time::timeout(limit, all).await;
        if all.is_err() {
            tracing::warn!("database closed during a long read");
        }
        self.permits.close();
        self.free.lock().clear();
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.map_err(|_| StoreError::Closed)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        mut f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = self.clone();
        let read = move || {
            let _permit = permit;
            match readers.attempt(&mut f, readers.limit) {
                Err(error) if is_interrupted(&error) => Err(StoreError::TooSlow),
                answer => answer,
            }
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| StoreError::Closed)?
    }

    /// Runs a read and interrupts it after `limit`.
    fn attempt<T>(
        &self,
        f: &mut impl FnMut(&Connection) -> Result<T, StoreError>,
        limit: Option<Duration>,
    ) -> Result<T, StoreError> {
        // There are as many permits as connections, so one is free.
        let mut connection = self.free.lock().pop().ok_or(StoreError::Closed)?;
        let began = Instant::now();
        let is_over = limit.map(|limit| move || began.elapsed() > limit);
        let read = || {
            connection.progress_handler(PROGRESS_STEPS, is_over)?;
            f(&connection)
        };
        // A panic leaves the connection intact.
        let answer = catch_unwind(AssertUnwindSafe(read));
        if !self.permits.is_closed() {
            self.free.lock().push(connection);
        }
        answer.unwrap_or(Err(StoreError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{self, ThreadId};

    fn readers(home: &tempfile::TempDir) -> ReaderPool {
        let path = home.path().join("db");
        Connection::open(&path).unwrap();
        ReaderPool::open(&path, 2, None).unwrap()
    }

    /// Counts to `n`; returns the threads on which the read was started, and the result.
    async fn count(readers: &ReaderPool, n: u32) -> (Vec<ThreadId>, u32) {
        let mut threads = Vec::new();
        let count = move |c: &Connection| {
            threads.push(thread::current().id());
            let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                       SELECT count(*) FROM n";
            let count = c.query_row(sql, [n], |row| row.get(0))?;
            Ok((threads.clone(), count))
        };
        readers.read(count).await.unwrap()
    }

    #[tokio::test]
    async fn only_long_reads_move_to_another_thread() {
        let home = tempfile::tempdir().unwrap();
        let readers = readers(&home);
        let here = thread::current().id();
        assert_eq!(count(&readers, 2).await, (vec![here], 2));
        let (threads, counted) = count(&readers, 300_000).await;
        assert_eq!((threads[0], threads.len(), counted), (here, 2, 300_000));
        assert_ne!(threads[1], here);
        assert_eq!(count(&readers, 2).await, (vec![here], 2));
    }

    #[tokio::test]
    async fn read_beyond_its_limit_is_interrupted() {
        let home = tempfile::tempdir().unwrap();
        let readers = ReaderPool {
            limit: Some(Duration::from_millis(20)),
            ..readers(&home)
        };
        let endless = |c: &Connection| {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
            Ok(c.query_row(sql, [], |row| row.get::<_, i64>(0))?)
        };
        let answer = readers.read(endless).await;
        assert!(matches!(answer, Err(StoreError::TooSlow)));
        assert_eq!(count(&readers, 2).await.1, 2);
    }

    #[tokio::test]
    async fn panicking_read_returns_its_connection() {
        let home = tempfile::tempdir().unwrap();
        let readers = readers(&home);
        for _ in 0..3 {
            let answer = readers
                .read(|_| -> Result<(), _> { panic!("a test") })
                .await;
            assert!(matches!(answer, Err(StoreError::Closed)));
        }
        assert_eq!(count(&readers, 2).await.1, 2);
    }
}
