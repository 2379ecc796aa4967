//! Removing what a job left, however it left it.
//!
//! A hostile tree may be deeper than any stack and than all descriptors, hold directories that can't be entered,
//! and links to anywhere. So nothing here recurses, no link is ever followed, no mount is entered, and a few
//! descriptors are enough: whatever lies deeper than one level is moved up to the top, under a name of ours, and
//! emptied there. What can't be moved (into another project of XFS or ext4, another subvolume of btrfs) is
//! removed where it is ([`in_place`]).
//!
//! What the file system closes is opened as far as it may be ([`access`]). What can't be removed even then stops
//! nothing else from being removed: it is left, and the error says what it is.

mod access;
mod in_place;

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
};

/// The argument by which the binary knows that it is to remove trees, inside podman's user namespace.
pub const REMOVE_TREE_ARGUMENT: &str = "__remove-tree";

/// Failures after which the rest of a tree is left alone.
const MAX_FAILURES: usize = 1000;

/// Removes a directory and all that is in it, as far as possible; one that isn't there is fine.
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

/// A tree that is being removed.
struct Removal {
    top: OwnedFd,
    /// Directories that were moved up to the top.
    moved: u64,
}

impl Removal {
    /// Goes once through all that is at the top. False where nothing has changed by that.
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

    /// Removes an entry of the top, after what is in it. False where nothing has changed by that.
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

    /// Empties a directory at the top: what is no directory goes, and directories move up. False where nothing has
    /// changed by that.
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

    /// Moves a directory to the top; false where it can't be.
    fn move_up(&mut self, from: &OwnedFd, name: &CStr) -> bool {
        make_accessible(from, name);
        loop {
            self.moved += 1;
            match renameat(from, name, &self.top, format!(".cynode-{}", self.moved)) {
                // The job may have had the same idea for a name.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                done => return done.is_ok(),
            }
        }
    }
}

/// What could not be removed.
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

    /// An error once there are too many.
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

/// Removes a file, a link or an empty directory; one that is gone is fine.
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

/// Whether what couldn't be removed may go after what is in it. Where something is mounted, it may not.
fn needs_emptying(kind: FileType, error: Errno) -> bool {
    kind == FileType::Directory && error != Errno::BUSY
}

/// Name and kind of an entry; `None` for the directory itself and the one above.
fn entry_name_and_type(
    at: &OwnedFd,
    entry: &DirEntry,
) -> rustix::io::Result<Option<(CString, FileType)>> {
    let name = entry.file_name();
    if name == c"." || name == c".." {
        return Ok(None);
    }
    let kind = match entry.file_type() {
        // Some file systems don't say it in the directory.
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
