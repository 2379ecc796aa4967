//! The filesystems on which a node needs room: those of its jobs, of podman's images and of its state.

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

/// Use that a node makes of a filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StorageArea {
    /// Workspaces, logs and results of jobs.
    Jobs,
    /// Podman's graph root: images, and what containers write outside of their workspace.
    Images,
    /// The data directory.
    State,
}

/// One directory that needs room.
#[derive(Debug)]
pub(super) struct StorageDir {
    pub(super) area: StorageArea,
    pub(super) path: PathBuf,
}

/// All filesystems that matter to a node, and the reserve that is kept on each.
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

    /// Number of the device that it is on: the same for two dirs that share their room, as subvolumes of btrfs
    /// do, which have numbers of their own only for files.
    pub(super) fn device(&self) -> io::Result<u64> {
        let mount = statx(CWD, &self.path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        match device_of(&mounts, mount.stx_mnt_id) {
            Some(device) => Ok(device),
            // A kernel before 5.8 doesn't tell the mount.
            None => Ok(fs::metadata(&self.path)?.dev()),
        }
    }

    fn describe(&self, shortage: &Shortage) -> String {
        let advice = match (self.area, shortage.of) {
            (StorageArea::Images, _) => "make room (podman image prune --all)",
            (_, Resource::Bytes) => "make room there",
            (_, Resource::Inodes) => "remove files there",
        };
        format!(
            "too little room in {} ({}): {shortage}; {advice}, or set a lower --min-free-disk",
            self.path.display(),
            self.area.as_str(),
        )
    }
}

/// Device of a mount, by the list of all.
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

    /// Places with less room than the reserve. One that can't be asked counts as having room: whoever
    /// takes a job asks, and says so.
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

    /// Whether the filesystem of the jobs has less room than the reserve.
    pub(super) fn is_jobs_dir_short(&self) -> bool {
        let space = self.dir(StorageArea::Jobs).space();
        space.map_or(true, |space| space.shortage(self.min_free).is_some())
    }

    /// Whether there is room for one more job.
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
                        "the room in {} ({}) is unknown: {error}; let the node's user look into that directory",
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
    fn subvolumes_share_a_device() {
        let mounts = "29 1 0:25 /@ / rw shared:1 - btrfs /dev/vda2 rw,subvol=/@\n\
                      36 29 0:25 /@home /home rw - btrfs /dev/vda2 rw\n\
                      40 29 8:1 / /boot rw - ext4 /dev/sda1 rw\n";
        assert_eq!(device_of(mounts, 29), Some(makedev(0, 25)));
        assert_eq!(device_of(mounts, 29), device_of(mounts, 36));
        assert_eq!(device_of(mounts, 40), Some(makedev(8, 1)));
        assert_eq!(device_of(mounts, 25), None);
    }

    #[test]
    fn places_on_one_filesystem_share_a_device() {
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
