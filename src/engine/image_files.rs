//! Check of an image's files, before podman is asked to run the image.
//!
//! Podman itself opens files of an image, outside of every sandbox and with the node's rights, to resolve its `USER`:
//! a FIFO as `/etc/passwd` blocks it forever, a huge file is read into memory, and a device node is the host's device.
//! No flag turns that off. So the files of each image are checked once before its first sandbox; the files of an id
//! never change. Annotations and labels are checked in [`image_metadata`](super::image_metadata).

use super::{Engine, EngineError, Images, call};
use crate::background;
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, statat,
    },
    io::Errno,
};
use std::{collections::HashMap, io, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

/// First argument that makes the binary check an image, inside podman's user namespace.
pub const CHECK_IMAGE_ARGUMENT: &str = "__check-image";

const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// Results that are cached. When there are more, all are dropped.
const MAX_CACHED_RESULTS: usize = 4096;
/// Size of the largest account file that podman gets to read.
const MAX_ACCOUNT_FILE_BYTES: i64 = 4 << 20;
/// Files that podman reads to resolve the user, its groups and its home.
const ACCOUNT_FILES: [&str; 2] = ["etc/passwd", "etc/group"];
/// Files that podman mounts over, in any order, so that each attempt would fail for another reason.
const MOUNTED_FILES: [&str; 4] = [
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "run/.containerenv",
];
/// Directories where a runtime mounts the kernel's file systems, following links.
const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
/// Results by image id: the fault, if there is one.
pub(super) type FileCheckCache = HashMap<String, Option<String>>;

impl Images {
    /// Reason in an image's files why no sandbox may run it. `init` is a copy of our binary.
    pub async fn files_fault(
        self: &Arc<Self>,
        init: &Path,
        id: &str,
    ) -> Result<Option<String>, EngineError> {
        if let Some(known) = self.checked().get(id) {
            return Ok(known.clone());
        }
        let (images, init, id) = (Arc::clone(self), init.to_owned(), id.to_owned());
        // A task of its own, so that a job that is canceled meanwhile leaves no image mounted.
        let task = background::spawn("check_image_files", async move {
            let fault = images.engine.image_fault(&init, &id).await?;
            let mut checked = images.checked();
            if checked.len() >= MAX_CACHED_RESULTS {
                checked.clear();
            }
            checked.insert(id, fault.clone());
            Ok(fault)
        });
        task.await.map_err(io::Error::from)?
    }

    fn checked(&self) -> parking_lot::MutexGuard<'_, FileCheckCache> {
        self.checked.lock()
    }
}

impl Engine {
    async fn image_fault(&self, init: &Path, id: &str) -> Result<Option<String>, EngineError> {
        let root = self.mount_image(id).await?;
        let fault = self.files_fault(init, root.trim()).await;
        let unmounted = self.unmount_image(id).await;
        let fault = fault?;
        unmounted.map(|()| fault)
    }

    async fn files_fault(&self, init: &Path, root: &str) -> Result<Option<String>, EngineError> {
        if !self.info.rootless {
            let root = root.to_owned();
            let check = tokio::task::spawn_blocking(move || files_fault(root.as_ref()));
            return Ok(check.await.map_err(io::Error::from)??);
        }
        // The mount is visible only inside podman's user namespace, and so are files of its users.
        let init = init.to_string_lossy();
        let check = ["unshare", &init, CHECK_IMAGE_ARGUMENT, root];
        let answer = call(&self.program, &check, CHECK_TIMEOUT, |_| ()).await?;
        Ok(Some(answer).filter(|fault| !fault.is_empty()))
    }
}

/// Fault in the files of an image that is mounted at `root`, if there is one. No file is opened for reading: `O_PATH`
/// has no effect on FIFOs and devices. No link leads out of the image.
pub fn files_fault(root: &Path) -> io::Result<Option<String>> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, root, directory, Mode::empty())?;
    for name in MOUNT_POINTS {
        match statat(&root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                return Ok(Some(format!("its /{name} is not a directory")));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for name in ACCOUNT_FILES {
        let fault = match stat_within(&root, name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                "not a regular file".to_owned()
            }
            Some(stat) if stat.st_size > MAX_ACCOUNT_FILE_BYTES => {
                format!("larger than {} MiB", MAX_ACCOUNT_FILE_BYTES >> 20)
            }
            _ => continue,
        };
        return Ok(Some(format!("its /{name} is {fault}")));
    }
    for name in MOUNTED_FILES {
        let stat = stat_within(&root, name)?;
        if stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
            return Ok(Some(format!("its /{name} is a directory")));
        }
    }
    Ok(None)
}

/// File that `name` leads to, with links resolved as if `root` were `/`; `None` where it leads nowhere.
fn stat_within(root: &OwnedFd, name: &str) -> rustix::io::Result<Option<Stat>> {
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root, name, path, Mode::empty(), within) {
        // Linux before 5.6: no link is followed. One to a file is no regular file, and one to a directory an error.
        Err(Errno::NOSYS) => {
            let (parent, name) = name.split_once('/').unwrap_or((".", name));
            let unfollowed = path | OFlags::NOFOLLOW;
            match openat(root, parent, unfollowed, Mode::empty()) {
                Ok(parent) => openat(parent, name, unfollowed, Mode::empty()),
                missing => missing,
            }
        }
        opened => opened,
    };
    match file.and_then(fstat) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        found => found.map(Some),
    }
}

/// Error message of a job whose image can't be run, with the reason.
pub fn not_runnable(reason: &str) -> String {
    format!("the image can't be run: {reason}; correct the image, or use another one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    /// Fault of an image that `change` has prepared.
    fn found(change: impl FnOnce(&Path)) -> Option<String> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        change(root.path());
        files_fault(root.path()).unwrap()
    }

    fn fifo(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    }

    #[test]
    fn ordinary_images_have_no_fault() {
        assert_eq!(found(|_| ()), None);
        assert_eq!(
            found(|root| fs::remove_dir(root.join("etc")).unwrap()),
            None
        );
        let linked = |root: &Path| {
            fs::create_dir(root.join("usr")).unwrap();
            fs::write(root.join("usr/passwd"), "root:x:0:0::/:").unwrap();
            symlink("/usr/passwd", root.join("etc/passwd")).unwrap();
            symlink("/nowhere", root.join("etc/group")).unwrap();
            symlink("hosts", root.join("etc/hosts")).unwrap();
        };
        assert_eq!(found(linked), None);
    }

    #[test]
    fn unusual_files_in_image_are_found() {
        let at = |name| move |root: &Path| fifo(&root.join(name));
        for name in ["etc/passwd", "etc/group", "dev", "proc", "sys"] {
            assert!(found(at(name)).is_some_and(|fault| fault.contains(name)));
        }
        let linked = |root: &Path| {
            fifo(&root.join("pipe"));
            symlink("../../../../pipe", root.join("etc/passwd")).unwrap();
        };
        assert!(found(linked).is_some());
        let hosts = |root: &Path| fs::create_dir(root.join("etc/hosts")).unwrap();
        assert!(found(hosts).is_some());
        let huge = |root: &Path| {
            let file = fs::File::create(root.join("etc/group")).unwrap();
            file.set_len(1 << 40).unwrap();
        };
        assert!(found(huge).is_some());
        // The host's own is a device; the image has none there.
        let outside = |root: &Path| symlink("/dev/null", root.join("etc/passwd")).unwrap();
        assert_eq!(found(outside), None);
    }
}
