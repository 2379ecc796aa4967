//! Errors of SQLite as errors of the store.

use super::{StorageFault, StoreError};
use rusqlite::{ErrorCode, ffi::SQLITE_IOERR_SHMSIZE};

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database {
            fault: storage_fault(&error),
            source: error.into(),
        }
    }
}

/// Fault of the disk or the file that an error shows; `None` where the error is about the statement.
fn storage_fault(error: &rusqlite::Error) -> Option<StorageFault> {
    let error = error.sqlite_error()?;
    match error.code {
        // Also an error of shared memory, which is a file beside the database.
        _ if error.extended_code == SQLITE_IOERR_SHMSIZE => Some(StorageFault::Full),
        ErrorCode::DiskFull => Some(StorageFault::Full),
        ErrorCode::ReadOnly => Some(StorageFault::ReadOnly),
        ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => Some(StorageFault::Disk),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(StorageFault::Damaged),
        _ => None,
    }
}

/// Whether a read was interrupted by its progress handler.
pub(super) fn is_interrupted(error: &StoreError) -> bool {
    let StoreError::Database { source, .. } = error else {
        return false;
    };
    let error = source.downcast_ref::<rusqlite::Error>();
    error.and_then(rusqlite::Error::sqlite_error_code) == Some(ErrorCode::OperationInterrupted)
}
