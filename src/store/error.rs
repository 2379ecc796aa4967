//! Errors of the store, and the faults of its disk.
//!
//! No error shows which database is behind the store: its own error is an opaque source, for the log.

use std::{error::Error, io, path::PathBuf, time::Duration};

/// Longest read for a request; one by an index takes milliseconds.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Error of the database itself, for logs.
pub(super) type Cause = Box<dyn Error + Send + Sync>;

/// Error of a read or a write.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the database failed")]
    Database {
        /// Fault of the disk or the file that the failure shows, if any.
        fault: Option<StorageFault>,
        /// Error of the database.
        source: Cause,
    },
    /// A row holds a value that this program never writes.
    #[error("the database holds a damaged {0}")]
    Damaged(&'static str),
    /// A document can't be serialized or parsed.
    #[error("the database holds a damaged document")]
    Json(#[from] serde_json::Error),
    /// The file belongs to a newer release.
    #[error(
        "{path} was written by a newer cynode (schema {found}; this one knows {known}); \
         start the newer release, or restore a backup made before the upgrade"
    )]
    TooNew {
        /// Database file.
        path: PathBuf,
        /// Schema version of the file.
        found: i64,
        /// Newest schema version that this program knows.
        known: i64,
    },
    /// The file can't be opened or written.
    #[error("{path}: {fault}")]
    Unusable {
        /// Database file.
        path: PathBuf,
        /// Fault of the file or its disk.
        fault: StorageFault,
        /// Error that showed the fault.
        source: Box<StoreError>,
    },
    /// The session of the caller has ended, or may not make this write; nothing was written.
    #[error("the session of the caller has ended")]
    NotAuthorized,
    /// A fault keeps the database from being written.
    #[error(transparent)]
    Fault(#[from] StorageFault),
    /// The free space of the disk is reserved for other writes.
    #[error(transparent)]
    LowSpace(#[from] LowSpace),
    /// The commit that this write was part of failed.
    #[error("the database could not commit: {0}")]
    Commit(String),
    /// The database file can't be opened.
    #[error("the database file can't be opened")]
    Io(#[from] io::Error),
    /// A read for a request was ended at its time limit.
    #[error("the read took longer than {} s", READ_TIMEOUT.as_secs())]
    TooSlow,
    /// The lists that this user asked for before take longer than the time limit.
    #[error("the user reads too many lists at once")]
    ListsBusy,
    /// The store is closed.
    #[error("the database is closed")]
    Closed,
    /// Another process reads the database, so its log could not be emptied.
    #[error("another process reads the database, so a part of it is still in {0}")]
    LogInUse(PathBuf),
}

impl StoreError {
    /// Fault of the disk or the file that this error shows, if any.
    pub fn storage_fault(&self) -> Option<StorageFault> {
        match self {
            Self::Fault(fault) => Some(*fault),
            Self::Database { fault, .. } => *fault,
            _ => None,
        }
    }
}

/// Fault of the disk or the file that keeps the database from being written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StorageFault {
    /// The disk is full.
    #[error("the disk that holds the database is full; free space on it")]
    Full,
    /// The file is read-only.
    #[error(
        "the database is read-only; make its file, and the file system that it is on, writable"
    )]
    ReadOnly,
    /// Reads or writes of the disk fail.
    #[error(
        "the disk that holds the database reports errors; find them in the logs of the orchestrator and of the system"
    )]
    Disk,
    /// The files are no longer where they were opened.
    #[error("{}", crate::data_dir::DataDirMoved)]
    Misplaced,
    /// The file is damaged.
    #[error(
        "the database is damaged; stop the orchestrator and restore a backup, as docs/usage.md says step by step"
    )]
    Damaged,
}

impl StorageFault {
    /// Whether the fault can pass while this process runs.
    pub(super) fn is_transient(self) -> bool {
        self != Self::Damaged
    }
}

/// The disk has less free space than is reserved on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LowSpace {
    /// Too little for new tasks.
    #[error(
        "only {} MiB are free on the disk that holds the database, and {} MiB are reserved there; free space on it, \
         or start the orchestrator with a smaller --reserve-disk", .free >> 20, .reserved >> 20
    )]
    Bytes {
        /// Free bytes.
        free: u64,
        /// Reserved bytes.
        reserved: u64,
    },
    /// Too little for starting queued tasks.
    #[error(
        "only {} MiB are free on the disk that holds the database, and queued tasks wait until half of \
         --reserve-disk is free, which is {} MiB; free space on it, or start the orchestrator with a smaller \
         --reserve-disk", .free >> 20, .needed >> 20
    )]
    Start {
        /// Free bytes.
        free: u64,
        /// Bytes needed before queued tasks are started.
        needed: u64,
    },
    /// Too few files can still be created.
    #[error(
        "only {free} more files fit on the disk that holds the database; delete unused files there"
    )]
    Files {
        /// Number of files that can still be created.
        free: u64,
    },
}

/// Error of a backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// No database to copy.
    #[error(
        "{0} is not the database of an orchestrator; name the data directory of one with --data-dir"
    )]
    NoDatabase(PathBuf),
    /// The database belongs to a newer release.
    #[error(
        "{path} was written by a newer cynode (schema {found}; this one knows {known}); use that one"
    )]
    TooNew {
        /// Database file.
        path: PathBuf,
        /// Schema version of the file.
        found: i64,
        /// Newest schema version that this program knows.
        known: i64,
    },
    /// The name of the copy is taken.
    #[error("{0} exists already, and nothing is overwritten; choose another name")]
    Exists(PathBuf),
    /// The directory of the copy is missing.
    #[error("there is no directory {0}; create it first, or choose another")]
    NoDirectory(PathBuf),
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// File.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The copy does not fit on the disk.
    #[error("the disk of {0} is full, and nothing was left there; free space, or choose another")]
    Full(PathBuf),
    /// The database is damaged.
    #[error("{0} is damaged and can't be copied; restore an earlier backup, as docs/usage.md says")]
    Damaged(PathBuf),
    /// The database failed.
    #[error("the database could not be copied")]
    Database(#[source] Cause),
}
