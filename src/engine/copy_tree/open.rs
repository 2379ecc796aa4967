//! Opens entries of a hostile tree: never through a link, never out of the tree, never into another mount.

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
};
use std::{
    ffi::CStr,
    os::fd::{AsFd, OwnedFd},
};

/// Flags to open a directory.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);
/// Tries while names of the tree are being changed.
const MAX_ATTEMPTS: u32 = 64;

/// Opens a directory by its path below `top`.
pub(super) fn open_directory(top: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    match open_beneath(top, path, DIRECTORY) {
        Err(Errno::NOSYS | Errno::PERM) => open_by_parts(top, path),
        opened => opened,
    }
}

/// Opens an entry of a directory.
pub(super) fn open_child(at: &OwnedFd, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    match open_beneath(at, name.to_bytes(), flags) {
        Err(Errno::NOSYS | Errno::PERM) => open_part(at, name.to_bytes(), flags),
        opened => opened,
    }
}

fn open_beneath(at: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..MAX_ATTEMPTS {
        opened = openat2(at, path, flags, Mode::empty(), resolve);
        // A rename anywhere on the machine may have been in the way.
        if !matches!(opened, Err(Errno::AGAIN)) {
            break;
        }
    }
    opened
}

/// Same as [`open_directory`], one component after the other: kernels before 5.6, and filters of containers, don't have
/// `openat2`.
fn open_by_parts(top: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let mut directory = open_part(top, b".", DIRECTORY)?;
    for name in path.split(|byte| *byte == b'/') {
        directory = open_part(&directory, name, DIRECTORY)?;
    }
    Ok(directory)
}

/// Opens one component, which is on the same filesystem.
fn open_part(at: impl AsFd, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    if name == b".." {
        return Err(Errno::XDEV);
    }
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(&at, name, flags, Mode::empty())?;
    if fstat(&opened)?.st_dev != fstat(&at)?.st_dev {
        return Err(Errno::XDEV);
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn links_and_parents_are_not_entered() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/b")).unwrap();
        symlink("a", top.path().join("link")).unwrap();
        let at = openat(CWD, top.path(), DIRECTORY, Mode::empty()).unwrap();
        for open in [open_directory, open_by_parts] {
            let open = |path: &[u8]| open(&at, path).map(drop);
            assert_eq!(open(b"."), Ok(()));
            assert_eq!(open(b"a/b"), Ok(()));
            assert!(open(b"link/b").is_err());
            assert!(open(b"link").is_err());
            assert!(open(b"a/../..").is_err());
            assert_eq!(open(b"missing"), Err(Errno::NOENT));
        }
        assert!(open_child(&at, c"link", OFlags::RDONLY).is_err());
    }
}
