//! Database in the data directory: the check that state is complete, open and close.
//!
//! A first start creates the database, then the keys, then the first user. So keys without a database, or
//! with an empty one, mean that the database was lost or not copied; a database with users but without all
//! keys means that keys were lost. A start that silently created the missing part would hide the loss: users
//! and tasks would be gone, or every token would be invalid.
//!
//! The TLS key counts for neither: a database of an earlier release has none, and a start with TLS makes it.

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

/// Part of the state in the data directory that is missing.
#[derive(Debug, thiserror::Error)]
pub enum IncompleteState {
    /// There are keys, but not the database that they belong to.
    #[error("{} is missing or empty, but {} shows that this is the data directory of an orchestrator", .database.display(), .keys.display())]
    Database {
        /// Path of the database.
        database: PathBuf,
        /// Path of a key.
        keys: PathBuf,
    },
    /// There is a database with users, but not all of its keys.
    #[error("the database has users, but keys that belong to it are missing: {}", names(.missing))]
    Keys {
        /// Paths of the keys.
        missing: Vec<PathBuf>,
    },
}

impl IncompleteState {
    /// Next step for the operator.
    pub const fn fix(&self) -> &'static str {
        match self {
            Self::Database { .. } => {
                "restore cynode.db (and cynode.db-wal, if there was one) from the original or a backup, or start with --init to create an empty database"
            }
            Self::Keys { .. } => {
                "restore keys/ from the original or a backup; if only the pre-shared key is missing, pass it with --psk-file; or start once with --new-keys to create the missing keys: new signing keys end access tokens and make nodes register again, a new pre-shared key has to be given to every node"
            }
        }
    }
}

/// Paths in a sentence.
pub(super) fn names(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    names.join(", ")
}

/// Missing part of the state in `data_dir`, if any. With `has_psk` the operator passes the pre-shared key.
pub fn check(data_dir: &Path, has_psk: bool) -> io::Result<Option<IncompleteState>> {
    let database = data_dir.join("cynode.db");
    if store::is_empty(&database)? {
        return Ok(Keys::find(data_dir).map(|keys| IncompleteState::Database { database, keys }));
    }
    let missing = Keys::missing(data_dir, has_psk);
    // A first start that was interrupted may be repeated. An unreadable database is reported when it is
    // opened.
    let is_in_use = || store::has_users(&database).unwrap_or(false);
    Ok((!missing.is_empty() && is_in_use()).then_some(IncompleteState::Keys { missing }))
}

/// Opens the database. Missing parts of the state are created only if the operator allows it.
pub(super) fn open(data_dir: &Path, settings: &Settings) -> Result<Store, StartError> {
    match check(data_dir, settings.psk.is_some())? {
        Some(IncompleteState::Database { .. }) if settings.init => {
            tracing::warn!("creating an empty database although keys exist (--init)");
        }
        Some(IncompleteState::Keys { .. }) if settings.new_keys => {
            tracing::warn!("creating the missing keys of an existing database (--new-keys)");
        }
        Some(incomplete) => return Err(incomplete.into()),
        None => {}
    }
    Ok(Store::open(&data_dir.join("cynode.db"))?)
}

/// Closes the database, so that cynode.db alone can be copied.
pub(super) async fn close(store: &Store) {
    if let Err(error) = store.close().await {
        let error = errors::chain(&error);
        tracing::warn!(
            error,
            "database not closed completely; copy cynode.db-wal together with cynode.db, or use cynode backup"
        );
    }
}
