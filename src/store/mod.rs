//! SQLite, and the only room with SQL.
//!
//! Writes go to one thread that owns the only write connection ([`writer`]); whatever waits
//! there is committed in one transaction, and a caller is answered after the commit. Reads
//! use small pools of read-only connections ([`readers`]), lists one of their own ([`lists`]). One file per family of
//! tables adds its functions to [`Store`], noun first: `task_create`, `job_claim`.
//!
//! Guarantee: a write that was answered is on the disk (WAL, `synchronous=FULL`); a write
//! that failed changed nothing, also when its neighbours in the same commit succeeded. What goes wrong
//! by the fault of the disk is remembered ([`health`]), what is no longer needed goes ([`retention`]), and
//! the files stay as small as what is in them ([`space`], [`wal`]).

mod audit;
mod backup;
mod ballast;
mod health;
mod jobs;
mod lanes;
mod lists;
mod migrate;
mod node_config;
mod node_liveness;
mod nodes;
mod offers;
mod orchestrator_id;
#[cfg(test)]
mod query_plan;
mod queue;
mod readers;
mod refusals;
mod reports;
mod reserve;
mod retention;
mod rows;
mod sessions;
mod space;
mod task_lists;
mod task_names;
mod tasks;
mod users;
mod wal;
mod wal_check;
mod writer;

pub use audit::AuditFilter;
pub use backup::{BackupError, BackupSummary, backup};
pub use health::StorageFault;
pub use jobs::{CancelOutcome, FinishedJob, JobCounts, RunningJob};
pub use lanes::{LaneChanges, LaneCursor, MAX_LANES_PER_USER};
pub use migrate::is_empty;
pub use node_config::{AckOutcome, ServedConfig};
pub use nodes::{ForgetOutcome, Node, RegisterOutcome};
pub use offers::{JobOutlook, JobOwnership};
pub use queue::{Lane, MAX_BACKOFF, Placement, Queue, QueueStatus, QueuedJob};
pub use refusals::{Refusal, Refusals, RefusedJob, TaskRequirements};
pub use reserve::LowSpace;
pub use retention::{ExpiredBatch, Retention};
pub use sessions::{Authority, PasswordProof, RefreshOutcome};
pub use task_lists::{MAX_OFFSET, TaskFilter, TaskPage};
pub use task_names::TaskMatch;
pub use tasks::{CreateOutcome, DeleteOutcome, QueueLimits};
pub use users::{NewUser, UserChange, UserChangeOutcome, UserRecord, has_users};

use crate::api::{OrchestratorId, UserId};
use rusqlite::Connection;
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Reads at the same time; they share the page cache of the system, so few are enough.
const REQUEST_READERS: usize = 4;
const BACKGROUND_READERS: usize = 2;
/// Longest read for a request; one by an index takes milliseconds.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the database failed")]
    Sqlite(#[from] rusqlite::Error),
    /// A row holds what this program never writes.
    #[error("the database holds a damaged {0}")]
    Damaged(&'static str),
    /// A document could not be written or read.
    #[error("a document in the database is not what it should be")]
    Json(#[from] serde_json::Error),
    /// The file belongs to a newer release.
    #[error(
        "{path} was written by a newer cynode (schema {found}; this one knows {known}); \
         start the newer release, or restore a backup made before the upgrade"
    )]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The file can't be worked with.
    #[error("{path}: {fault}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        fault: StorageFault,
        /// What SQLite says.
        source: Box<StoreError>,
    },
    /// Who asked for this write may not (any more); nothing was written.
    #[error("the session of the one who asked has ended")]
    NotAuthorized,
    /// Something keeps the database from being written.
    #[error(transparent)]
    Fault(#[from] StorageFault),
    /// What is free on the disk is kept for what must be written.
    #[error(transparent)]
    LowSpace(#[from] LowSpace),
    /// The commit that this write was part of failed.
    #[error("the database could not commit: {0}")]
    Commit(String),
    /// The file can't be opened.
    #[error("the database file can't be opened")]
    Io(#[from] std::io::Error),
    /// A read for a request took longer than [`READ_TIMEOUT`], and was ended.
    #[error("the read took longer than {} s", READ_TIMEOUT.as_secs())]
    TooSlow,
    /// The lists that this user asked for before take longer than [`READ_TIMEOUT`].
    #[error("the user reads too many lists at once")]
    ListsBusy,
    /// The writer is gone.
    #[error("the database is closed")]
    Closed,
    /// Another process reads the database, so its log could not be emptied.
    #[error("another process reads the database, so a part of it is still in {0}")]
    LogInUse(PathBuf),
}

impl StoreError {
    /// What it says of the disk and the file, if anything.
    pub fn storage_fault(&self) -> Option<StorageFault> {
        match self {
            Self::Fault(fault) => Some(*fault),
            Self::Sqlite(error) => StorageFault::of(error),
            _ => None,
        }
    }
}

/// The database; cheap to clone.
#[derive(Clone)]
pub struct Store {
    writer: writer::Writer,
    health: health::Health,
    /// Has the next commit bring the files to their size.
    truncate_requested: Arc<AtomicBool>,
    reports: reports::ReportCache,
    lanes: lanes::LaneRegistry,
    /// For reads of a few rows that somebody waits for.
    readers: readers::ReaderPool,
    /// For lists, which nothing else waits behind.
    lists: lists::ListReaders,
    /// For reads of our own that take as long as they take, such as the scheduler's.
    background: readers::ReaderPool,
    orchestrator_id: OrchestratorId,
    reserve: reserve::Reserve,
}

impl Store {
    /// Opens the database at `path`, makes it when missing, and brings it to our schema.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut opened = Self::try_open(path);
        let is_full = |error: &StoreError| error.storage_fault() == Some(StorageFault::Full);
        if opened.as_ref().err().is_some_and(is_full) && ballast::remove(path) {
            tracing::warn!(
                "the disk that holds the database is full; the room kept for a start is used"
            );
            opened = Self::try_open(path);
        } else if opened.is_ok()
            && let Err(error) = ballast::ensure(path)
        {
            tracing::warn!(%error, "no room can be kept for a start on a full disk");
        }
        opened.map_err(|error| match error.storage_fault() {
            Some(fault) => StoreError::Unusable {
                path: path.to_owned(),
                fault,
                source: Box::new(error),
            },
            None => error,
        })
    }

    fn try_open(path: &Path) -> Result<Self, StoreError> {
        // Before SQLite, which gives its other files the mode of this one.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        wal_check::quarantine_if_damaged(path)?;
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        space::enable_incremental_vacuum(&connection)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "journal_size_limit", wal::WAL_RETAINED_BYTES)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        migrate::migrate(&mut connection, path)?;
        let orchestrator_id = orchestrator_id::get_or_create(&mut connection)?;
        // The keys come after it, also on a disk that loses power.
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        space::rewrite_if_needed(&connection)?;
        let (health, truncate_requested) = (health::Health::default(), Arc::default());
        let wal = wal::Wal::of(path, Arc::clone(&truncate_requested));
        let lanes = lanes::LaneRegistry::open(&connection)?;
        Ok(Self {
            writer: writer::Writer::start(connection, wal, health.clone()),
            readers: readers::ReaderPool::open(path, REQUEST_READERS, Some(READ_TIMEOUT))?,
            lists: lists::ListReaders::open(path)?,
            background: readers::ReaderPool::open(path, BACKGROUND_READERS, None)?,
            health,
            truncate_requested,
            reports: reports::ReportCache::default(),
            lanes,
            orchestrator_id,
            reserve: reserve::Reserve {
                database: path.to_owned(),
                bytes: 0,
            },
        })
    }

    /// Identity of the orchestrator whose database this is.
    pub fn orchestrator_id(&self) -> &OrchestratorId {
        &self.orchestrator_id
    }

    /// Closes the database once what was asked for before is done: readers first, the writer last, so
    /// that all of it is in its one file. Later reads and writes fail.
    pub async fn close(&self) -> Result<(), StoreError> {
        tokio::join!(
            self.readers.close(BUSY_TIMEOUT),
            self.lists.close(BUSY_TIMEOUT),
            self.background.close(BUSY_TIMEOUT)
        );
        self.writer.close().await
    }

    /// Runs `f` on the write connection, in a savepoint; answers after the commit.
    async fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.write(f).await
    }

    /// Runs `f` on a read-only connection; again, from its beginning, where it takes long.
    async fn read<T: Send + 'static>(
        &self,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.readers.read(f).await;
        self.health.record(&outcome);
        outcome
    }

    /// The same for a list that the user `by` asks for, after at most [`lists::MAX_LISTS_PER_USER`] others of theirs.
    async fn list<T: Send + 'static>(
        &self,
        by: UserId,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.lists.read(by, f).await;
        self.health.record(&outcome);
        outcome
    }

    /// The same for a read of our own, which takes as long as it takes.
    async fn read_long<T: Send + 'static>(
        &self,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.background.read(f).await;
        self.health.record(&outcome);
        outcome
    }

    /// The same for one that can't begin anew.
    async fn read_blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.background.read_blocking(f).await;
        self.health.record(&outcome);
        outcome
    }
}
