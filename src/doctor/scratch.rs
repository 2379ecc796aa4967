//! A directory of doctor's own, for the containers that it tries; removed at the end.

use crate::worker::InitCopy;
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// A directory with a copy of our binary in it, as a node has one.
pub(super) struct Scratch {
    dir: PathBuf,
    init: PathBuf,
}

impl Scratch {
    /// Makes one where a node would play, in the data directory; where that isn't there or isn't
    /// ours, among temporary files.
    pub(super) fn make(data_dir: &Path) -> io::Result<Self> {
        let name = format!(".doctor-{}", uuid::Uuid::new_v4());
        let euid = rustix::process::geteuid().as_raw();
        let ours = fs::metadata(data_dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == euid);
        let inside = ours.then(|| make_dir(data_dir.join(&name)).ok()).flatten();
        let dir = match inside {
            Some(dir) => dir,
            None => make_dir(std::env::temp_dir().join(&name))?,
        };
        // From here on dropping it clears it away.
        let mut scratch = Self {
            dir,
            init: PathBuf::new(),
        };
        let copy = InitCopy::install(&scratch.dir.join("init"))?;
        copy.path().clone_into(&mut scratch.init);
        Ok(scratch)
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The copy of our binary.
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

/// A new directory for nobody else; fails where there is something of that name.
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
