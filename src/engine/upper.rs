//! Upper directories: where a sandbox's writes outside of its workspace go.
//!
//! Podman removes a container's layer while it holds the lock of its whole storage, so that a job that leaves a million
//! files there would block every start on the host until they are removed. Podman must never have them. So once init
//! runs, and before the command does, the upper directory is moved out of podman's storage into a directory of ours,
//! and an empty one takes its place.
//!
//! ```text
//! <graph root>/overlay/<layer>/diff           empty, and podman's
//! <graph root>/cynode/<node>.<container>/    the job's writes, which the node removes
//! ```
//!
//! The kernel's overlay holds the directory itself and not its path, so that the sandbox doesn't notice. This works
//! however the sandbox ends: whether init, shim, worker or machine is killed, podman has next to nothing to remove,
//! and a directory of ours that belongs to no running container is removed sooner or later.
//!
//! With another storage driver, or where the directory can't be moved, podman removes a job's files itself.

use super::{Engine, EngineError};
use crate::data_dir::make_private_dir;
use rustix::{
    fs::{CWD, Mode, OFlags, fchmod, fstat, mkdirat, openat, renameat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};
use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::task::spawn_blocking;

/// Storage driver whose upper directories can be moved, and its directory below the graph root.
const OVERLAY_DRIVER: &str = "overlay";
/// Directory of detached uppers below the graph root, for all nodes that share it.
const UPPERS_DIR: &str = "cynode";
/// Length of the name of a layer, in hexadecimal digits.
const LAYER_DIGITS: usize = 64;
const INSPECT_TIMEOUT: Duration = Duration::from_secs(30);

impl Engine {
    /// Makes this node the owner of detached upper directories. Without the driver or the directory for it, they stay
    /// in podman's storage.
    pub fn enable_upper_detach(&mut self, node_uuid: &str) {
        if !self.has_uppers() {
            return;
        }
        let home = self.info.graph_root.join(UPPERS_DIR);
        match make_private_dir(&home) {
            Ok(()) => self.upper_owner = Some(node_uuid.to_owned()),
            Err(error) => {
                tracing::warn!(path = %home.display(), %error, "upper directories stay in podman's storage; removing a large one will delay other jobs");
            }
        }
    }

    /// Whether podman's storage driver has upper directories.
    pub fn has_uppers(&self) -> bool {
        self.info.graph_driver == OVERLAY_DRIVER
    }

    /// Moves the upper directory of a sandbox out of podman's storage; `reported` is its path as init reports it.
    /// Returns false where it stays.
    pub fn detach_upper(&self, container: &str, reported: &[u8]) -> bool {
        let layer = str::from_utf8(reported).ok().and_then(layer_of);
        let (Some(name), Some(layer)) = (self.upper_name(container), layer) else {
            return false;
        };
        let from = Path::new(OVERLAY_DRIVER).join(layer).join("diff");
        let to = Path::new(UPPERS_DIR).join(name);
        let root = &self.info.graph_root;
        let detached = match detach(root, &from, &to) {
            // Our directory was removed, as by `podman system reset`.
            Err(Errno::NOENT) => make_private_dir(&root.join(UPPERS_DIR))
                .and_then(|()| Ok(detach(root, &from, &to)?)),
            done => done.map_err(io::Error::from),
        };
        if let Err(error) = &detached {
            tracing::info!(container, %error, "upper directory stays in podman's storage");
        }
        detached.is_ok()
    }

    /// Upper directory of a container, with the writes of its processes outside of its volumes. `None` where the
    /// container doesn't exist, or podman's storage driver has no upper directories.
    pub async fn upper_dir(&self, container: &str) -> Result<Option<PathBuf>, EngineError> {
        let (engine, name) = (self.clone(), container.to_owned());
        let detached = spawn_blocking(move || engine.detached_upper(&name));
        if let Some(detached) = detached.await.map_err(io::Error::from)? {
            return Ok(Some(detached));
        }
        let format = "--format={{index .GraphDriver.Data \"UpperDir\"}}";
        let arguments = ["container", "inspect", format, container];
        let answer = match self.call(&arguments, INSPECT_TIMEOUT).await {
            Err(EngineError::Failed { message, .. }) if message.contains("no such container") => {
                return Ok(None);
            }
            answer => answer?,
        };
        // For a missing value, Go prints nothing or `<no value>`.
        let path = Some(answer.trim()).filter(|path| path.starts_with('/'));
        Ok(path.map(PathBuf::from))
    }

    /// Name of a container's detached upper directory.
    fn upper_name(&self, container: &str) -> Option<String> {
        let node_uuid = self.upper_owner.as_ref()?;
        Some(format!("{node_uuid}.{container}"))
    }

    /// Detached upper directory of a container; `None` where it doesn't exist.
    pub fn detached_upper(&self, container: &str) -> Option<PathBuf> {
        let name = self.upper_name(container)?;
        let path = self.info.graph_root.join(UPPERS_DIR).join(name);
        path.exists().then_some(path)
    }

    /// All detached upper directories of this node, each with the name of its container.
    pub fn detached_uppers(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let Some(prefix) = self.upper_name("") else {
            return Ok(Vec::new());
        };
        let mut uppers = Vec::new();
        for entry in fs::read_dir(self.info.graph_root.join(UPPERS_DIR))? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(container) = name.to_str().and_then(|name| name.strip_prefix(&prefix)) {
                uppers.push((container.to_owned(), entry.path()));
            }
        }
        Ok(uppers)
    }

    /// Detached upper directories of other nodes whose container is gone. Another node that still uses this podman
    /// may be about to remove them.
    pub async fn orphaned_uppers(&self) -> Result<Vec<PathBuf>, EngineError> {
        let Some(prefix) = self.upper_name("") else {
            return Ok(Vec::new());
        };
        let list = ["ps", "--all", "--format={{.Names}}"];
        let containers = self.call(&list, INSPECT_TIMEOUT).await?;
        let uppers = self.info.graph_root.join(UPPERS_DIR);
        let orphans = spawn_blocking(move || {
            let mut orphans = Vec::new();
            for entry in fs::read_dir(uppers)? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let container = name.split_once('.').map_or("", |(_, container)| container);
                let exists = containers.lines().any(|known| known == container);
                if !exists && !name.starts_with(&prefix) {
                    orphans.push(entry.path());
                }
            }
            io::Result::Ok(orphans)
        });
        Ok(orphans.await.map_err(io::Error::from)??)
    }
}

/// Layer whose upper directory this path names. Nothing else in the path is trusted.
fn layer_of(upper: &str) -> Option<&str> {
    let layer = Path::new(upper.strip_suffix("/diff")?).file_name()?;
    let layer = layer.to_str()?;
    let is_layer = layer.len() == LAYER_DIGITS && layer.bytes().all(|c| c.is_ascii_hexdigit());
    is_layer.then_some(layer)
}

/// Moves a directory and creates an empty one in its place. Both paths are relative to `root`.
fn detach(root: &Path, from: &Path, to: &Path) -> rustix::io::Result<()> {
    let plain = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let top = openat(CWD, root, plain, Mode::empty())?;
    match detach_at(&top, from, to) {
        // Podman mounts its directory of layers over itself, and a rename can't cross mounts. In a clone of the
        // mount below, both paths are in one mount.
        Err(Errno::XDEV) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            detach_at(&open_tree(CWD, root, flags)?, from, to)
        }
        done => done,
    }
}

fn detach_at(top: impl AsFd, from: &Path, to: &Path) -> rustix::io::Result<()> {
    match renameat(&top, from, &top, to) {
        Err(Errno::ACCESS) => rename_closed(&top, from, to)?,
        done => done?,
    }
    mkdirat(&top, from, Mode::RWXU)
}

/// Moves a directory that its owner may not write to, such as the root of some images.
fn rename_closed(top: impl AsFd, from: &Path, to: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(&top, from, flags, Mode::empty())?;
    let mode = Mode::from_raw_mode(fstat(&directory)?.st_mode);
    fchmod(&directory, mode | Mode::RWXU)?;
    let renamed = renameat(&top, from, &top, to);
    // The sandbox sees its root with the image's mode.
    fchmod(&directory, mode)?;
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_layer_is_read_from_path() {
        let layer = "0123456789abcdef".repeat(4);
        let of = |path: &str| layer_of(path).map(str::to_owned);
        for parent in ["/var/lib/containers/storage/overlay/", "", "/a,b/"] {
            assert_eq!(of(&format!("{parent}{layer}/diff")), Some(layer.clone()));
        }
        for path in ["", "/diff", "../../diff", "/overlay/l/diff"] {
            assert_eq!(of(path), None, "{path}");
        }
        assert_eq!(of(&format!("/{layer}/work")), None);
        assert_eq!(of(&format!("/{}x/diff", &layer[1..])), None);
    }
}
