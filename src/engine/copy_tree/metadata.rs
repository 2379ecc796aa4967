//! Properties of entries: owner, mode, time of change, and the attributes by which overlay knows them.

use super::{CopyError, TreeCopy, quoted};
use rustix::{
    fs::{
        Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, fchmod, fchown,
        fgetxattr, fsetxattr, futimens,
    },
    io::Errno,
};
use std::os::fd::{AsFd, OwnedFd};

/// Attributes of a directory that hides the one of the image: of overlay as root, in a user namespace, and of its
/// implementation with FUSE.
const OPAQUE_ATTRIBUTES: [&str; 3] = [
    "trusted.overlay.opaque",
    "user.overlay.opaque",
    "user.fuseoverlayfs.opaque",
];
/// Attributes of entries whose content is elsewhere, so that a copy of them would be wrong.
const REFERRING_ATTRIBUTES: [&str; 4] = [
    "trusted.overlay.redirect",
    "user.overlay.redirect",
    "trusted.overlay.metacopy",
    "user.overlay.metacopy",
];

impl TreeCopy<'_> {
    /// Owner, mode and time of change of a file or directory that is complete.
    pub(super) fn set_metadata(&self, to: impl AsFd, stat: &Stat) -> rustix::io::Result<()> {
        let kept = if self.is_upper() {
            let owner = Some(Uid::from_raw(stat.st_uid));
            // Before the mode: it clears setuid.
            fchown(&to, owner, Some(Gid::from_raw(stat.st_gid)))?;
            0o7777
        } else {
            0o1777
        };
        fchmod(&to, Mode::from_raw_mode(stat.st_mode & kept))?;
        futimens(&to, &times(stat))
    }

    /// Copies the attributes by which overlay hides a directory of the image.
    pub(super) fn copy_attributes(&self, from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
        if !self.is_upper() {
            return Ok(());
        }
        for name in OPAQUE_ATTRIBUTES {
            let mut value = [0_u8; 16];
            match fgetxattr(from, name, &mut value) {
                Ok(length) => fsetxattr(to, name, &value[..length], XattrFlags::empty())?,
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fails where the content of an entry is elsewhere.
    pub(super) fn check_attributes(&self, from: impl AsFd, path: &[u8]) -> Result<(), CopyError> {
        if !self.is_upper() {
            return Ok(());
        }
        let has = |name: &&&str| {
            let value = fgetxattr(&from, **name, &mut [0_u8; 1]);
            !matches!(value, Err(Errno::NODATA | Errno::OPNOTSUPP))
        };
        match REFERRING_ATTRIBUTES.iter().find(has) {
            None => Ok(()),
            Some(name) => Err(CopyError::Refused(format!(
                "{} has the attribute {name}: podman's storage keeps its content elsewhere; have the node's operator remove metacopy and redirect_dir from mountopt in storage.conf",
                quoted(path)
            ))),
        }
    }
}

/// Time of change of an entry, to be set.
pub(super) fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
        },
    }
}
