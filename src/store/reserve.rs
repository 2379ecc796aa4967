//! Room on the disk that new tasks may not use up.
//!
//! Logins, cancels, ends of jobs and the audit log are written whatever happens, so something has to be left
//! for them. New tasks are refused while less than the reserve is free. Tasks that are queued already are
//! not started while less than half of it is free: their results would use up the rest.

use super::{Store, StoreError, ballast};
use crate::disk_space::DiskSpace;
use std::{io, path::PathBuf};

/// Files that may be made on the disk at least, where its file system has a limit.
const RESERVED_FILES: u64 = 64;

/// The database on whose disk the room is to be, and how much.
#[derive(Clone, Debug)]
pub(super) struct Reserve {
    pub(super) database: PathBuf,
    /// None is kept free where this is 0.
    pub(super) bytes: u64,
}

/// The disk has less room than is reserved on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LowSpace {
    /// Bytes that are free, and that are to be.
    #[error(
        "only {} MiB are free on the disk that holds the database, and {} MiB are reserved there; make room on it, \
         or start the orchestrator with a smaller --reserve-disk", .free >> 20, .reserved >> 20
    )]
    Bytes {
        /// What is free.
        free: u64,
        /// What is to be.
        reserved: u64,
    },
    /// Bytes that are free, and that are to be before queued tasks are started.
    #[error(
        "only {} MiB are free on the disk that holds the database, and queued tasks wait until half of \
         --reserve-disk is free, which is {} MiB; make room on it, or start the orchestrator with a smaller \
         --reserve-disk", .free >> 20, .needed >> 20
    )]
    Start {
        /// What is free.
        free: u64,
        /// What is to be.
        needed: u64,
    },
    /// Files that may still be made.
    #[error(
        "only {free} more files fit on the disk that holds the database; delete files that nobody needs there"
    )]
    Files {
        /// How many.
        free: u64,
    },
}

impl Reserve {
    /// What is wrong where less than `reserved` bytes are free.
    fn check(&self, reserved: u64) -> Result<(), LowSpace> {
        if reserved == 0 {
            return Ok(());
        }
        let disk = match DiskSpace::at(&self.database) {
            Ok(disk) => disk,
            Err(error) => {
                // SQLite finds out for itself what may be wrong there.
                tracing::debug!(%error, "the free room of the disk can't be read");
                return Ok(());
            }
        };
        let free = disk.bytes.free;
        if free < reserved {
            return Err(LowSpace::Bytes { free, reserved });
        }
        match disk.inodes {
            Some(inodes) if inodes.free < RESERVED_FILES => {
                Err(LowSpace::Files { free: inodes.free })
            }
            _ => Ok(()),
        }
    }

    /// Whether there is room for new tasks.
    pub(super) fn check_create(&self) -> Result<(), LowSpace> {
        self.check(self.bytes)
    }
}

impl Store {
    /// Reserves room on the disk of the database, in bytes; 0 reserves none.
    #[must_use]
    pub fn with_disk_reserve(mut self, bytes: u64) -> Self {
        self.reserve.bytes = bytes;
        self
    }

    /// Why no new task is taken, where that is for want of room.
    pub fn low_space(&self) -> Option<LowSpace> {
        self.reserve.check_create().err()
    }

    /// Makes again what a start on a full disk has used up, once there is room.
    pub fn restore_ballast(&self) -> io::Result<()> {
        match self.reserve.check_create() {
            Ok(()) => ballast::ensure(&self.reserve.database),
            Err(_) => Ok(()),
        }
    }

    /// Why no queued task is started, where that is for want of room.
    pub fn check_start_space(&self) -> Result<(), StoreError> {
        match self.reserve.check(self.reserve.bytes / 2) {
            Err(LowSpace::Bytes { free, reserved }) => Err(LowSpace::Start {
                free,
                needed: reserved,
            }
            .into()),
            checked => Ok(checked?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_counts_what_is_free_on_the_disk() {
        let home = tempfile::tempdir().unwrap();
        let reserve = |bytes| Reserve {
            database: home.path().to_owned(),
            bytes,
        };
        assert_eq!(reserve(0).check_create(), Ok(()));
        assert_eq!(reserve(1).check_create(), Ok(()));
        let low = reserve(u64::MAX).check_create().unwrap_err();
        let LowSpace::Bytes { free, reserved } = low else {
            panic!("{low:?}");
        };
        assert!(free > 0 && reserved == u64::MAX);
        assert!(low.to_string().contains("--reserve-disk"), "{low}");
    }
}
