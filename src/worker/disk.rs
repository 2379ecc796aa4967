//! Filesystems on which a node needs space: those of its jobs, of podman's images and of its state.
//!
//! All calls here read the disk, and block while it hangs: see [`disk_probe`](super::disk_probe).

use crate::{
    api::problem::{Problem, ProblemKind},
    disk_space::{DiskSpace, Resource, Shortage},
};
use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Data of a node for which a directory needs space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StorageArea {
    /// Workspaces, logs and results of jobs.
    Jobs,
    /// Podman's graph root: images, and files that containers write outside of their workspace.
    Images,
    /// The data directory.
    State,
}

/// Directory that needs space.
#[derive(Debug)]
pub(super) struct StorageDir {
    pub(super) area: StorageArea,
    pub(super) path: PathBuf,
}

/// Filesystems of a node, and the reserve that stays free on each.
pub(super) struct Disk {
    pub(super) jobs_dir: PathBuf,
    dirs: [StorageDir; 3],
    pub(super) min_free: u64,
}

impl StorageArea {
    /// Name in metrics and messages.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Images => "images",
            Self::State => "state",
        }
    }
}

impl StorageDir {
    pub(super) fn space(&self) -> io::Result<DiskSpace> {
        DiskSpace::at(&self.path)
    }

    /// Number of its device: the same for two directories that share their space. Subvolumes of btrfs do, though
    /// their files have other numbers.
    pub(super) fn device(&self) -> io::Result<u64> {
        let mount = statx(CWD, &self.path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        match device_of(&mounts, mount.stx_mnt_id) {
            Some(device) => Ok(device),
            // Kernels before 5.8 have no mount id.
            None => Ok(fs::metadata(&self.path)?.dev()),
        }
    }

    fn describe(&self, shortage: &Shortage) -> String {
        let advice = match (self.area, shortage.of) {
            (StorageArea::Images, _) => "free space (podman image prune --all)",
            (_, Resource::Bytes) => "free space there",
            (_, Resource::Inodes) => "remove files there",
        };
        format!(
            "too little space in {} ({}): {shortage}; {advice}, or lower --min-free-disk",
            self.path.display(),
            self.area.as_str(),
        )
    }
}

/// Device of a mount in the text of `mountinfo`.
fn device_of(mounts: &str, id: u64) -> Option<u64> {
    let id = id.to_string();
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find_map(|mut fields| {
        let is_it = fields.next() == Some(&id);
        let (major, minor) = fields.nth(1).filter(|_| is_it)?.split_once(':')?;
        Some(makedev(major.parse().ok()?, minor.parse().ok()?))
    })
}

impl Disk {
    pub(super) fn new(jobs_dir: &Path, graph_root: &Path, state: &Path, min_free: u64) -> Self {
        let dir = |area, path: &Path| StorageDir {
            area,
            path: path.to_owned(),
        };
        Self {
            jobs_dir: jobs_dir.to_owned(),
            dirs: [
                dir(StorageArea::Jobs, jobs_dir),
                dir(StorageArea::Images, graph_root),
                dir(StorageArea::State, state),
            ],
            min_free,
        }
    }

    pub(super) fn dir(&self, area: StorageArea) -> &StorageDir {
        let [jobs, images, state] = &self.dirs;
        match area {
            StorageArea::Jobs => jobs,
            StorageArea::Images => images,
            StorageArea::State => state,
        }
    }

    /// Directories with less free space than the reserve. An unreadable one counts as having space; it is
    /// [`ensure_space`](Self::ensure_space) that fails for it.
    pub(super) fn shortages(&self) -> impl Iterator<Item = (&StorageDir, Shortage)> {
        self.dirs
            .iter()
            .filter_map(|dir| Some((dir, dir.space().ok()?.shortage(self.min_free)?)))
    }

    /// Space in each directory, without those that can't be read.
    pub(super) fn spaces(&self) -> Vec<(StorageArea, DiskSpace)> {
        let spaces = self.dirs.iter();
        spaces
            .filter_map(|dir| Some((dir.area, dir.space().ok()?)))
            .collect()
    }

    /// Whether the filesystem of the jobs has less free space than the reserve.
    pub(super) fn is_jobs_dir_short(&self) -> bool {
        let space = self.dir(StorageArea::Jobs).space();
        space.map_or(true, |space| space.shortage(self.min_free).is_some())
    }

    /// Fails where there is no space for one more job.
    pub(super) fn ensure_space(&self) -> Result<(), Problem> {
        let refuse = |detail| Err(Problem::new(ProblemKind::InsufficientStorage, detail));
        for dir in &self.dirs {
            match dir.space() {
                Ok(space) => {
                    if let Some(shortage) = space.shortage(self.min_free) {
                        return refuse(dir.describe(&shortage));
                    }
                }
                Err(error) => {
                    return refuse(format!(
                        "can't read the free space of {} ({}): {error}; make sure that the node's user may enter that directory",
                        dir.path.display(),
                        dir.area.as_str()
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subvolumes_share_device() {
        let mounts = "29 1 0:25 /@ / rw shared:1 - btrfs /dev/vda2 rw,subvol=/@\n\
                      36 29 0:25 /@home /home rw - btrfs /dev/vda2 rw\n\
                      40 29 8:1 / /boot rw - ext4 /dev/sda1 rw\n";
        assert_eq!(device_of(mounts, 29), Some(makedev(0, 25)));
        assert_eq!(device_of(mounts, 29), device_of(mounts, 36));
        assert_eq!(device_of(mounts, 40), Some(makedev(8, 1)));
        assert_eq!(device_of(mounts, 25), None);
    }

    #[test]
    fn directories_on_one_filesystem_share_device() {
        let home = tempfile::tempdir().unwrap();
        let dir = |path: &Path| StorageDir {
            area: StorageArea::Jobs,
            path: path.to_owned(),
        };
        let device = |path: &Path| dir(path).device().unwrap();
        fs::create_dir(home.path().join("a")).unwrap();
        assert_eq!(device(home.path()), device(&home.path().join("a")));
        assert_ne!(device(home.path()), device(Path::new("/proc")));
    }
}
