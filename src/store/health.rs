//! Whether the database can be written, and if not, why, in words that an operator can act on.
//!
//! What fails by the fault of the disk or of the file is noted; from then on the store takes no new
//! work, until a [`Store::probe`] goes through. A probe is as large as what users send: on a disk that
//! is nearly full, small writes still find room when a task or a result doesn't. A damaged file does
//! not mend by itself, so that stays noted until the process ends.

use super::{Store, StoreError};
use crate::wait;
use rusqlite::{ErrorCode, ffi::SQLITE_IOERR_SHMSIZE};
use tokio::sync::watch;

/// Size of a probe in bytes: the longest command, or both streams of a result, and some more.
const PROBE: i64 = 1 << 20;

/// What keeps the database from being written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Trouble {
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
    #[error("{}", crate::data_dir::Misplaced)]
    Misplaced,
    /// What is read isn't what was written.
    #[error(
        "the database is damaged; stop the orchestrator and restore a backup, as docs/usage.md says step by step"
    )]
    Damaged,
}

impl Trouble {
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
    fn can_pass(self) -> bool {
        self != Self::Damaged
    }
}

#[derive(Clone, Copy, Default)]
struct State {
    trouble: Option<Trouble>,
    /// How often trouble was noted, so that a probe doesn't clear what came after it had begun.
    noted: u64,
}

/// What is known of it; shared by all clones.
#[derive(Clone, Default)]
pub(super) struct Health(watch::Sender<State>);

impl Health {
    /// What keeps the database from being written now.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.0.borrow().trouble
    }

    /// Notes what a failure says of the disk and the file, if anything.
    pub(super) fn note<T>(&self, outcome: &Result<T, StoreError>) {
        let Some(trouble) = outcome.as_ref().err().and_then(StoreError::trouble) else {
            return;
        };
        self.0.send_modify(|state| {
            if state.trouble != Some(trouble) && state.trouble.is_none_or(Trouble::can_pass) {
                tracing::error!(reason = %trouble, "no new work is taken");
                state.trouble = Some(trouble);
            }
            state.noted += 1;
        });
    }

    /// A probe went well that had begun when trouble was noted so often.
    fn is_well(&self, noted: u64) {
        self.0.send_if_modified(|state| {
            let is_over =
                state.noted == noted && state.trouble.take_if(|it| it.can_pass()).is_some();
            if is_over {
                tracing::info!("the database can be written again");
            }
            is_over
        });
    }
}

impl Store {
    /// What keeps the database from being written now.
    pub fn trouble(&self) -> Option<Trouble> {
        self.health.trouble()
    }

    /// Notes what others found to be wrong with the files.
    pub fn report(&self, trouble: Trouble) {
        self.health.note(&Err::<(), _>(trouble.into()));
    }

    /// Fails while something does: what may not be written to its end isn't begun.
    pub(super) fn takes_work(&self) -> Result<(), StoreError> {
        match self.trouble() {
            Some(trouble) => Err(trouble.into()),
            None => Ok(()),
        }
    }

    /// Waits until something keeps the database from being written that can pass.
    pub async fn troubled(&self) {
        let mut states = self.health.0.subscribe();
        let troubled = wait::until(&mut states, |state| {
            state.trouble.is_some_and(Trouble::can_pass)
        });
        // An error can't be: the sender lives in `self`.
        let _ = troubled.await;
    }

    /// Tries whether the database can be written again.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let noted = self.health.0.borrow().noted;
        self.write(|c| Ok(c.execute("INSERT INTO probes VALUES (zeroblob(?1))", [PROBE])?))
            .await?;
        self.write(|c| Ok(c.execute("DELETE FROM probes", [])?))
            .await?;
        self.health.is_well(noted);
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
    async fn what_passes_is_cleared_by_a_probe_and_damage_is_not() {
        use rusqlite::ffi;
        let (_home, store) = store().await;
        for (code, trouble) in [
            (ffi::SQLITE_FULL, Trouble::Full),
            (ffi::SQLITE_IOERR_SHMSIZE, Trouble::Full),
            (ffi::SQLITE_READONLY, Trouble::ReadOnly),
            (ffi::SQLITE_READONLY_DBMOVED, Trouble::ReadOnly),
            (ffi::SQLITE_IOERR_WRITE, Trouble::Disk),
            (ffi::SQLITE_CANTOPEN, Trouble::Disk),
        ] {
            let failing = store.write(move |_| Err::<(), _>(failure(code)));
            failing.await.unwrap_err();
            assert_eq!(store.trouble(), Some(trouble));
            store.troubled().await;
            store.probe().await.unwrap();
            assert_eq!(store.trouble(), None);
        }
        let failing = store.read(|_| Err::<(), _>(failure(ffi::SQLITE_CORRUPT)));
        failing.await.unwrap_err();
        store.probe().await.unwrap();
        let full = store.write(|_| Err::<(), _>(failure(ffi::SQLITE_FULL)));
        full.await.unwrap_err();
        assert_eq!(store.trouble(), Some(Trouble::Damaged));
    }

    #[tokio::test]
    async fn faults_of_a_statement_say_nothing_of_the_disk() {
        let (_home, store) = store().await;
        for code in [rusqlite::ffi::SQLITE_CONSTRAINT, rusqlite::ffi::SQLITE_BUSY] {
            let failing = store.write(move |_| Err::<(), _>(failure(code)));
            failing.await.unwrap_err();
            assert_eq!(store.trouble(), None);
        }
    }

    #[tokio::test]
    async fn a_probe_clears_nothing_that_came_after_it_had_begun() {
        let (_home, store) = store().await;
        let noted = store.health.0.borrow().noted;
        let full = Err::<(), _>(failure(rusqlite::ffi::SQLITE_FULL));
        store.health.note(&full);
        store.health.is_well(noted);
        assert_eq!(store.trouble(), Some(Trouble::Full));
    }
}
