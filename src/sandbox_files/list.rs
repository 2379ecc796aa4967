//! Lists of directories: sorted by path, and bounded in memory whatever a job has made.
//!
//! Of a tree with more entries than a list may have, the first ones by path are kept. So what is left out comes after
//! what is listed, and nothing below an entry that is left out needs to be read.

use super::failure::problem;
use crate::api::{
    problem::Problem,
    sandboxes::files::{FileEntry, FileKind, FileList, MAX_LIST_ENTRIES},
    time::Time,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// Bytes of all names of a list.
const MAX_NAMES_BYTES: usize = 4 << 20;
/// Entries after which the rest is not looked at.
const MAX_SEEN: usize = 2_000_000;

/// Limits of a list.
struct Limits {
    entries: usize,
    names_bytes: usize,
    seen: usize,
}

/// Lists a directory, so many levels of it; a file is its own only entry. Links are not followed, but for `path` itself.
/// A directory below that can't be read has no entries.
pub(super) fn list(path: &Path, depth: u32) -> Result<FileList, Problem> {
    let limits = Limits {
        entries: MAX_LIST_ENTRIES,
        names_bytes: MAX_NAMES_BYTES,
        seen: MAX_SEEN,
    };
    list_within(path, depth, limits)
}

fn list_within(path: &Path, depth: u32, limits: Limits) -> Result<FileList, Problem> {
    // Without `.` and doubled slashes.
    let path: PathBuf = path.components().collect();
    let at_path = |error: std::io::Error| problem(&path, &error);
    let mut listing = Listing {
        limits,
        found: BTreeMap::new(),
        unread: BTreeSet::new(),
        names_bytes: 0,
        seen: 0,
        truncated: false,
    };
    if fs::metadata(&path).map_err(at_path)?.is_dir() {
        listing.read(&path, 1, depth).map_err(at_path)?;
    } else {
        let metadata = fs::symlink_metadata(&path).map_err(at_path)?;
        listing.add(path.clone(), metadata, None);
    }
    while let Some((directory, level)) = listing.unread.pop_first() {
        // One that is gone or can't be read has no entries.
        let _ = listing.read(&directory, level, depth);
    }
    Ok(listing.finish())
}

/// Part of an entry that is kept.
struct Found {
    metadata: Metadata,
    target: Option<PathBuf>,
}

struct Listing {
    limits: Limits,
    found: BTreeMap<PathKey, Found>,
    /// Directories that are to be read, with the level of their entries.
    unread: BTreeSet<(PathBuf, u32)>,
    names_bytes: usize,
    seen: usize,
    truncated: bool,
}

/// Path in the order of its bytes, as a reader of the list sees it.
#[derive(PartialEq, Eq)]
struct PathKey(PathBuf);

impl PathKey {
    fn bytes(&self) -> &[u8] {
        self.0.as_os_str().as_bytes()
    }
}

impl Ord for PathKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl PartialOrd for PathKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Listing {
    /// Reads the entries of a directory, which are on this level.
    fn read(&mut self, directory: &Path, level: u32, depth: u32) -> std::io::Result<()> {
        for entry in fs::read_dir(directory)? {
            self.seen += 1;
            if self.seen > self.limits.seen {
                self.truncated = true;
                break;
            }
            // An entry that is gone meanwhile is none.
            let Ok(entry) = entry else { continue };
            if let Ok(metadata) = entry.metadata() {
                let below = (metadata.is_dir() && level < depth).then_some(level + 1);
                self.add(entry.path(), metadata, below);
            }
        }
        Ok(())
    }

    /// Adds an entry, unless those that are there come before it and are enough.
    fn add(&mut self, path: PathBuf, metadata: Metadata, below: Option<u32>) {
        let target = metadata.is_symlink().then(|| fs::read_link(&path).ok());
        let found = Found {
            metadata,
            target: target.flatten(),
        };
        self.names_bytes += names_bytes(&path, &found);
        if let Some(level) = below {
            self.unread.insert((path.clone(), level));
        }
        self.found.insert(PathKey(path), found);
        while self.found.len() > self.limits.entries || self.names_bytes > self.limits.names_bytes {
            self.truncated = true;
            let Some((PathKey(path), found)) = self.found.pop_last() else {
                return;
            };
            self.names_bytes -= names_bytes(&path, &found);
            if let Some(level) = self.level_of(&path) {
                self.unread.remove(&(path, level));
            }
        }
    }

    /// Level of the entries of a directory that is still to be read.
    fn level_of(&self, path: &Path) -> Option<u32> {
        let first = (path.to_owned(), 0);
        let next = self.unread.range(first..).next();
        next.filter(|(found, _)| found == path)
            .map(|(_, level)| *level)
    }

    fn finish(self) -> FileList {
        let entry = |(path, found): (PathKey, Found)| entry(&path.0, found);
        FileList {
            entries: self.found.into_iter().map(entry).collect(),
            truncated: self.truncated,
        }
    }
}

fn names_bytes(path: &Path, found: &Found) -> usize {
    let target = found.target.as_ref();
    path.as_os_str().len() + target.map_or(0, |target| target.as_os_str().len())
}

fn entry(path: &Path, found: Found) -> FileEntry {
    let metadata = found.metadata;
    let millis = metadata.mtime_nsec() / 1_000_000;
    let modified = metadata.mtime().saturating_mul(1000).saturating_add(millis);
    let kind = metadata.file_type();
    FileEntry {
        path: path.to_string_lossy().into_owned(),
        kind: if kind.is_file() {
            FileKind::File
        } else if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_symlink() {
            FileKind::Symlink
        } else {
            FileKind::Other
        },
        size_bytes: metadata.size(),
        mode: format!("{:04o}", metadata.mode() & 0o7777),
        modified_at: Time::from_millis(modified),
        target: found
            .target
            .map(|target| target.to_string_lossy().into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(list: &FileList, top: &Path) -> Vec<String> {
        let relative = |entry: &FileEntry| {
            let path = Path::new(&entry.path).strip_prefix(top).unwrap();
            path.to_str().unwrap().to_owned()
        };
        list.entries.iter().map(relative).collect()
    }

    fn limited(top: &Path, entries: usize, names_bytes: usize, seen: usize) -> FileList {
        let limits = Limits {
            entries,
            names_bytes,
            seen,
        };
        list_within(top, 9, limits).unwrap()
    }

    #[test]
    fn truncated_list_has_first_entries() {
        let top = tempfile::tempdir().unwrap();
        for directory in ["b", "a", "c"] {
            for n in [3, 1, 2] {
                let directory = top.path().join(directory);
                fs::create_dir_all(directory.join(n.to_string())).unwrap();
            }
        }
        let all = paths(&limited(top.path(), 99, 9999, 99), top.path());
        let expected = [
            "a", "a/1", "a/2", "a/3", "b", "b/1", "b/2", "b/3", "c", "c/1", "c/2", "c/3",
        ];
        assert_eq!(all, expected);
        for most in 0..12 {
            let list = limited(top.path(), most, 9999, 99);
            assert_eq!(paths(&list, top.path()), expected[..most], "{most}");
            assert!(list.truncated);
        }
        assert!(!limited(top.path(), 12, 9999, 99).truncated);
        let room = 3 * (top.path().as_os_str().len() + 4);
        assert_eq!(
            paths(&limited(top.path(), 99, room, 99), top.path()),
            expected[..3]
        );
        assert!(limited(top.path(), 99, 9999, 5).truncated);
    }
}
