//! Free space of filesystems: bytes and inodes.

use std::{fmt, io, path::Path};

/// Number of a filesystem's bytes or inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Number that is free to a process without privileges.
    pub free: u64,
    /// Number in all.
    pub total: u64,
}

/// Space of one filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    /// Bytes.
    pub bytes: Capacity,
    /// Inodes; `None` where their number has no limit, as on btrfs.
    pub inodes: Option<Capacity>,
}

/// Resource of which a filesystem can be short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// Space for contents.
    Bytes,
    /// Space for more files, however small.
    Inodes,
}

/// Shortage: a filesystem has less free than its reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// Resource that is short.
    pub of: Resource,
    /// Amount that is free.
    pub free: u64,
    /// Amount that has to be free.
    pub reserve: u64,
}

impl DiskSpace {
    /// Space of the filesystem of `path`.
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

    /// Reserve of inodes that goes with one of `min_free` bytes: the same share of all. So it fits
    /// filesystems with many inodes and with few, and no reserve of bytes means none of inodes.
    pub fn inode_reserve(&self, min_free: u64) -> Option<u64> {
        let total = u128::from(self.inodes?.total);
        let share = total * u128::from(min_free) / u128::from(self.bytes.total.max(1));
        u64::try_from(share.min(total)).ok()
    }

    /// Shortage where `min_free` bytes, and the same share of the inodes, have to be free.
    pub fn shortage(&self, min_free: u64) -> Option<Shortage> {
        self.shortage_with(min_free, 0)
    }

    /// Same as [`shortage`](Self::shortage), when few files take `coming` more bytes.
    pub fn shortage_with(&self, min_free: u64, coming: u64) -> Option<Shortage> {
        let short = |of, free, reserve| (free < reserve).then_some(Shortage { of, free, reserve });
        let reserve = min_free.saturating_add(coming);
        short(Resource::Bytes, self.bytes.free, reserve).or_else(|| {
            let reserve = self.inode_reserve(min_free)?;
            short(Resource::Inodes, self.inodes?.free, reserve)
        })
    }
}

impl Shortage {
    /// Amount that is missing.
    pub fn missing(&self) -> u64 {
        self.reserve.saturating_sub(self.free)
    }
}

impl Resource {
    /// Text for an amount.
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

/// Bytes that are free to this process on the filesystem of `path`.
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
    fn inode_reserve_has_same_share() {
        let disk = space((900, 1000), Some((49, 100)));
        assert_eq!(disk.inode_reserve(500), Some(50));
        let shortage = disk.shortage(500).unwrap();
        assert_eq!((shortage.of, shortage.missing()), (Resource::Inodes, 1));
        assert_eq!(disk.shortage(490), None);
        assert_eq!(
            space((900, 1000), None).shortage(500),
            None,
            "no inode counts, as with btrfs"
        );
    }

    #[test]
    fn coming_bytes_need_no_inodes() {
        let disk = space((900, 1000), Some((49, 100)));
        assert_eq!(disk.shortage_with(100, 800), None);
        let shortage = disk.shortage_with(100, 801).unwrap();
        assert_eq!((shortage.of, shortage.missing()), (Resource::Bytes, 1));
        assert_eq!(disk.shortage_with(500, 1).unwrap().of, Resource::Inodes);
    }

    proptest! {
        #[test]
        fn zero_reserve_is_never_short(free: u64, total: u64, inodes: Option<(u64, u64)>) {
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
