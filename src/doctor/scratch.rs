//! Temporary directory for the containers that doctor runs.

use crate::worker::InitCopy;
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// A directory with a copy of our binary, like a node's. Removed when dropped.
pub(super) struct Scratch {
    dir: PathBuf,
    init: PathBuf,
}

impl Scratch {
    /// Creates one in the data directory, as a node does, or in the temporary directory where the data directory is
    /// missing or not ours.
    pub(super) fn make(data_dir: &Path) -> io::Result<Self> {
        let name = format!(".doctor-{}", uuid::Uuid::new_v4());
        let euid = rustix::process::geteuid().as_raw();
        let ours = fs::metadata(data_dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == euid);
        let inside = ours.then(|| make_dir(data_dir.join(&name)).ok()).flatten();
        let dir = match inside {
            Some(dir) => dir,
            None => make_dir(std::env::temp_dir().join(&name))?,
        };
        // From here on, dropping it removes the directory.
        let mut scratch = Self {
            dir,
            init: PathBuf::new(),
        };
        let copy = InitCopy::install(&scratch.dir.join("init"))?;
        copy.path().clone_into(&mut scratch.init);
        Ok(scratch)
    }

    /// Path of the directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path of the copy of our binary.
    pub(super) fn init(&self) -> &Path {
        &self.init
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            crate::terminal::print_note(&format!(
                "warning: {} could not be removed: {error}; remove it by hand",
                self.dir.display()
            ));
        }
    }
}

/// Creates a directory for this user only. Fails where the path exists.
fn make_dir(path: PathBuf) -> io::Result<PathBuf> {
    fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_directory_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let scratch = Scratch::make(home.path()).unwrap();
        assert!(scratch.init().starts_with(home.path()));
        fs::create_dir_all(scratch.dir().join("probe/etc")).unwrap();
        drop(scratch);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);

        let missing = home.path().join("missing");
        let scratch = Scratch::make(&missing).unwrap();
        assert!(scratch.dir().starts_with(std::env::temp_dir()));
        let dir = scratch.dir().to_owned();
        drop(scratch);
        assert!(!dir.exists() && !missing.exists());
    }
}
