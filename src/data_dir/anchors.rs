//! Anchors: files and directories that have to stay at their paths while a process runs.
//!
//! A process does not notice by itself that its directory was moved, removed or replaced: its open files are
//! written where the next start does not find them, and its new ones appear in another directory.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// An anchor that is not at its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the data directory was moved, removed or replaced while this process runs; put it back, or restart this process with the right --data-dir"
)]
pub struct DataDirMoved;

/// Files and directories, and the paths where they have to be.
#[derive(Debug, Default)]
pub struct PathAnchors(Vec<Anchor>);

/// One file or directory.
#[derive(Debug)]
struct Anchor {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Keeps the inode number of a directory from being reused. Files are open elsewhere; closing a second
    /// descriptor of a database would release its locks.
    _directory: Option<File>,
}

impl PathAnchors {
    /// Anchors for the files and directories that are at these paths now.
    pub fn open<'a>(paths: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        paths
            .into_iter()
            .map(Anchor::at)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Fails while one is not at its path.
    pub fn verify(&self) -> Result<(), DataDirMoved> {
        if self.0.iter().all(Anchor::is_in_place) {
            Ok(())
        } else {
            Err(DataDirMoved)
        }
    }
}

impl Anchor {
    fn at(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let meta = fs::metadata(&path)?;
        let directory = meta.is_dir().then(|| File::open(&path)).transpose()?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            path,
            _directory: directory,
        })
    }

    fn is_in_place(&self) -> bool {
        fs::metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (self.device, self.inode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_path_is_missing_until_restored() {
        let home = tempfile::tempdir().unwrap();
        let [here, away, file] = ["here", "away", "here/file"].map(|name| home.path().join(name));
        fs::create_dir(&here).unwrap();
        fs::write(&file, "").unwrap();
        let anchors = PathAnchors::open([here.as_path(), &file]).unwrap();
        assert_eq!(anchors.verify(), Ok(()));
        fs::rename(&here, &away).unwrap();
        assert_eq!(anchors.verify(), Err(DataDirMoved));
        fs::create_dir(&here).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(anchors.verify(), Err(DataDirMoved));
        fs::remove_dir_all(&here).unwrap();
        fs::rename(&away, &here).unwrap();
        assert_eq!(anchors.verify(), Ok(()));
    }
}
