//! Truncation of the write-ahead log.
//!
//! SQLite copies the log into the database by itself, at a commit and as far as readers let it. It restarts
//! the log only while no reader uses it. With readers that never all pause, that time doesn't come, and the
//! log would grow endlessly. So the writer, between two transactions, waits for the readers of the log. Readers
//! that begin meanwhile find everything in the database and are not waited for.

use super::{BUSY_TIMEOUT, health::Health};
use rusqlite::Connection;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Size that SQLite leaves of the file by itself when no reader uses it.
pub(super) const WAL_RETAINED_BYTES: i64 = 4 << 20;
/// Size of the file from which on it is truncated.
const MAX_WAL_BYTES: u64 = 16 << 20;
/// Longest wait of the writer for readers; the reads of this process take milliseconds.
const TRUNCATE_TIMEOUT: Duration = Duration::from_millis(200);
/// Pause after readers took longer than that, such as those of a backup.
const TRUNCATE_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Path of the log of the database at `path`.
pub(super) fn path_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    name.into()
}

/// The log of a database.
pub(super) struct Wal {
    path: PathBuf,
    /// Earliest time of the next truncation.
    retry_at: Option<Instant>,
    /// Whether to truncate after the next commit: pages that were freed leave the file only then.
    requested: Arc<AtomicBool>,
}

impl Wal {
    /// The log of the database at `path`.
    pub(super) fn of(path: &Path, requested: Arc<AtomicBool>) -> Self {
        Self {
            path: path_of(path),
            retry_at: None,
            requested,
        }
    }

    /// Copies the log into the database and closes the connection, so that the whole database is in its one
    /// file. The readers of this process are closed before. Another process that reads, such as a backup, is
    /// waited for, and leaves the log in place when it takes longer.
    pub(super) fn close(self, connection: Connection) -> Result<(), super::StoreError> {
        let is_empty = truncate(&connection, BUSY_TIMEOUT)?;
        connection.close().map_err(|(_, error)| error)?;
        if is_empty {
            Ok(())
        } else {
            Err(super::StoreError::LogInUse(self.path))
        }
    }

    /// Truncates the file where it is large, between two transactions of the writer. Also while a fault is
    /// recorded: the copy into the database may be what fails.
    pub(super) fn truncate_if_due(&mut self, connection: &Connection, health: &Health) {
        let is_large = || fs::metadata(&self.path).is_ok_and(|file| file.len() > MAX_WAL_BYTES);
        let is_due = self.requested.load(Ordering::Relaxed)
            || health.storage_fault().is_some()
            || is_large();
        let now = Instant::now();
        if !is_due || self.retry_at.is_some_and(|until| now < until) {
            return;
        }
        let outcome = truncate(connection, TRUNCATE_TIMEOUT);
        health.record(&outcome);
        match outcome {
            Ok(true) => self.requested.store(false, Ordering::Relaxed),
            Ok(false) => self.retry_at = Some(now + TRUNCATE_RETRY_INTERVAL),
            Err(error) => tracing::debug!(%error, "cannot truncate the log of the database"),
        }
    }
}

/// Copies the whole log into the database and truncates it; false when a reader used it for longer than `timeout`.
fn truncate(connection: &Connection, timeout: Duration) -> Result<bool, super::StoreError> {
    connection.busy_timeout(timeout)?;
    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
    let was_busy = connection.query_row(sql, [], |row| row.get::<_, bool>(0));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(!was_busy?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use std::thread;

    /// Two readers whose reads overlap, so that one always reads.
    struct Readers {
        reads: Connection,
        rests: Connection,
    }

    impl Readers {
        fn of(path: &Path) -> Self {
            let reads = Connection::open(path).unwrap();
            begin(&reads);
            let rests = Connection::open(path).unwrap();
            Self { reads, rests }
        }

        /// Begins a read on the other connection, then ends the one on this.
        fn take_turns(&mut self) {
            begin(&self.rests);
            self.reads.execute_batch("COMMIT").unwrap();
            std::mem::swap(&mut self.reads, &mut self.rests);
        }
    }

    fn begin(c: &Connection) {
        let sql = "BEGIN; SELECT count(*) FROM probes";
        c.execute_batch(sql).unwrap();
    }

    /// Store whose log has grown past `size`, since every read ends after the next write.
    async fn grown_past(size: u64) -> (tempfile::TempDir, Store, Wal, Readers) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("cynode.db");
        let store = Store::open(&path).unwrap();
        let wal = Wal::of(&path, Arc::default());
        let mut readers = Readers::of(&path);
        for _ in 0..64 {
            if length(&wal) > size {
                return (home, store, wal, readers);
            }
            store.probe().await.unwrap();
            readers.take_turns();
        }
        panic!("the log stays at {}", length(&wal));
    }

    fn length(wal: &Wal) -> u64 {
        fs::metadata(&wal.path).unwrap().len()
    }

    #[tokio::test]
    async fn log_is_truncated_under_constant_reads() {
        let (home, _store, mut wal, mut readers) = grown_past(MAX_WAL_BYTES).await;
        let stop = Arc::new(AtomicBool::new(false));
        let reading = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    readers.take_turns();
                }
            })
        };
        let writer = Connection::open(home.path().join("cynode.db")).unwrap();
        // Without writes SQLite does not restart the log on its own. On a busy machine one wait for the readers
        // may be too short.
        let timeout = Instant::now() + Duration::from_secs(60);
        while length(&wal) > 0 {
            assert!(Instant::now() < timeout, "{}", length(&wal));
            wal.retry_at = None;
            wal.truncate_if_due(&writer, &Health::default());
        }
        stop.store(true, Ordering::Relaxed);
        reading.join().unwrap();
    }

    #[tokio::test]
    async fn write_beyond_limit_truncates_wal() {
        let (_home, store, wal, readers) = grown_past(MAX_WAL_BYTES - (1 << 20)).await;
        drop(readers);
        store.probe().await.unwrap();
        // SQLite would leave its default size.
        assert!(
            length(&wal) < WAL_RETAINED_BYTES.unsigned_abs() / 2,
            "{}",
            length(&wal)
        );
    }
}
