//! Disk space, and the data directory.

use super::{Check, Status};
use crate::{
    cli,
    data_dir::{self, DataDirError},
    disk_space::{DiskSpace, Resource},
    worker,
};
use rustix::fs::{Access, access};
use std::{
    env, fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

const GIB: u64 = 1 << 30;
/// Less free space fails: an image or a write of the database may not fit.
const MIN_FREE_BYTES: u64 = GIB;
/// Less free space warns: a few images or one model fill it.
const LOW_FREE_BYTES: u64 = 10 * GIB;

/// Path of a program in PATH.
pub(super) fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
}

/// A directory and the free space that it needs.
struct Location {
    place: String,
    space: io::Result<DiskSpace>,
    /// Free bytes below which a role does not work; a corresponding share of the inodes is needed, too.
    needed: u64,
}

/// Checks the free space for images, state and jobs.
pub(super) fn disk(images: Option<&Path>, data_dir: &Path, storage: &cli::StorageFlags) -> Check {
    let for_jobs = storage
        .min_free_disk
        .unwrap_or(worker::StorageSettings::default().min_free);
    // A node accepts no job while one of the three has less.
    let needed = for_jobs.max(MIN_FREE_BYTES);
    let mut places = vec![
        (images, "images", needed),
        (Some(data_dir), "state", needed),
    ];
    if let Some(jobs_dir) = storage.jobs_dir.as_deref() {
        places.push((Some(jobs_dir), "jobs", for_jobs));
    }
    let locations: Vec<Location> = places
        .into_iter()
        .filter_map(|(path, what, needed)| {
            let path = path?;
            Some(Location {
                place: format!("{} ({what})", path.display()),
                space: DiskSpace::at(existing(path)),
                needed,
            })
        })
        .collect();
    let check = disk_verdict(&locations);
    if images.is_some() {
        return check;
    }
    Check {
        detail: format!("{}; podman's directory of images is unknown", check.detail),
        ..check
    }
}

fn disk_verdict(locations: &[Location]) -> Check {
    const NAME: &str = "disk";
    let detail: Vec<String> = locations.iter().map(Location::describe).collect();
    let detail = detail.join(", ");
    let worst = locations.iter().map(Location::status);
    match worst.max_by_key(|status| *status as u8) {
        None | Some(Status::Ok) => Check::ok(NAME, detail),
        Some(bad) => {
            let effect = match bad {
                Status::Fail => "; nodes accept no jobs",
                _ => "",
            };
            Check::bad(
                NAME,
                bad,
                format!("{detail}{effect}"),
                "free disk space (podman image prune --all removes unused images), choose another --data-dir or --jobs-dir, or lower --min-free-disk",
            )
        }
    }
}

impl Location {
    fn describe(&self) -> String {
        let place = &self.place;
        let space = match &self.space {
            Ok(space) => space,
            Err(error) => return format!("free space of {place} is unknown: {error}"),
        };
        let Some(shortage) = space.shortage(self.needed) else {
            return format!("{} free in {place}", gibibytes(space.bytes.free));
        };
        let [free, needed] = [shortage.free, shortage.reserve].map(|number| match shortage.of {
            Resource::Bytes => gibibytes(number),
            Resource::Inodes => shortage.of.amount(number),
        });
        format!("{free} free in {place}, but {needed} needed")
    }

    fn status(&self) -> Status {
        match &self.space {
            Ok(space) if space.shortage(self.needed).is_some() => Status::Fail,
            Ok(space) if space.bytes.free >= LOW_FREE_BYTES => Status::Ok,
            _ => Status::Warn,
        }
    }
}

/// Size in tenths of a GiB, rounded down: 0.9 is less than 1.
fn gibibytes(bytes: u64) -> String {
    let tenths = u128::from(bytes) * 10 / u128::from(GIB);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

/// The path itself, or its nearest parent that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

/// State of the data directory's path.
#[derive(Debug)]
pub(super) enum DataDirState {
    /// Missing; it can be created.
    Missing,
    /// Missing; this parent is not writable.
    Unmakable(PathBuf),
    /// Not a directory.
    SomethingElse,
    /// Owned by this other user.
    NotOurs(u32),
    /// Not fit for state.
    Unfit(DataDirError),
    /// Ours, but not writable.
    Unwritable,
    /// Ours and writable, with this mode.
    Ours(u32),
    /// It can't be inspected.
    Unseen(io::Error),
}

impl DataDirState {
    pub(super) fn look(path: &Path) -> Self {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = existing(path);
                let writable = above.is_dir() && is_writable(above);
                return if writable {
                    Self::Missing
                } else {
                    Self::Unmakable(above.to_owned())
                };
            }
            Err(error) => return Self::Unseen(error),
        };
        if !meta.is_dir() {
            Self::SomethingElse
        } else if meta.uid() != rustix::process::geteuid().as_raw() {
            Self::NotOurs(meta.uid())
        } else if let Err(unfit) = data_dir::ensure_usable(path) {
            Self::Unfit(unfit)
        } else if !is_writable(path) {
            Self::Unwritable
        } else {
            Self::Ours(meta.permissions().mode() & 0o7777)
        }
    }

    pub(super) fn verdict(&self, path: &Path) -> Check {
        const NAME: &str = "data-dir";
        const OTHER: &str = "choose another with --data-dir";
        let path = path.display();
        match self {
            Self::Missing => Check::ok(NAME, format!("{path} will be created")),
            Self::Unmakable(above) => Check::fail(
                NAME,
                format!(
                    "{path} can't be created: {} is not writable",
                    above.display()
                ),
                OTHER,
            ),
            Self::SomethingElse => Check::fail(NAME, format!("{path} is not a directory"), OTHER),
            Self::NotOurs(uid) => Check::fail(
                NAME,
                format!("{path} belongs to uid {uid}, not to this user"),
                format!("run cynode as that user, or {OTHER}"),
            ),
            Self::Unfit(unfit) => Check::fail(NAME, unfit.to_string(), OTHER),
            Self::Unwritable => Check::fail(
                NAME,
                format!("{path} is not writable"),
                format!("chmod u+rwx {path}; if its file system is read-only, {OTHER}"),
            ),
            Self::Ours(mode) if mode & 0o077 != 0 => Check::warn(
                NAME,
                format!("{path} is open to other users: mode {mode:04o}"),
                format!(
                    "cynode doctor --fix, or chmod 700 {path}; a role does this at its start, too"
                ),
            ),
            Self::Ours(mode) => Check::ok(NAME, format!("{path}, mode {mode:04o}")),
            Self::Unseen(error) => {
                Check::fail(NAME, format!("{path} can't be inspected: {error}"), OTHER)
            }
        }
    }
}

fn is_writable(directory: &Path) -> bool {
    access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// Checks the data directory.
pub(super) fn data_dir(path: &Path) -> Check {
    DataDirState::look(path).verdict(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_space::Capacity;

    fn room(bytes: u64, needed: u64) -> Location {
        Location {
            place: "/x".to_owned(),
            space: Ok(with_free(bytes, None)),
            needed,
        }
    }

    fn with_free(bytes: u64, inodes: Option<Capacity>) -> DiskSpace {
        let bytes = Capacity {
            free: bytes,
            total: u64::MAX,
        };
        DiskSpace { bytes, inodes }
    }

    #[test]
    fn inode_shortage_fails_check() {
        let amount = |free, total| Capacity { free, total };
        let space = DiskSpace {
            bytes: amount(20 * GIB, 40 * GIB),
            inodes: Some(amount(3, 400)),
        };
        let room = Location {
            place: "/x".to_owned(),
            space: Ok(space),
            needed: GIB,
        };
        assert_eq!(room.status(), Status::Fail);
        assert_eq!(room.describe(), "3 inodes free in /x, but 10 inodes needed");
    }

    #[test]
    fn disk_space_limits_are_1_and_10_gib() {
        for (bytes, status) in [
            (0, Status::Fail),
            (GIB - 1, Status::Fail),
            (GIB, Status::Warn),
            (10 * GIB - 1, Status::Warn),
            (10 * GIB, Status::Ok),
            (u64::MAX, Status::Ok),
        ] {
            assert_eq!(room(bytes, GIB).status(), status, "{bytes}");
        }
        assert_eq!(room(20 * GIB, 30 * GIB).status(), Status::Fail);
        assert_eq!(
            room(20 * GIB, 30 * GIB).describe(),
            "20.0 GiB free in /x, but 30.0 GiB needed"
        );
        assert_eq!(gibibytes(GIB - 1), "0.9 GiB");
        assert_eq!(gibibytes(GIB * 21 / 2), "10.5 GiB");
    }

    #[test]
    fn fullest_filesystem_decides() {
        let room = |bytes| room(bytes, GIB);
        let unknown = || Location {
            place: "/y".to_owned(),
            space: Err(io::Error::other("why")),
            needed: GIB,
        };
        let status = |rooms: &[_]| disk_verdict(rooms).status;
        assert_eq!(status(&[room(20 * GIB), room(20 * GIB)]), Status::Ok);
        assert_eq!(status(&[room(20 * GIB), room(2 * GIB)]), Status::Warn);
        assert_eq!(status(&[room(5), room(20 * GIB)]), Status::Fail);
        assert_eq!(status(&[room(20 * GIB), unknown()]), Status::Warn);
        assert_eq!(status(&[room(5), unknown()]), Status::Fail);
        assert_eq!(
            disk_verdict(&[room(20 * GIB), unknown()]).detail,
            "20.0 GiB free in /x, free space of /y is unknown: why"
        );
    }

    #[test]
    fn data_directory_is_own_and_private() {
        let home = tempfile::tempdir().unwrap();
        let inside = |name: &str| home.path().join(name);
        let check = data_dir(&inside("a/b/c"));
        assert_eq!(check.status, Status::Ok, "{check:?}");
        assert!(check.detail.ends_with("will be created"), "{check:?}");
        fs::write(inside("file"), "").unwrap();
        assert_eq!(data_dir(&inside("file")).status, Status::Fail);
        assert_eq!(data_dir(&inside("file/below")).status, Status::Fail);
        fs::create_dir(inside("open")).unwrap();
        for (mode, status) in [
            (0o755, Status::Warn),
            (0o710, Status::Warn),
            (0o700, Status::Ok),
        ] {
            fs::set_permissions(inside("open"), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(data_dir(&inside("open")).status, status, "{mode:o}");
        }
        let foreign = DataDirState::NotOurs(7).verdict(Path::new("/x"));
        assert_eq!((foreign.status, foreign.fixed), (Status::Fail, false));
    }

    #[test]
    fn programs_are_found_in_path() {
        assert!(in_path("sh").is_some());
        assert_eq!(in_path("no-such-program-anywhere"), None);
    }
}
