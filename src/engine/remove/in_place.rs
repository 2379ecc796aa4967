//! Removal of a tree in place, for directories that can't be moved.
//!
//! It goes depth first, with one descriptor for the directory that is being emptied, and back up through `..`. On the way
//! up each directory has to be the same as on the way down.

use super::{
    Failures,
    access::{make_accessible, open, open_inside},
    entry_name_and_type, needs_emptying, remove_one,
};
use rustix::{
    fs::{AtFlags, Dir, FileType, fstat, statat},
    io::Errno,
};
use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    os::fd::OwnedFd,
};

/// Device and inode.
type Identity = (u64, u64);

/// One step down.
struct Step {
    name: CString,
    /// Directory that contains `name`.
    above: Identity,
}

/// Removes `name` in `parent` and everything in it, as far as possible. Returns false where it still exists.
pub(super) fn remove(parent: &OwnedFd, name: &CStr, failures: &mut Failures) -> bool {
    let mut walk = Walk {
        steps: Vec::new(),
        unremovable: HashSet::new(),
        failures,
    };
    match walk.remove(parent, name) {
        Ok(is_gone) => is_gone,
        Err(error) => {
            failures.add(name, error);
            false
        }
    }
}

struct Walk<'a> {
    steps: Vec<Step>,
    /// Entries that can't be removed.
    unremovable: HashSet<Identity>,
    failures: &'a mut Failures,
}

impl Walk<'_> {
    fn remove(&mut self, parent: &OwnedFd, name: &CStr) -> rustix::io::Result<bool> {
        let mut current = self.enter(parent, name)?;
        loop {
            if let Some(name) = self.next_directory(&current)? {
                match self.enter(&current, &name) {
                    Ok(inner) => current = inner,
                    Err(error) => self.give_up(&current, &name, error)?,
                }
                continue;
            }
            let Some(step) = self.steps.pop() else {
                return Ok(false);
            };
            let above = open(&current, c"..")?;
            if identity(&above)? != step.above {
                // The directories are being moved around.
                return Err(Errno::STALE);
            }
            let removed = remove_one(&above, step.name.as_c_str(), FileType::Directory);
            if self.steps.is_empty() {
                return Ok(removed.is_ok());
            }
            if let Err(error) = removed {
                self.give_up(&above, &step.name, error)?;
            }
            current = above;
        }
    }

    fn enter(&mut self, at: &OwnedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
        make_accessible(at, name);
        let inner = open_inside(at, name)?;
        self.steps.push(Step {
            name: name.to_owned(),
            above: identity(at)?,
        });
        Ok(inner)
    }

    /// Removes entries of a directory until one is a directory that isn't empty, and returns that.
    fn next_directory(&mut self, current: &OwnedFd) -> rustix::io::Result<Option<CString>> {
        for entry in Dir::read_from(current)? {
            let Some((name, kind)) = entry_name_and_type(current, &entry?)? else {
                continue;
            };
            let Err(error) = remove_one(current, name.as_c_str(), kind) else {
                continue;
            };
            if self.unremovable.contains(&identity_of(current, &name)?) {
                continue;
            }
            if needs_emptying(kind, error) {
                return Ok(Some(name));
            }
            self.give_up(current, &name, error)?;
        }
        Ok(None)
    }

    fn give_up(&mut self, at: &OwnedFd, name: &CStr, error: Errno) -> rustix::io::Result<()> {
        self.unremovable.insert(identity_of(at, name)?);
        // A directory is reported only where none of its entries was.
        if error != Errno::NOTEMPTY {
            self.failures.add(name, error);
        }
        self.failures.check().map_err(|_| error)
    }
}

fn identity(directory: &OwnedFd) -> rustix::io::Result<Identity> {
    let stat = fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn identity_of(at: &OwnedFd, name: &CStr) -> rustix::io::Result<Identity> {
    let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((stat.st_dev, stat.st_ino))
}
