//! SQLite behind the promises of the store.
//!
//! Writes go to one thread that owns the only write connection ([`writer`]). The writes that wait there share
//! a transaction, and each caller gets its answer after the commit. Reads use small pools of read-only
//! connections ([`readers`]); lists have a pool of their own ([`lists`]). One file per family of tables adds
//! its functions to [`Store`].
//!
//! Durability comes from WAL with `synchronous=FULL`. Faults of the disk are recorded ([`health`]), expired
//! data is deleted ([`retention`]), and the files shrink with their contents ([`space`], [`wal`]).
//!
//! `rusqlite` stays in this directory: its errors leave as the opaque source of a [`StoreError`] ([`error`]).

mod api_keys;
mod artifacts;
mod audit;
mod authority;
mod backup;
mod ballast;
mod counts;
mod error;
mod health;
mod jobs;
mod join_tokens;
mod lanes;
mod lists;
mod migrate;
mod node_cache;
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
mod sandboxes;
mod secrets;
mod sessions;
mod snapshots;
mod space;
mod task_lists;
mod task_names;
mod tasks;
mod usage;
mod users;
mod wal;
mod wal_check;
mod writer;

pub use backup::backup;
pub use jobs::MAX_CLAIMS;
pub use migrate::is_empty;
pub use users::has_users;

use super::{error::*, types::*};
use crate::api::{OrchestratorId, UserId};
use rusqlite::{Connection, config::DbConfig};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

/// Longest wait for a lock of another process, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that a connection keeps prepared: more than there are, so that none is prepared twice.
const CACHED_STATEMENTS: usize = 256;
/// Connections for reads that a request waits for. They share the page cache of the system, so few are enough.
const REQUEST_READERS: usize = 4;
/// Connections for long reads.
const BACKGROUND_READERS: usize = 2;

/// Keeps the statements of a connection prepared. Without the stability guarantee, SQLite prepares a join again each time
/// its parameters change, to look at their values, which takes longer than to run it.
fn keep_statements(connection: &Connection) -> Result<(), StoreError> {
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// The database of an orchestrator; cheap to clone.
#[derive(Clone)]
pub struct Store {
    writer: writer::Writer,
    health: health::Health,
    /// Whether the log is to be truncated after the next commit.
    truncate_requested: Arc<AtomicBool>,
    reports: reports::ReportCache,
    lanes: lanes::LaneRegistry,
    node_cache: node_cache::NodeCache,
    /// Readers for a few rows, which a request waits for.
    readers: readers::ReaderPool,
    /// Readers for lists, which delay no other read.
    lists: lists::ListReaders,
    /// Readers without a time limit, for the scheduler and the recovery.
    background: readers::ReaderPool,
    orchestrator_id: OrchestratorId,
    reserve: reserve::Reserve,
}

impl Store {
    /// Opens the database at `path`, creates it where it is missing, and migrates it to the current schema.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut opened = Self::try_open(path);
        let is_full = |error: &StoreError| error.storage_fault() == Some(StorageFault::Full);
        if opened.as_ref().err().is_some_and(is_full) && ballast::remove(path) {
            tracing::warn!("disk of the database is full; starting with the reserved space");
            opened = Self::try_open(path);
        } else if opened.is_ok()
            && let Err(error) = ballast::ensure(path)
        {
            tracing::warn!(%error, "cannot reserve space for a start on a full disk");
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
        // Created before SQLite opens it, since SQLite gives its other files the mode of this one.
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
        keep_statements(&connection)?;
        migrate::migrate(&mut connection, path)?;
        let orchestrator_id = orchestrator_id::get_or_create(&mut connection)?;
        // The directory entry is durable before the keys are created.
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        space::rewrite_if_needed(&connection)?;
        let (health, truncate_requested) = (health::Health::default(), Arc::default());
        let wal = wal::Wal::of(path, Arc::clone(&truncate_requested));
        let lanes = lanes::LaneRegistry::open(&connection)?;
        let node_cache = node_cache::NodeCache::open(&connection)?;
        Ok(Self {
            writer: writer::Writer::start(connection, wal, node_cache.clone(), health.clone())?,
            readers: readers::ReaderPool::open(path, REQUEST_READERS, Some(READ_TIMEOUT))?,
            lists: lists::ListReaders::open(path)?,
            background: readers::ReaderPool::open(path, BACKGROUND_READERS, None)?,
            health,
            truncate_requested,
            reports: reports::ReportCache::default(),
            lanes,
            node_cache,
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

    /// Closes the database after the pending reads and writes: readers first, the writer last, so that the
    /// whole database is in its one file. Later reads and writes fail.
    pub async fn close(&self) -> Result<(), StoreError> {
        tokio::join!(
            self.readers.close(BUSY_TIMEOUT),
            self.lists.close(BUSY_TIMEOUT),
            self.background.close(BUSY_TIMEOUT)
        );
        self.writer.close().await
    }

    /// Runs `f` on the write connection; answers after the commit. `f` may run twice: it has
    /// no effect outside of the transaction that may not be repeated.
    async fn write<T: Send + 'static>(
        &self,
        f: impl Fn(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.write(f).await
    }

    /// Runs `f` on a read-only connection; a second time, on a blocking thread, where the first takes long.
    async fn read<T: Send + 'static>(
        &self,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.readers.read(f).await;
        self.health.record(&outcome);
        outcome
    }

    /// Runs `f` on a blocking thread from the start: for a large document that a request waits for.
    async fn read_document<T: Send + 'static>(
        &self,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.readers.read_blocking(f).await;
        self.health.record(&outcome);
        outcome
    }

    /// Runs `f` for a list that the user `by` asks for; at most [`lists::MAX_LISTS_PER_USER`] of one user at a time.
    async fn list<T: Send + 'static>(
        &self,
        by: UserId,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.lists.read(by, f).await;
        self.health.record(&outcome);
        outcome
    }

    /// Runs `f` on a read-only connection without a time limit.
    async fn read_long<T: Send + 'static>(
        &self,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.background.read(f).await;
        self.health.record(&outcome);
        outcome
    }

    /// Runs `f` without a time limit, on a blocking thread from the start: for reads that are known to be long.
    async fn read_blocking<T: Send + 'static>(
        &self,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.background.read_blocking(f).await;
        self.health.record(&outcome);
        outcome
    }
}
