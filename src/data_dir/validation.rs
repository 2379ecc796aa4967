//! Validation of a directory that is to be a data directory.
//!
//! A role closes its data directory to all other users and fills it. A typing error must not do that to a
//! home directory or to `/tmp`: the directory has to be empty, or to have been a data directory before.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Files of which every data directory that was used before has one.
const MARKERS: [&str; 3] = ["orchestrator.lock", "worker.lock", "cynode.db"];
/// Other names that may be there before the first start: of an operator, the file system or doctor, or of podman,
/// `useradd` or a shell where the directory is the home of a service's user.
const ALLOWED_NAMES: [&str; 12] = [
    "keys",
    "worker",
    "node",
    "addresses.json",
    "lost+found",
    ".cache",
    ".config",
    ".local",
    ".bash_history",
    ".bash_logout",
    ".bashrc",
    ".profile",
];
/// Prefix of doctor's own directories.
const DOCTOR_PREFIX: &str = ".doctor-";
/// Number of other files that an error lists.
const MAX_LISTED_NAMES: usize = 3;
/// Number of characters that an error shows of such a name.
const MAX_LISTED_CHARS: usize = 60;
/// Directories that all users share on every host.
const SHARED_DIRS: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// Mode bits: all users may write, and may then replace only their own entries.
const WORLD_WRITABLE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Reason for which a directory can't be a data directory.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Not a directory.
    #[error("{0} is not a directory; choose another with --data-dir")]
    NotADirectory(PathBuf),
    /// Directory of another user.
    #[error(
        "{path} belongs to another user (uid {uid}); run cynode as that user, or choose another with --data-dir"
    )]
    WrongOwner {
        /// Directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Directory that all users share.
    #[error(
        "all users can write to {0}, so no secret is safe there; choose a separate directory with --data-dir (it is created if missing)"
    )]
    Shared(PathBuf),
    /// Directory that all users can replace.
    #[error("all users can replace {path}, since they can write to {parent}; choose another with --data-dir", parent = parent.display(), path = path.display())]
    ParentWritable {
        /// Directory.
        path: PathBuf,
        /// The one above it.
        parent: PathBuf,
    },
    /// Directory with other files.
    #[error(
        "{path} is neither empty nor a data directory of cynode: it contains {names}; choose a separate directory with --data-dir (it is created if missing)"
    )]
    NotEmpty {
        /// Directory.
        path: PathBuf,
        /// Some of their names.
        names: String,
    },
    /// Directory that can't be read or made.
    #[error("can't use {path} as the data directory: {source}; choose another with --data-dir")]
    Io {
        /// Directory.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
}

/// Fails where `path` is there and neither is nor may become a data directory.
/// Changes nothing.
pub fn ensure_usable(path: &Path) -> Result<(), DataDirError> {
    let unusable = |source| DataDirError::Io {
        path: path.to_owned(),
        source,
    };
    check_parent(path)?;
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(error)),
    };
    if !meta.is_dir() {
        return Err(DataDirError::NotADirectory(path.to_owned()));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(DataDirError::WrongOwner {
            path: path.to_owned(),
            uid: meta.uid(),
        });
    }
    let names = foreign_names(path).map_err(unusable)?;
    // The root of a new file system may have that mode, too; it is empty.
    let is_open = meta.permissions().mode() & (WORLD_WRITABLE | STICKY) == WORLD_WRITABLE | STICKY;
    if is_shared(path) || is_open && !names.is_empty() {
        return Err(DataDirError::Shared(path.to_owned()));
    }
    if names.is_empty() || has_marker(path) {
        return Ok(());
    }
    Err(DataDirError::NotEmpty {
        path: path.to_owned(),
        names,
    })
}

fn check_parent(path: &Path) -> Result<(), DataDirError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    let mode = fs::metadata(parent).map_or(0, |meta| meta.permissions().mode());
    if mode & WORLD_WRITABLE != 0 && mode & STICKY == 0 {
        return Err(DataDirError::ParentWritable {
            path: path.to_owned(),
            parent: parent.to_owned(),
        });
    }
    Ok(())
}

fn is_shared(path: &Path) -> bool {
    let path = fs::canonicalize(path);
    path.is_ok_and(|path| SHARED_DIRS.iter().any(|shared| path == Path::new(shared)))
}

/// Whether the directory was a data directory before.
fn has_marker(path: &Path) -> bool {
    MARKERS.iter().any(|name| path.join(name).is_file())
}

/// Names of files that are not of cynode, quoted and shortened.
fn foreign_names(path: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_database = name.starts_with("cynode.db");
        if !is_database
            && !MARKERS.contains(&name.as_str())
            && !ALLOWED_NAMES.contains(&name.as_str())
            && !name.starts_with(DOCTOR_PREFIX)
        {
            // A precision would not shorten quoted text.
            let start: String = name.chars().take(MAX_LISTED_CHARS).collect();
            names.push(format!("{start:?}"));
        }
    }
    names.sort();
    let more = names.len().saturating_sub(MAX_LISTED_NAMES);
    names.truncate(MAX_LISTED_NAMES);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    Ok(names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_empty_or_own_directory_is_accepted() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("dir");
        ensure_usable(&path).unwrap();
        fs::create_dir(&path).unwrap();
        ensure_usable(&path).unwrap();
        for name in ["keys", ".local"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        ensure_usable(&path).unwrap();
        for name in ["a", "b", "c", "d\n"] {
            fs::write(path.join(name), "").unwrap();
        }
        let text = ensure_usable(&path).unwrap_err().to_string();
        assert!(text.contains("\"a\", \"b\", \"c\", and 1 more"), "{text}");
        let long = path.join("0".repeat(200));
        fs::write(&long, "").unwrap();
        let text = ensure_usable(&path).unwrap_err().to_string();
        assert!(text.contains(&format!("\"{}\"", "0".repeat(60))), "{text}");
        fs::write(path.join("worker.lock"), "").unwrap();
        ensure_usable(&path).unwrap();
        set_mode(&path, 0o1777);
        assert!(matches!(ensure_usable(&path), Err(DataDirError::Shared(_))));
        let mounted = home.path().join("mounted");
        fs::create_dir(&mounted).unwrap();
        set_mode(&mounted, 0o1777);
        ensure_usable(&mounted).unwrap();
        assert!(matches!(
            ensure_usable(&path.join("a")),
            Err(DataDirError::NotADirectory(_))
        ));
        set_mode(&path, 0o777);
        let inside = ensure_usable(&path.join("new"));
        assert!(matches!(inside, Err(DataDirError::ParentWritable { .. })));
        for path in ["/", "/tmp", "/dev/shm"] {
            assert!(ensure_usable(Path::new(path)).is_err());
        }
    }
}
