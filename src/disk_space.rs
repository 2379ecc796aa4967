//! Free room on filesystems: bytes and inodes.

use std::{fmt, io, path::Path};

/// How much of a filesystem's bytes or inodes there is, and how much of it is free to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Free to a process without privileges.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// Room on one filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    /// Bytes.
    pub bytes: Capacity,
    /// Inodes; `None` where the filesystem makes them as it needs them, as btrfs does.
    pub inodes: Option<Capacity>,
}

/// What a filesystem can be short of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// Room for contents.
    Bytes,
    /// Room for more files, however small.
    Inodes,
}

/// A filesystem with less free than is kept in reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// What it is short of.
    pub of: Resource,
    /// How much is free.
    pub free: u64,
    /// How much has to be.
    pub reserve: u64,
}

impl DiskSpace {
    /// Room where `path` is.
    pub fn at(path: &Path) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(path)?;
        Ok(Self {
            bytes: Capacity {
                free: disk.f_bavail.saturating_mul(disk.f_frsize),
                total: disk.f_blocks.saturating_mul(disk.f_frsize),
            },
            inodes: (disk.f_files > 0).then_some(Capacity {
                free: disk.f_favail,
                total: disk.f_files,
            }),
        })
    }

    /// Inodes to keep free beside `min_free` bytes: the same share of all there are. So the reserve fits
    /// every filesystem, whether it was made with many inodes or few, and no reserve of bytes means none
    /// of inodes.
    pub fn inode_reserve(&self, min_free: u64) -> Option<u64> {
        let total = u128::from(self.inodes?.total);
        let share = total * u128::from(min_free) / u128::from(self.bytes.total.max(1));
        u64::try_from(share.min(total)).ok()
    }

    /// What is missing where `min_free` bytes are to be kept free, and as large a share of the inodes.
    pub fn shortage(&self, min_free: u64) -> Option<Shortage> {
        let short = |of, free, reserve| (free < reserve).then_some(Shortage { of, free, reserve });
        short(Resource::Bytes, self.bytes.free, min_free).or_else(|| {
            let reserve = self.inode_reserve(min_free)?;
            short(Resource::Inodes, self.inodes?.free, reserve)
        })
    }
}

impl Shortage {
    /// How much more has to be free.
    pub fn missing(&self) -> u64 {
        self.reserve.saturating_sub(self.free)
    }
}

impl Resource {
    /// So much of it, in words.
    pub fn amount(self, number: u64) -> String {
        match self {
            Self::Bytes => format!("{} MiB", number >> 20),
            Self::Inodes => format!("{number} inodes"),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [free, reserve] = [self.free, self.reserve].map(|number| self.of.amount(number));
        write!(f, "{free} free, {reserve} needed")
    }
}

/// Bytes that we may still write where `path` is.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    Ok(DiskSpace::at(path)?.bytes.free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space(bytes: (u64, u64), inodes: Option<(u64, u64)>) -> DiskSpace {
        let amount = |(free, total)| Capacity { free, total };
        DiskSpace {
            bytes: amount(bytes),
            inodes: inodes.map(amount),
        }
    }

    #[test]
    fn inodes_are_kept_in_the_same_share() {
        let disk = space((900, 1000), Some((49, 100)));
        assert_eq!(disk.inode_reserve(500), Some(50));
        let shortage = disk.shortage(500).unwrap();
        assert_eq!((shortage.of, shortage.missing()), (Resource::Inodes, 1));
        assert_eq!(disk.shortage(490), None);
        assert_eq!(space((900, 1000), None).shortage(500), None, "as btrfs");
    }

    proptest! {
        #[test]
        fn no_reserve_is_never_short(free: u64, total: u64, inodes: Option<(u64, u64)>) {
            prop_assert_eq!(space((free, total), inodes).shortage(0), None);
        }

        #[test]
        fn shortage_names_missing_resources(free: u64, total: u64, inodes: Option<(u64, u64)>, min_free: u64) {
            if let Some(shortage) = space((free, total), inodes).shortage(min_free) {
                prop_assert!(shortage.missing() > 0);
                prop_assert!(shortage.of == Resource::Inodes || free < min_free);
            } else {
                prop_assert!(free >= min_free);
            }
        }
    }

    #[test]
    fn real_filesystem_has_free_space() {
        let space = DiskSpace::at(Path::new("/")).unwrap();
        assert!(space.bytes.total >= space.bytes.free && space.bytes.total > 0);
    }
}
