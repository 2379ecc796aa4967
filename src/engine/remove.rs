//! Removal of a directory tree that a job may have written.
//!
//! A hostile tree may be deeper than any stack and any limit of descriptors, and may have directories that can't be
//! entered and links to anywhere. So nothing here recurses, no link is followed, no mount is entered, and a few
//! descriptors are enough: a directory below the second level is moved up to the top, under a name of ours, and emptied
//! there. A directory that can't be moved (from another project of XFS or ext4, another subvolume of btrfs) is
//! removed in place ([`in_place`]).
//!
//! Modes and flags that prevent the removal are cleared where that is permitted ([`access`]). An entry that can't be
//! removed even then prevents no other removal: it stays, and the error names it.

mod access;
mod in_place;

use super::{Engine, call};
use access::{make_accessible, open, open_inside, unlock};
use rustix::{
    fs::{AtFlags, CWD, Dir, DirEntry, FileType, renameat, statat, unlinkat},
    io::Errno,
};
use std::{
    ffi::{CStr, CString},
    io,
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

/// First argument that makes the binary remove a tree, inside podman's user namespace.
pub const REMOVE_TREE_ARGUMENT: &str = "__remove-tree";

/// Failures after which the rest of a tree is not tried.
const MAX_FAILURES: usize = 1000;
const UNSHARE_TIMEOUT: Duration = Duration::from_mins(5);

impl Engine {
    /// Removes a tree that a job may have written, without following links out of it. `init` is a copy of our binary.
    /// An entry that can't be removed stays, and the error says why.
    pub async fn remove_tree(&self, init: &Path, tree: &Path) -> Result<(), String> {
        let path = tree.to_owned();
        let removed = tokio::task::spawn_blocking(move || remove_tree(&path)).await;
        let error = match removed {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        match (init.to_str(), tree.to_str()) {
            // Rootless, files of a job's users belong to subordinate ids and can only be removed from inside podman's
            // user namespace. A large tree takes long, so this is not one of the short calls.
            (Some(init), Some(tree)) if self.info.rootless => {
                let arguments = ["unshare", init, REMOVE_TREE_ARGUMENT, tree];
                let removed = call(&self.program, &arguments, UNSHARE_TIMEOUT, |_| ()).await;
                removed.map(drop).map_err(|error| error.to_string())
            }
            _ => Err(error),
        }
    }
}

/// Removes a directory and everything in it, as far as possible. Succeeds where it doesn't exist.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    make_accessible(CWD, path);
    let top = match open(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let mut removal = Removal { top, moved: 0 };
    let mut failures = Failures::default();
    while removal.pass(&mut failures)? {
        failures = Failures::default();
    }
    failures.result()?;
    match remove_one(CWD, path, FileType::Directory) {
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

/// Removal of one tree.
struct Removal {
    top: OwnedFd,
    /// Number of directories that were moved up to the top.
    moved: u64,
}

impl Removal {
    /// Tries to remove every entry of the top once. Returns false where that has changed nothing.
    fn pass(&mut self, failures: &mut Failures) -> io::Result<bool> {
        let mut has_changed = false;
        for entry in Dir::read_from(&self.top)? {
            if let Some((name, kind)) = entry_name_and_type(&self.top, &entry?)? {
                has_changed |= self.remove_at_top(&name, kind, failures);
                failures.check()?;
            }
        }
        Ok(has_changed)
    }

    /// Removes an entry of the top, after its content. Returns false where that has changed nothing.
    fn remove_at_top(&mut self, name: &CStr, kind: FileType, failures: &mut Failures) -> bool {
        let error = match remove_one(&self.top, name, kind) {
            Ok(()) => return true,
            Err(error) => error,
        };
        if !needs_emptying(kind, error) {
            failures.add(name, error);
            return false;
        }
        let known = failures.count;
        let has_changed = self.flatten(name, failures).unwrap_or_else(|error| {
            failures.add(name, error);
            false
        });
        match remove_one(&self.top, name, kind) {
            Ok(()) => true,
            Err(error) => {
                if failures.count == known {
                    failures.add(name, error);
                }
                has_changed
            }
        }
    }

    /// Empties a directory at the top: files are removed, and directories moved up. Returns false where that has changed
    /// nothing.
    fn flatten(&mut self, name: &CStr, failures: &mut Failures) -> rustix::io::Result<bool> {
        make_accessible(&self.top, name);
        let inner = open_inside(&self.top, name)?;
        let mut has_changed = false;
        loop {
            let (mut has_more, mut here) = (false, Failures::default());
            for entry in Dir::read_from(&inner)? {
                let Some((name, kind)) = entry_name_and_type(&inner, &entry?)? else {
                    continue;
                };
                has_more |= match remove_one(&inner, &name, kind) {
                    Ok(()) => true,
                    Err(error) if needs_emptying(kind, error) => {
                        self.move_up(&inner, &name) || in_place::remove(&inner, &name, &mut here)
                    }
                    Err(error) => {
                        here.add(&name, error);
                        false
                    }
                };
                if here.check().is_err() {
                    break;
                }
            }
            has_changed |= has_more;
            if !has_more {
                failures.merge(here);
                return Ok(has_changed);
            }
        }
    }

    /// Moves a directory to the top. Returns false where that fails.
    fn move_up(&mut self, from: &OwnedFd, name: &CStr) -> bool {
        make_accessible(from, name);
        loop {
            self.moved += 1;
            match renameat(from, name, &self.top, format!(".cynode-{}", self.moved)) {
                // The job may have used the same name.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                done => return done.is_ok(),
            }
        }
    }
}

/// Entries that could not be removed.
#[derive(Default)]
struct Failures {
    first: Option<(CString, Errno)>,
    count: usize,
}

impl Failures {
    fn add(&mut self, name: &CStr, error: Errno) {
        self.count += 1;
        self.first.get_or_insert_with(|| (name.to_owned(), error));
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
    }

    /// Fails once there are too many.
    fn check(&self) -> io::Result<()> {
        if self.count < MAX_FAILURES {
            return Ok(());
        }
        self.result()
    }

    fn result(&self) -> io::Result<()> {
        let Some((name, error)) = &self.first else {
            return Ok(());
        };
        let error = io::Error::from(*error);
        let more = match self.count {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        let message = format!("{error}: {}{more}", name.to_string_lossy().escape_debug());
        Err(io::Error::new(error.kind(), message))
    }
}

/// Removes a file, a link or an empty directory. Succeeds where it is gone.
fn remove_one(
    at: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg + Copy,
    kind: FileType,
) -> rustix::io::Result<()> {
    let flags = match kind {
        FileType::Directory => AtFlags::REMOVEDIR,
        _ => AtFlags::empty(),
    };
    match unlinkat(&at, name, flags) {
        Err(Errno::PERM | Errno::ACCESS | Errno::ROFS) => {
            unlock(&at, name, kind);
            unlinkat(&at, name, flags)
        }
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// Whether an entry whose removal failed with `error` is a directory to empty first. A mount point is not.
fn needs_emptying(kind: FileType, error: Errno) -> bool {
    kind == FileType::Directory && error != Errno::BUSY
}

/// Name and type of an entry; `None` for the directory itself and its parent.
fn entry_name_and_type(
    at: &OwnedFd,
    entry: &DirEntry,
) -> rustix::io::Result<Option<(CString, FileType)>> {
    let name = entry.file_name();
    if name == c"." || name == c".." {
        return Ok(None);
    }
    let kind = match entry.file_type() {
        // Some file systems don't store it in the directory.
        FileType::Unknown => match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        },
        kind => kind,
    };
    Ok(Some((name.to_owned(), kind)))
}

#[cfg(test)]
mod tests;
