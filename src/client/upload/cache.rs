//! Hashes of what was uploaded before, so that an unchanged directory is neither read nor sent again.
//!
//! `$XDG_CACHE_HOME/cynode/uploads/` has one file for each content, named by the key of its manifest. It is only a
//! hint: without it a content is sent again.

use super::scan::Manifest;
use crate::{
    data_dir::make_private_dir,
    files::{Durability, STALE_AGE, remove_temporary_files, replace_file},
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Age of a hint that nobody used.
const MAX_AGE: Duration = Duration::from_hours(24 * 90);

/// Hash of a content, and the state of the files that it was made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Hint {
    pub(super) sha256: String,
    identity: String,
    /// Whether a file may have changed since without a trace.
    is_racy: bool,
}

impl Hint {
    pub(super) fn new(sha256: String, manifest: &Manifest, scanned: SystemTime) -> Self {
        Self {
            sha256,
            identity: manifest.identity(),
            is_racy: manifest.is_racy(scanned),
        }
    }

    /// Whether the content surely has this hash, without a look into the files.
    pub(super) fn is_certain(&self, manifest: &Manifest) -> bool {
        !self.is_racy && self.identity == manifest.identity()
    }
}

fn directory() -> Option<PathBuf> {
    let from = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let cache = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?;
    Some(cache.join("cynode/uploads"))
}

/// Hint for a content, if there is a readable one.
pub(super) fn load(key: &str) -> Option<Hint> {
    let path = directory()?.join(key);
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Stores a hint. A failure costs only time later.
pub(super) fn store(key: &str, hint: &Hint) {
    let Some(directory) = directory() else { return };
    if let Err(error) = try_store(&directory, key, hint) {
        tracing::debug!(%error, directory = %directory.display(), "hash of an upload not stored");
    }
}

fn try_store(directory: &Path, key: &str, hint: &Hint) -> io::Result<()> {
    make_private_dir(directory)?;
    remove_temporary_files(directory, STALE_AGE);
    let now = SystemTime::now();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let age = now.duration_since(entry.metadata()?.modified()?);
        if age.is_ok_and(|age| age > MAX_AGE) {
            fs::remove_file(entry.path())?;
        }
    }
    let text = serde_json::to_vec(hint).map_err(io::Error::other)?;
    replace_file(&directory.join(key), &text, Durability::Process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settled_files_are_certain() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("a");
        fs::write(&file, "one").unwrap();
        let manifest = Manifest::scan(home.path()).unwrap();
        let (now, later) = (
            SystemTime::now(),
            SystemTime::now() + Duration::from_secs(10),
        );
        let hint = |scanned| Hint::new("h".to_owned(), &manifest, scanned);
        assert!(!hint(now).is_certain(&manifest));
        assert!(hint(later).is_certain(&manifest));
        fs::write(&file, "two").unwrap();
        let changed = Manifest::scan(home.path()).unwrap();
        assert!(!hint(later).is_certain(&changed));
    }
}
