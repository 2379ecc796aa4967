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
const HARMLESS: [&str; 12] = [
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
const DOCTORS: &str = ".doctor-";
/// So many foreign files are named.
const NAMED: usize = 3;
/// Directories that all users share on every host.
const SHARED: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// May be written by everybody; and then entries by their owners only.
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why a directory can't be a data directory.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is a file, or another thing.
    #[error("{0} is no directory; choose another with --data-dir")]
    NoDirectory(PathBuf),
    /// It is another user's.
    #[error(
        "{path} belongs to uid {uid}, and not to us; run cynode as that user, or choose another with --data-dir"
    )]
    OtherOwner {
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
    Replaceable {
        /// Directory.
        path: PathBuf,
        /// The one above it.
        parent: PathBuf,
    },
    /// It holds other things.
    #[error(
        "{path} is neither empty nor a data directory of cynode: it holds {names}; choose a directory of its own with --data-dir, which is made where it is missing"
    )]
    Foreign {
        /// Directory.
        path: PathBuf,
        /// Some of what it holds.
        names: String,
    },
    /// It can't be looked at.
    #[error("can't use {path} as the data directory: {source}; choose another with --data-dir")]
    Unusable {
        /// Directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Checks that there is nothing at `path`, or a directory that is or may become a data directory of ours.
/// Changes nothing.
pub fn check(path: &Path) -> Result<(), Unfit> {
    let unusable = |source| Unfit::Unusable {
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
        return Err(Unfit::NoDirectory(path.to_owned()));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(Unfit::OtherOwner {
            path: path.to_owned(),
            uid: meta.uid(),
        });
    }
    let names = foreign(path).map_err(unusable)?;
    // A fresh file system of its own may be as open, and empty.
    let is_open = meta.permissions().mode() & (OTHERS_WRITE | STICKY) == OTHERS_WRITE | STICKY;
    if is_shared(path) || is_open && !names.is_empty() {
        return Err(Unfit::Shared(path.to_owned()));
    }
    if names.is_empty() || is_marked(path) {
        return Ok(());
    }
    Err(Unfit::Foreign {
        path: path.to_owned(),
        names,
    })
}

fn check_parent(path: &Path) -> Result<(), Unfit> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    let mode = fs::metadata(parent).map_or(0, |meta| meta.permissions().mode());
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(Unfit::Replaceable {
            path: path.to_owned(),
            parent: parent.to_owned(),
        });
    }
    Ok(())
}

fn is_shared(path: &Path) -> bool {
    let path = fs::canonicalize(path);
    path.is_ok_and(|path| SHARED.iter().any(|shared| path == Path::new(shared)))
}

/// Whether it was a data directory before.
fn is_marked(path: &Path) -> bool {
    MARKERS.iter().any(|name| path.join(name).is_file())
}

/// Names of what isn't ours, quoted and cut.
fn foreign(path: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_database = name.starts_with("cynode.db");
        if !is_database
            && !MARKERS.contains(&name.as_str())
            && !HARMLESS.contains(&name.as_str())
            && !name.starts_with(DOCTORS)
        {
            names.push(format!("{name:.60?}"));
        }
    }
    names.sort();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
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
        check(&path).unwrap();
        fs::create_dir(&path).unwrap();
        check(&path).unwrap();
        for name in ["keys", ".local"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        check(&path).unwrap();
        for name in ["a", "b", "c", "d\n"] {
            fs::write(path.join(name), "").unwrap();
        }
        let text = check(&path).unwrap_err().to_string();
        assert!(text.contains("\"a\", \"b\", \"c\", and 1 more"), "{text}");
        fs::write(path.join("worker.lock"), "").unwrap();
        check(&path).unwrap();
        set_mode(&path, 0o1777);
        assert!(matches!(check(&path), Err(Unfit::Shared(_))));
        let mounted = home.path().join("mounted");
        fs::create_dir(&mounted).unwrap();
        set_mode(&mounted, 0o1777);
        check(&mounted).unwrap();
        assert!(matches!(check(&path.join("a")), Err(Unfit::NoDirectory(_))));
        set_mode(&path, 0o777);
        let inside = check(&path.join("new"));
        assert!(matches!(inside, Err(Unfit::Replaceable { .. })));
        for path in ["/", "/tmp", "/dev/shm"] {
            assert!(check(Path::new(path)).is_err());
        }
    }
}
