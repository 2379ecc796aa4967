//! The database in an orchestrator's data directory: when one may be made, and its orderly end.
//!
//! A first start makes the database, then the keys, then the first user. So keys beside no database, or
//! beside an empty one, mean that a database was lost, or left behind by a copy; a database with users whose
//! keys aren't all there means that keys were lost. An orchestrator that began anew there would hide that:
//! with an empty database, or with keys that lock out whoever holds a token of the old ones.

use super::{Settings, StartError};
use crate::{
    errors,
    identity::Keys,
    store::{self, Store},
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// State of an orchestrator that isn't all there.
#[derive(Debug, thiserror::Error)]
pub enum IncompleteState {
    /// Keys without the database that belongs to them.
    #[error("{} is missing or empty, but {} shows that an orchestrator kept its state here", .database.display(), .keys.display())]
    Database {
        /// Path of the database.
        database: PathBuf,
        /// A key.
        keys: PathBuf,
    },
    /// A database without all of its keys.
    #[error("the database has users, but keys that belong to it are missing: {}", names(.missing))]
    Keys {
        /// Paths of the keys.
        missing: Vec<PathBuf>,
    },
}

impl IncompleteState {
    /// Advice for the operator.
    pub const fn fix(&self) -> &'static str {
        match self {
            Self::Database { .. } => {
                "restore cynode.db (and cynode.db-wal, where there was one) from the original or a backup, or start with --init to begin with an empty database"
            }
            Self::Keys { .. } => {
                "restore keys/ from the original or a backup, give the pre-shared key with --psk-file if it was only that, or start once with --new-keys to have those made that are missing: new signing keys end access tokens and have nodes register again, a new pre-shared key has to be given to every node"
            }
        }
    }
}

fn names(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    names.join(", ")
}

/// What is missing of an orchestrator's state, if anything. `has_psk` tells whether the operator brings the
/// pre-shared key.
pub fn check(data_dir: &Path, has_psk: bool) -> io::Result<Option<IncompleteState>> {
    let database = data_dir.join("cynode.db");
    if store::is_empty(&database)? {
        return Ok(Keys::find(data_dir).map(|keys| IncompleteState::Database { database, keys }));
    }
    let missing = Keys::missing(data_dir, has_psk);
    // A first start that ended early is to be repeated. What is wrong with a database is said by those who
    // open it to work with it.
    let is_in_use = || store::has_users(&database).unwrap_or(false);
    Ok((!missing.is_empty() && is_in_use()).then_some(IncompleteState::Keys { missing }))
}

/// Opens the database. Parts of the state that are missing are made only where the operator says so.
pub(super) fn open(data_dir: &Path, settings: &Settings) -> Result<Store, StartError> {
    match check(data_dir, settings.psk.is_some())? {
        Some(IncompleteState::Database { .. }) if settings.init => {
            tracing::warn!("making an empty database beside existing keys, as --init says");
        }
        Some(IncompleteState::Keys { .. }) if settings.new_keys => {
            tracing::warn!("making new keys beside an existing database, as --new-keys says");
        }
        Some(incomplete) => return Err(incomplete.into()),
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
