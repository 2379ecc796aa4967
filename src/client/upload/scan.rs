//! Files of a directory that are uploaded, in the order of the archive.
//!
//! `.gitignore` and `.cynodeignore` files in the directory decide what is left out; `.git` always is. Files outside
//! the directory, such as a `.gitignore` above it, have no effect: the same directory gives the same archive. Links
//! are never followed.

use crate::{digest::sha256_hex, exit::Failure, files::is_unfinished};
use ignore::{Walk, WalkBuilder};
use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    os::fd::AsRawFd as _,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Age below which a change may have left no trace in the times of a file.
const RACY_AGE: Duration = Duration::from_secs(2);

/// Kind of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::client) enum Kind {
    File,
    Directory,
    /// Symbolic link, with its target.
    Link(Vec<u8>),
}

/// File, directory or link to upload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::client) struct Entry {
    /// Path below the directory, without `.` or `..`; empty for a single file.
    pub(in crate::client) path: Vec<u8>,
    pub(in crate::client) kind: Kind,
    pub(in crate::client) mode: u32,
    /// Size of a file; 0 for others.
    pub(super) size: u64,
    /// Time of the last change in seconds since 1970, with nanoseconds.
    pub(super) modified: (i64, i64),
    changed: (i64, i64),
    file_id: (u64, u64),
}

impl Entry {
    fn new(path: Vec<u8>, kind: Kind, metadata: &Metadata) -> Self {
        Self {
            path,
            size: if kind == Kind::File {
                metadata.len()
            } else {
                0
            },
            kind,
            mode: metadata.mode() & 0o777,
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            file_id: (metadata.dev(), metadata.ino()),
        }
    }

    /// Whether an open file is still the one that was found, with the same size and times.
    pub(super) fn is_same(&self, metadata: &Metadata) -> bool {
        *self == Self::new(self.path.clone(), Kind::File, metadata)
    }
}

/// Everything that is uploaded as one content.
#[derive(Debug)]
pub(in crate::client) struct Manifest {
    /// The file, or the directory that the paths are below.
    pub(in crate::client) root: PathBuf,
    /// Whether the path is that of a descriptor of this process.
    pub(super) is_open: bool,
    /// Whether the content is an archive of a directory.
    pub(in crate::client) is_archive: bool,
    pub(in crate::client) entries: Vec<Entry>,
    /// Fifos, sockets and devices, which are left out.
    pub(in crate::client) skipped: usize,
}

impl Manifest {
    /// Finds what to upload for a path: a file, or the files of a directory.
    pub(in crate::client) fn scan(path: &Path) -> Result<Self, Failure> {
        Self::scan_as(path, Self::scan_directory)
    }

    /// Same as [`Self::scan`], with all files of a directory, whatever the ignore files in it say.
    pub(in crate::client) fn scan_all(path: &Path) -> Result<Self, Failure> {
        Self::scan_as(path, |root| {
            let walk = WalkBuilder::new(&root)
                .standard_filters(false)
                .filter_entry(|entry| entry.depth() == 0 || !is_unfinished(entry.file_name()))
                .build();
            Self::from_walk(root, walk)
        })
    }

    fn scan_as(
        path: &Path,
        scan_directory: impl FnOnce(PathBuf) -> Result<Self, Failure>,
    ) -> Result<Self, Failure> {
        let fail = |error: std::io::Error| Failure::usage(format!("{}: {error}", path.display()));
        // A path that is a link means its target, as for other programs.
        let root = fs::canonicalize(path).map_err(fail)?;
        let metadata = fs::metadata(&root).map_err(fail)?;
        if metadata.is_dir() {
            return scan_directory(root);
        }
        if !metadata.is_file() {
            let text = format!("{} is neither a file nor a directory", path.display());
            return Err(Failure::usage(text));
        }
        Ok(Self {
            root,
            is_open: false,
            is_archive: false,
            entries: vec![Entry::new(Vec::new(), Kind::File, &metadata)],
            skipped: 0,
        })
    }

    /// An open file, which has to stay open. It is opened again by its descriptor, for a position of its own.
    pub(super) fn of_open_file(file: &File) -> Result<Self, Failure> {
        let metadata = file.metadata()?;
        Ok(Self {
            root: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            is_open: true,
            is_archive: false,
            entries: vec![Entry::new(Vec::new(), Kind::File, &metadata)],
            skipped: 0,
        })
    }

    fn scan_directory(root: PathBuf) -> Result<Self, Failure> {
        let walk = WalkBuilder::new(&root)
            .standard_filters(false)
            .git_ignore(true)
            .require_git(false)
            .add_custom_ignore_filename(".cynodeignore")
            .filter_entry(|entry| entry.depth() == 0 || !is_left_out(entry.file_name()))
            .build();
        Self::from_walk(root, walk)
    }

    fn from_walk(root: PathBuf, walk: Walk) -> Result<Self, Failure> {
        let (mut entries, mut skipped) = (Vec::new(), 0);
        for found in walk {
            let found = found.map_err(|error| Failure::usage(format!("can't read {error}")))?;
            if found.depth() == 0 {
                continue;
            }
            match entry(&root, found.path())? {
                Some(entry) => entries.push(entry),
                None => skipped += 1,
            }
        }
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Self {
            root,
            is_open: false,
            is_archive: true,
            entries,
            skipped,
        })
    }

    /// Hash over all that the content is made of, but for the bytes of the files.
    pub(super) fn key(&self) -> String {
        let mut text = vec![u8::from(self.is_archive)];
        for entry in &self.entries {
            let (kind, target) = match &entry.kind {
                Kind::File => (b'f', &[][..]),
                Kind::Directory => (b'd', &[][..]),
                Kind::Link(target) => (b'l', &target[..]),
            };
            text.push(kind);
            for part in [&entry.path[..], target] {
                text.extend((part.len() as u64).to_le_bytes());
                text.extend(part);
            }
            text.extend(entry.mode.to_le_bytes());
            text.extend(entry.size.to_le_bytes());
            text.extend(entry.modified.0.to_le_bytes());
            text.extend(entry.modified.1.to_le_bytes());
        }
        sha256_hex(text)
    }

    /// Hash over the identities of the files, which change with every write; see [`Self::is_racy`].
    pub(super) fn identity(&self) -> String {
        let mut text = self.root.as_os_str().as_bytes().to_vec();
        for entry in &self.entries {
            let (device, inode) = entry.file_id;
            text.extend(device.to_le_bytes());
            text.extend(inode.to_le_bytes());
            text.extend(entry.changed.0.to_le_bytes());
            text.extend(entry.changed.1.to_le_bytes());
        }
        sha256_hex(text)
    }

    /// Whether a file changed so recently that a further change may leave its times as they are.
    pub(super) fn is_racy(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let limit = now.saturating_sub(RACY_AGE).as_secs();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.entries.iter().any(|entry| entry.changed.0 >= limit)
    }
}

/// Whether a name is left out whatever the ignore files say: what git keeps, and what a download has left.
fn is_left_out(name: &OsStr) -> bool {
    name == OsStr::new(".git") || is_unfinished(name)
}

/// Entry of a path; `None` for a fifo, a socket or a device.
fn entry(root: &Path, path: &Path) -> Result<Option<Entry>, Failure> {
    let fail = |error: std::io::Error| {
        let text = format!(
            "{}: {error}; was it changed meanwhile? Try again",
            path.display()
        );
        Failure::usage(text)
    };
    let metadata = fs::symlink_metadata(path).map_err(fail)?;
    let kind = metadata.file_type();
    let kind = if kind.is_file() {
        Kind::File
    } else if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Link(
            fs::read_link(path)
                .map_err(fail)?
                .into_os_string()
                .into_vec(),
        )
    } else {
        debug_assert!(
            kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device()
        );
        return Ok(None);
    };
    let relative = path.strip_prefix(root).map_err(Failure::internal)?;
    let relative = relative.as_os_str().as_bytes().to_vec();
    Ok(Some(Entry::new(relative, kind, &metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn paths(root: &Path) -> Vec<String> {
        let entries = Manifest::scan(root).unwrap().entries;
        let text = |entry: Entry| String::from_utf8(entry.path).unwrap();
        entries.into_iter().map(text).collect()
    }

    #[test]
    fn ignore_files_decide_what_is_left_out() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("project");
        for directory in [
            "project/.git",
            "project/sub",
            "project/out",
            "project/.venv",
        ] {
            fs::create_dir_all(home.path().join(directory)).unwrap();
        }
        for (file, content) in [
            ("../.gitignore", "*.py"),
            (".gitignore", "*.log\nout/\n"),
            (".cynodeignore", ".venv\n!keep.log\n"),
            (".git/config", ""),
            (".hidden", ""),
            ("a.py", ""),
            ("a.log", ""),
            ("keep.log", ""),
            ("sub/.gitignore", "b"),
            ("sub/b", ""),
            ("sub/c", ""),
            ("out/x", ""),
            (".venv/y", ""),
        ] {
            fs::write(root.join(file), content).unwrap();
        }
        symlink("/etc", root.join("link")).unwrap();
        symlink("nowhere", root.join("sub/dangling")).unwrap();
        let expected = [
            ".cynodeignore",
            ".gitignore",
            ".hidden",
            "a.py",
            "keep.log",
            "link",
            "sub",
            "sub/.gitignore",
            "sub/c",
            "sub/dangling",
        ];
        assert_eq!(paths(&root), expected);
    }

    #[test]
    fn every_change_changes_key_or_identity() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("a");
        fs::write(&file, "one").unwrap();
        let scan = || Manifest::scan(home.path()).unwrap();
        let first = scan();
        assert_eq!(
            (first.key(), first.identity()),
            (scan().key(), scan().identity())
        );
        assert!(first.is_racy(SystemTime::now()));
        assert!(!first.is_racy(SystemTime::now() + 3 * RACY_AGE));

        let times = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "two").unwrap();
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(times)
            .unwrap();
        assert_eq!(scan().key(), first.key());
        assert_ne!(scan().identity(), first.identity());
        fs::write(&file, "three").unwrap();
        assert_ne!(scan().key(), first.key());
    }

    #[test]
    fn special_files_are_counted() {
        let home = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(home.path().join("s")).unwrap();
        let found = Manifest::scan(home.path()).unwrap();
        assert_eq!((found.entries.len(), found.skipped), (0, 1));
    }
}
