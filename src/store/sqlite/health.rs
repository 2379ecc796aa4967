//! Faults of the disk and the file: whether the database can be written, and the reason if not.
//!
//! A failure that shows a fault is recorded. From then on the store takes no new work until a
//! [`Store::probe`] succeeds. A probe is as large as the data of users: on a disk that is nearly full, small
//! writes still succeed when a task or a result doesn't fit. A damaged file doesn't repair itself, so that
//! fault stays recorded until the process ends.

use super::{StorageFault, Store, StoreError};
use crate::wait;
use tokio::sync::watch;

/// Size of a probe: the longest command, or both streams of a result, and some more.
const PROBE_BYTES: i64 = 1 << 20;

#[derive(Clone, Copy, Default)]
struct State {
    fault: Option<StorageFault>,
    /// Number of recorded failures, so that a probe clears none that came after its start.
    fault_count: u64,
}

/// Recorded state; shared by all clones.
#[derive(Clone, Default)]
pub(super) struct Health(watch::Sender<State>);

impl Health {
    /// Fault that keeps the database from being written now.
    pub(super) fn storage_fault(&self) -> Option<StorageFault> {
        self.0.borrow().fault
    }

    /// Records the fault that a failure shows, if any.
    pub(super) fn record<T>(&self, outcome: &Result<T, StoreError>) {
        let Some(fault) = outcome.as_ref().err().and_then(StoreError::storage_fault) else {
            return;
        };
        self.0.send_modify(|state| {
            if state.fault != Some(fault) && state.fault.is_none_or(StorageFault::is_transient) {
                tracing::error!(reason = %fault, "database cannot be written; refusing new work");
                state.fault = Some(fault);
            }
            state.fault_count += 1;
        });
    }

    /// Clears a transient fault after a probe that began at this count of failures.
    fn clear_fault(&self, fault_count: u64) {
        self.0.send_if_modified(|state| {
            let is_over = state.fault_count == fault_count
                && state.fault.take_if(|it| it.is_transient()).is_some();
            if is_over {
                tracing::info!("database can be written again");
            }
            is_over
        });
    }
}

impl Store {
    /// Fault that keeps the database from being written now.
    pub fn storage_fault(&self) -> Option<StorageFault> {
        self.health.storage_fault()
    }

    /// Records a fault that was found outside of the store.
    pub fn record_fault(&self, fault: StorageFault) {
        self.health.record(&Err::<(), _>(fault.into()));
    }

    /// Fails while a fault is recorded, so that no work begins whose end can't be stored.
    pub(super) fn ensure_writable(&self) -> Result<(), StoreError> {
        match self.storage_fault() {
            Some(fault) => Err(fault.into()),
            None => Ok(()),
        }
    }

    /// Waits until a transient fault is recorded.
    pub async fn wait_for_fault(&self) {
        let mut states = self.health.0.subscribe();
        let faulted = wait::until(&mut states, |state| {
            state.fault.is_some_and(StorageFault::is_transient)
        });
        // The sender lives in `self`, so this can't fail.
        let _ = faulted.await;
    }

    /// Writes and deletes a test row, and clears a transient fault when that succeeds.
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
    async fn probe_clears_transient_faults_but_not_damage() {
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
    async fn failed_statement_is_not_storage_fault() {
        let (_home, store) = store().await;
        for code in [rusqlite::ffi::SQLITE_CONSTRAINT, rusqlite::ffi::SQLITE_BUSY] {
            let failing = store.write(move |_| Err::<(), _>(failure(code)));
            failing.await.unwrap_err();
            assert_eq!(store.storage_fault(), None);
        }
    }

    #[tokio::test]
    async fn probe_keeps_later_faults() {
        let (_home, store) = store().await;
        let fault_count = store.health.0.borrow().fault_count;
        let full = Err::<(), _>(failure(rusqlite::ffi::SQLITE_FULL));
        store.health.record(&full);
        store.health.clear_fault(fault_count);
        assert_eq!(store.storage_fault(), Some(StorageFault::Full));
    }
}
