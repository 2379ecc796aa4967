//! Paths under which open files have to stay.
//!
//! A directory that is moved, removed or replaced while a process works in it goes unnoticed: open files
//! are still written, where nobody finds them again, and new ones appear beside somebody else's.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Something stands at a path no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the data directory was moved, removed or replaced while this process runs; put it back, or restart this process with the right --data-dir"
)]
pub struct DataDirMoved;

/// Files and directories, and the paths under which they are expected.
#[derive(Debug, Default)]
pub struct PathAnchors(Vec<Anchor>);

/// One of them.
#[derive(Debug)]
struct Anchor {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Keeps a directory's number from being given to another one. A file is open already where it is used;
    /// closing another descriptor of a database would give up its locks.
    _directory: Option<File>,
}

impl PathAnchors {
    /// What is at these paths now.
    pub fn open<'a>(paths: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        paths
            .into_iter()
            .map(Anchor::at)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Whether all of it is still there.
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
    fn moved_path_is_missed_until_back() {
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
