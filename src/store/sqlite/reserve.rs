//! Reserved space on the disk of the database.
//!
//! Logins, cancels, results and the audit log must always be written, so some space is reserved for them. New
//! tasks are refused while less than the reserve is free. Queued tasks are not started while less than half of
//! it is free: their results would use up the rest.

use super::{LowSpace, Store, StoreError, ballast};
use crate::disk_space::DiskSpace;
use std::{io, path::PathBuf};

/// Minimum number of files that can still be created, where the file system has a limit.
const RESERVED_FILES: u64 = 64;

/// Reserve on the disk of a database.
#[derive(Clone, Debug)]
pub(super) struct Reserve {
    pub(super) database: PathBuf,
    /// Reserved bytes; 0 reserves none.
    pub(super) bytes: u64,
}

impl Reserve {
    /// Fails while less than `reserved` bytes are free.
    fn check(&self, reserved: u64) -> Result<(), LowSpace> {
        if reserved == 0 {
            return Ok(());
        }
        let disk = match DiskSpace::at(&self.database) {
            Ok(disk) => disk,
            Err(error) => {
                // A fault of the disk shows in the next write.
                tracing::debug!(%error, "cannot read the free space of the disk");
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

    /// Fails while the disk has no space for new tasks.
    pub(super) fn check_create(&self) -> Result<(), LowSpace> {
        self.check(self.bytes)
    }
}

impl Store {
    /// Reserves space on the disk of the database, in bytes; 0 reserves none.
    #[must_use]
    pub fn with_disk_reserve(mut self, bytes: u64) -> Self {
        self.reserve.bytes = bytes;
        self
    }

    /// Lack of space for which new tasks are refused, if any.
    pub fn low_space(&self) -> Option<LowSpace> {
        self.reserve.check_create().err()
    }

    /// Creates the ballast again that a start on a full disk has used up, once the disk has space.
    pub fn restore_ballast(&self) -> io::Result<()> {
        match self.reserve.check_create() {
            Ok(()) => ballast::ensure(&self.reserve.database),
            Err(_) => Ok(()),
        }
    }

    /// Fails while the disk has no space for the results of queued tasks.
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
    fn reserve_compares_with_free_space() {
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
