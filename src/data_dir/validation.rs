//! Which directories may become, or are, a data directory.
//!
//! A role closes its data directory to everybody else and fills it. A slip of the hand must not do that to a
//! home directory or to `/tmp`: what is there has to be empty, or to have been a data directory before.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Files of which one is in every data directory that was used before: every release has made them.
const MARKERS: [&str; 3] = ["orchestrator.lock", "worker.lock", "cynode.db"];
/// What else may be there before the first start: put there by an operator, by the file system, by doctor, or
/// by podman, `useradd` or a shell where the directory is the home of a service's user.
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
/// How names of doctor's own directories begin.
const DOCTOR_PREFIX: &str = ".doctor-";
/// So many foreign files are named.
const MAX_LISTED_NAMES: usize = 3;
/// Directories that all users share on every host.
const SHARED_DIRS: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// May be written by everybody; and then entries by their owners only.
const WORLD_WRITABLE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why a directory can't be a data directory.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It is a file, or another thing.
    #[error("{0} is no directory; choose another with --data-dir")]
    NotADirectory(PathBuf),
    /// It is another user's.
    #[error(
        "{path} belongs to uid {uid}, and not to us; run cynode as that user, or choose another with --data-dir"
    )]
    WrongOwner {
        /// Directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// All users share it.
    #[error(
        "everybody can write in {0}, where no secret is safe; choose a directory of its own with --data-dir, which is made where it is missing"
    )]
    Shared(PathBuf),
    /// All users can replace it.
    #[error("everybody can replace {path}, since they can write in {parent}; choose another with --data-dir", parent = parent.display(), path = path.display())]
    ParentWritable {
        /// Directory.
        path: PathBuf,
        /// The one above it.
        parent: PathBuf,
    },
    /// It holds other things.
    #[error(
        "{path} is neither empty nor a data directory of cynode: it holds {names}; choose a directory of its own with --data-dir, which is made where it is missing"
    )]
    NotEmpty {
        /// Directory.
        path: PathBuf,
        /// Some of what it holds.
        names: String,
    },
    /// It can't be looked at.
    #[error("can't use {path} as the data directory: {source}; choose another with --data-dir")]
    Io {
        /// Directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Checks that there is nothing at `path`, or a directory that is or may become a data directory of ours.
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
    // A fresh file system of its own may be as open, and empty.
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

/// Whether it was a data directory before.
fn has_marker(path: &Path) -> bool {
    MARKERS.iter().any(|name| path.join(name).is_file())
}

/// Names of what isn't ours, quoted and cut.
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
            names.push(format!("{name:.60?}"));
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
    fn only_what_is_empty_or_ours_is_taken() {
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
