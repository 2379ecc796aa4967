//! The write-ahead log, kept small.
//!
//! SQLite copies the log into the database by itself, at a commit and as far as readers let it. It
//! begins the log anew only at a moment in which nobody reads from it, and where readers never all
//! pause that moment doesn't come: the log would grow without end. So the writer, between two
//! transactions, waits for those who read from it now. Who begins to read meanwhile finds everything in the
//! database, and is not waited for.

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

/// What SQLite leaves of the file by itself where nobody is in its way, in bytes.
pub(super) const USUAL: i64 = 4 << 20;
/// From here on the file is cut.
const LIMIT: u64 = 16 << 20;
/// How long writes wait for readers then; ours take milliseconds.
const PATIENCE: Duration = Duration::from_millis(200);
/// After readers took longer than that, such as those of a backup.
const REST: Duration = Duration::from_secs(5);

/// The log of a database.
pub(super) struct Wal {
    path: PathBuf,
    /// Not to be cut before.
    rests_until: Option<Instant>,
    /// Set by who wants to see it cut with the next commit, for what is freed shows in the file only then.
    wanted: Arc<AtomicBool>,
}

impl Wal {
    /// The log of the database at `path`.
    pub(super) fn of(path: &Path, wanted: Arc<AtomicBool>) -> Self {
        let mut name = OsString::from(path);
        name.push("-wal");
        Self {
            path: name.into(),
            rests_until: None,
            wanted,
        }
    }

    /// Cuts the file where it has grown, between two transactions of the writer's connection. Also while
    /// there is trouble: the log may have room when the database, where all of it goes, has none.
    pub(super) fn keep_small(&mut self, connection: &Connection, health: &Health) {
        let has_grown = || fs::metadata(&self.path).is_ok_and(|file| file.len() > LIMIT);
        let is_due =
            self.wanted.load(Ordering::Relaxed) || health.trouble().is_some() || has_grown();
        let now = Instant::now();
        if !is_due || self.rests_until.is_some_and(|until| now < until) {
            return;
        }
        let outcome = truncate(connection);
        health.note(&outcome);
        match outcome {
            Ok(true) => self.wanted.store(false, Ordering::Relaxed),
            Ok(false) => self.rests_until = Some(now + REST),
            Err(error) => tracing::debug!(%error, "the database's log can't be cut"),
        }
    }
}

/// Copies the whole log into the database and empties it; false when a reader was in the way for too long.
fn truncate(connection: &Connection) -> Result<bool, super::StoreError> {
    connection.busy_timeout(PATIENCE)?;
    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
    let was_busy = connection.query_row(sql, [], |row| row.get::<_, bool>(0));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(!was_busy?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use std::{sync::atomic::AtomicU64, thread};

    /// Reads that overlap without a gap, each a short one, until told to stop.
    fn read_without_end(path: &Path, stop: &AtomicBool, reads: &AtomicU64) {
        let open = || Connection::open(path).unwrap();
        let look = |c: &Connection| {
            let sql = "BEGIN; SELECT count(*) FROM probes";
            c.execute_batch(sql).unwrap();
        };
        let connections = [open(), open()];
        look(&connections[0]);
        for n in 1.. {
            look(&connections[n % 2]);
            connections[(n + 1) % 2].execute_batch("COMMIT").unwrap();
            reads.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_log_stays_small_while_somebody_always_reads() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("cynode.db");
        let store = Store::open(&path).unwrap();
        let (stop, reads) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let reader = {
            let (path, stop, reads) = (path.clone(), Arc::clone(&stop), Arc::clone(&reads));
            thread::spawn(move || read_without_end(&path, &stop, &reads))
        };
        let mut largest = 0;
        for _ in 0..64 {
            store.probe().await.unwrap();
            let before = reads.load(Ordering::Relaxed);
            while reads.load(Ordering::Relaxed) < before + 2 {
                thread::yield_now();
            }
            largest = largest.max(
                fs::metadata(home.path().join("cynode.db-wal"))
                    .unwrap()
                    .len(),
            );
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        // A group of writes comes on top of the limit, before it is looked at.
        assert!(largest < LIMIT + (4 << 20), "{largest}");
        assert!(largest > LIMIT / 2, "the log was in use: {largest}");
    }
}
