//! Access to entries of a tree that prevent their removal: modes, the immutable and append-only flags, read-only
//! subvolumes of btrfs.
//!
//! Everything here is an attempt whose result is not checked: where it is not permitted, the removal that follows fails
//! and reports that.

use rustix::{
    fs::{
        CWD, FileType, IFlags, Mode, OFlags, ResolveFlags, chmod, fstat, ioctl_getflags,
        ioctl_setflags, openat, openat2,
    },
    io::Errno,
    ioctl::{Setter, ioctl, opcode},
    path::Arg,
};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

/// Flags to open a directory: never through a link, and nothing else.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// `BTRFS_IOC_SUBVOL_SETFLAGS`, from linux/btrfs.h.
const SUBVOLUME_SET_FLAGS: rustix::ioctl::Opcode = opcode::write::<u64>(0x94, 26);
/// Inode of the root of every subvolume, `BTRFS_FIRST_FREE_OBJECTID` in linux/btrfs_tree.h.
const SUBVOLUME_INODE: u64 = 256;

/// Opens a directory.
pub(super) fn open(at: impl AsFd, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, name, DIRECTORY, Mode::empty())
}

/// Opens a directory to empty it. Fails where another file system is mounted there, which must not be emptied.
pub(super) fn open_inside(at: impl AsFd, name: impl Arg + Copy) -> rustix::io::Result<OwnedFd> {
    let directory = match openat2(&at, name, DIRECTORY, Mode::empty(), ResolveFlags::NO_XDEV) {
        // Kernels before 5.6 don't have it.
        Err(Errno::NOSYS) => open(at, name)?,
        opened => opened?,
    };
    if fstat(&directory).is_ok_and(|stat| stat.st_ino == SUBVOLUME_INODE) {
        make_subvolume_writable(&directory);
    }
    Ok(directory)
}

/// Gives a directory a mode with which it can be entered, without following a link.
pub(super) fn make_accessible(at: impl AsFd, name: impl Arg) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(directory) = openat(at, name, flags, Mode::empty()) {
        // The mode can't be changed through a descriptor with O_PATH itself.
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let _ = chmod(path, Mode::RWXU);
    }
}

/// Clears the flags that prevent an entry of a directory from being removed.
pub(super) fn unlock(at: impl AsFd, name: impl Arg + Copy, kind: FileType) {
    clear_flags(&at);
    let opened = match kind {
        FileType::Directory => open_inside(&at, name),
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            openat(&at, name, flags, Mode::empty())
        }
        // Opening a device or a FIFO may have any effect, and other types have no flags.
        _ => return,
    };
    if let Ok(entry) = opened {
        clear_flags(entry);
    }
}

fn clear_flags(of: impl AsFd) {
    // The parent of a tree is given as a path, without a descriptor.
    if of.as_fd().as_raw_fd() == CWD.as_raw_fd() {
        return;
    }
    if let Ok(flags) = ioctl_getflags(&of) {
        let closing = IFlags::IMMUTABLE | IFlags::APPEND;
        if flags.intersects(closing) {
            let _ = ioctl_setflags(&of, flags.difference(closing));
        }
    }
}

#[allow(unsafe_code, reason = "an ioctl that rustix doesn't have")]
fn make_subvolume_writable(root: &OwnedFd) {
    // SAFETY: the kernel reads a u64, by the layout that the number of this ioctl says, and writes nothing.
    let _ = unsafe { ioctl(root, Setter::<SUBVOLUME_SET_FLAGS, u64>::new(0)) };
}
