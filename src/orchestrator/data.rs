//! The database in an orchestrator's data directory: when one may be made, and its orderly end.
//!
//! A first start makes the database before the keys. So keys beside no database, or beside an empty one,
//! mean that a database was lost, or left behind by a copy; an orchestrator that began anew there would
//! hide that.

use super::StartError;
use crate::{
    errors,
    identity::Keys,
    store::{self, Store},
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Keys without the database that belongs to them.
#[derive(Debug, thiserror::Error)]
#[error("{} is missing or empty, but {} shows that an orchestrator kept its state here", .database.display(), .keys.display())]
pub struct DatabaseMissing {
    database: PathBuf,
    keys: PathBuf,
}

impl DatabaseMissing {
    /// Advice for the operator.
    pub const FIX: &str = "restore cynode.db (and cynode.db-wal, where there was one) from the original or a backup, or start with --init to begin with an empty database";
}

/// Whether the database that belongs to the keys is missing, if there are keys.
pub fn missing_database(data_dir: &Path) -> io::Result<Option<DatabaseMissing>> {
    let database = data_dir.join("cynode.db");
    let Some(keys) = Keys::find(data_dir) else {
        return Ok(None);
    };
    Ok(store::is_empty(&database)?.then_some(DatabaseMissing { database, keys }))
}

/// Opens the database; with `init`, also where one is missing.
pub(super) fn open(data_dir: &Path, init: bool) -> Result<Store, StartError> {
    match missing_database(data_dir)? {
        Some(missing) if !init => return Err(missing.into()),
        Some(_) => tracing::warn!("making an empty database beside existing keys, as --init says"),
        None => {}
    }
    Ok(Store::open(&data_dir.join("cynode.db"))?)
}

/// Closes the database, so that its one file can be copied.
pub(super) async fn close(store: &Store) {
    if let Err(error) = store.close().await {
        let error = errors::chain(&error);
        tracing::warn!(
            error,
            "database not closed completely; copy cynode.db-wal together with cynode.db, or use cynode backup"
        );
    }
}
