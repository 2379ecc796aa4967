//! Whether the database can be written, and if not, why, in words that an operator can act on.
//!
//! What fails by the fault of the disk or of the file is fault_count; from then on the store takes no new
//! work, until a [`Store::probe`] goes through. A probe is as large as what users send: on a disk that
//! is nearly full, small writes still find room when a task or a result doesn't. A damaged file does
//! not mend by itself, so that stays fault_count until the process ends.

use super::{Store, StoreError};
use crate::wait;
use rusqlite::{ErrorCode, ffi::SQLITE_IOERR_SHMSIZE};
use tokio::sync::watch;

/// Size of a probe in bytes: the longest command, or both streams of a result, and some more.
const PROBE_BYTES: i64 = 1 << 20;

/// What keeps the database from being written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StorageFault {
    /// There is no room.
    #[error("the disk that holds the database is full; make room on it")]
    Full,
    /// The file may only be read.
    #[error(
        "the database can only be read; make its file, and the file system that it is on, writable"
    )]
    ReadOnly,
    /// Reading or writing fails.
    #[error(
        "the disk that holds the database reports errors; the logs of the orchestrator and of the system say which"
    )]
    Disk,
    /// The files are no more where they were opened.
    #[error("{}", crate::data_dir::DataDirMoved)]
    Misplaced,
    /// What is read isn't what was written.
    #[error(
        "the database is damaged; stop the orchestrator and restore a backup, as docs/usage.md says step by step"
    )]
    Damaged,
}

impl StorageFault {
    /// What an error of SQLite says of the disk and the file; nothing where it is about the statement.
    pub(super) fn of(error: &rusqlite::Error) -> Option<Self> {
        let error = error.sqlite_error()?;
        match error.code {
            // Also said of shared memory, which is a file beside the database.
            _ if error.extended_code == SQLITE_IOERR_SHMSIZE => Some(Self::Full),
            ErrorCode::DiskFull => Some(Self::Full),
            ErrorCode::ReadOnly => Some(Self::ReadOnly),
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => Some(Self::Disk),
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(Self::Damaged),
            _ => None,
        }
    }

    /// Whether it can pass while this process runs.
    fn is_transient(self) -> bool {
        self != Self::Damaged
    }
}

#[derive(Clone, Copy, Default)]
struct State {
    fault: Option<StorageFault>,
    /// How often fault was fault_count, so that a probe doesn't clear what came after it had begun.
    fault_count: u64,
}

/// What is known of it; shared by all clones.
#[derive(Clone, Default)]
pub(super) struct Health(watch::Sender<State>);

impl Health {
    /// What keeps the database from being written now.
    pub(super) fn storage_fault(&self) -> Option<StorageFault> {
        self.0.borrow().fault
    }

    /// Notes what a failure says of the disk and the file, if anything.
    pub(super) fn record<T>(&self, outcome: &Result<T, StoreError>) {
        let Some(fault) = outcome.as_ref().err().and_then(StoreError::storage_fault) else {
            return;
        };
        self.0.send_modify(|state| {
            if state.fault != Some(fault) && state.fault.is_none_or(StorageFault::is_transient) {
                tracing::error!(reason = %fault, "no new work is taken");
                state.fault = Some(fault);
            }
            state.fault_count += 1;
        });
    }

    /// A probe went well that had begun when fault was fault_count so often.
    fn clear_fault(&self, fault_count: u64) {
        self.0.send_if_modified(|state| {
            let is_over = state.fault_count == fault_count
                && state.fault.take_if(|it| it.is_transient()).is_some();
            if is_over {
                tracing::info!("the database can be written again");
            }
            is_over
        });
    }
}

impl Store {
    /// What keeps the database from being written now.
    pub fn storage_fault(&self) -> Option<StorageFault> {
        self.health.storage_fault()
    }

    /// Notes what others found to be wrong with the files.
    pub fn record_fault(&self, fault: StorageFault) {
        self.health.record(&Err::<(), _>(fault.into()));
    }

    /// Fails while something does: what may not be written to its end isn't begun.
    pub(super) fn ensure_writable(&self) -> Result<(), StoreError> {
        match self.storage_fault() {
            Some(fault) => Err(fault.into()),
            None => Ok(()),
        }
    }

    /// Waits until something keeps the database from being written that can pass.
    pub async fn wait_for_fault(&self) {
        let mut states = self.health.0.subscribe();
        let faulted = wait::until(&mut states, |state| {
            state.fault.is_some_and(StorageFault::is_transient)
        });
        // An error can't be: the sender lives in `self`.
        let _ = faulted.await;
    }

    /// Tries whether the database can be written again.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let fault_count = self.health.0.borrow().fault_count;
        self.write(|c| Ok(c.execute("INSERT INTO probes VALUES (zeroblob(?1))", [PROBE_BYTES])?))
            .await?;
        self.write(|c| Ok(c.execute("DELETE FROM probes", [])?))
            .await?;
        self.health.clear_fault(fault_count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        (home, store)
    }

    fn failure(code: i32) -> StoreError {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None).into()
    }

    #[tokio::test]
    async fn probe_clears_transient_faults_only() {
        use rusqlite::ffi;
        let (_home, store) = store().await;
        for (code, fault) in [
            (ffi::SQLITE_FULL, StorageFault::Full),
            (ffi::SQLITE_IOERR_SHMSIZE, StorageFault::Full),
            (ffi::SQLITE_READONLY, StorageFault::ReadOnly),
            (ffi::SQLITE_READONLY_DBMOVED, StorageFault::ReadOnly),
            (ffi::SQLITE_IOERR_WRITE, StorageFault::Disk),
            (ffi::SQLITE_CANTOPEN, StorageFault::Disk),
        ] {
            let failing = store.write(move |_| Err::<(), _>(failure(code)));
            failing.await.unwrap_err();
            assert_eq!(store.storage_fault(), Some(fault));
            store.wait_for_fault().await;
            store.probe().await.unwrap();
            assert_eq!(store.storage_fault(), None);
        }
        let failing = store.read(|_| Err::<(), _>(failure(ffi::SQLITE_CORRUPT)));
        failing.await.unwrap_err();
        store.probe().await.unwrap();
        let full = store.write(|_| Err::<(), _>(failure(ffi::SQLITE_FULL)));
        full.await.unwrap_err();
        assert_eq!(store.storage_fault(), Some(StorageFault::Damaged));
    }

    #[tokio::test]
    async fn statement_errors_are_not_storage_faults() {
        let (_home, store) = store().await;
        for code in [rusqlite::ffi::SQLITE_CONSTRAINT, rusqlite::ffi::SQLITE_BUSY] {
            let failing = store.write(move |_| Err::<(), _>(failure(code)));
            failing.await.unwrap_err();
            assert_eq!(store.storage_fault(), None);
        }
    }

    #[tokio::test]
    async fn probe_clears_only_earlier_faults() {
        let (_home, store) = store().await;
        let fault_count = store.health.0.borrow().fault_count;
        let full = Err::<(), _>(failure(rusqlite::ffi::SQLITE_FULL));
        store.health.record(&full);
        store.health.clear_fault(fault_count);
        assert_eq!(store.storage_fault(), Some(StorageFault::Full));
    }
}
