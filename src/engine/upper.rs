//! Upper directories: where a sandbox's writes outside of its workspace go.
//!
//! Podman removes a container's layer while it holds the lock of its whole storage. A job that leaves a million
//! files there would stop every start on the host until they are gone. So podman never has them: once init runs,
//! and before the command does, the upper directory moves out of podman's storage into a directory of ours, and an
//! empty one takes its place.
//!
//! ```text
//! <graph root>/overlay/<layer>/diff           empty, and podman's
//! <graph root>/cynode/<node>.<container>/    what the job writes, and the node's to remove
//! ```
//!
//! The kernel's overlay holds the directory itself and not its path, so that the sandbox doesn't see it. It works
//! for every end: whoever kills init, shim, worker or machine, podman has next to nothing to remove, and what is
//! in our directory and belongs to no container that runs is removed sooner or later.
//!
//! Where podman has another driver, or the directory can't be moved, podman removes what a job leaves, as it
//! always does.

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

/// The driver whose upper directories can be moved, and its directory below the graph root.
const OVERLAY_DRIVER: &str = "overlay";
/// Our directory below the graph root, for all nodes that share it.
const UPPERS_DIR: &str = "cynode";
/// Length of the name of a layer, in hexadecimal digits.
const LAYER_DIGITS: usize = 64;
const INSPECT_TIMEOUT: Duration = Duration::from_secs(30);

impl Engine {
    /// Has the upper directories of sandboxes kept as this node's.
    pub fn enable_upper_detach(&mut self, node_uuid: &str) {
        if self.info.graph_driver != OVERLAY_DRIVER {
            return;
        }
        let home = self.info.graph_root.join(UPPERS_DIR);
        match make_private_dir(&home) {
            Ok(()) => self.upper_owner = Some(node_uuid.to_owned()),
            Err(error) => {
                tracing::warn!(path = %home.display(), %error, "upper directories stay in podman's storage; large ones delay other jobs while podman removes them");
            }
        }
    }

    /// Moves the upper directory of a sandbox out of podman's storage; `reported` is how init names it. False
    /// where it stays.
    pub fn detach_upper(&self, container: &str, reported: &[u8]) -> bool {
        let layer = str::from_utf8(reported).ok().and_then(layer_of);
        let (Some(name), Some(layer)) = (self.upper_name(container), layer) else {
            return false;
        };
        let from = Path::new(OVERLAY_DRIVER).join(layer).join("diff");
        let to = Path::new(UPPERS_DIR).join(name);
        let root = &self.info.graph_root;
        let detached = match detach(root, &from, &to) {
            // Somebody removed our directory, as `podman system reset` does.
            Err(Errno::NOENT) => make_private_dir(&root.join(UPPERS_DIR))
                .and_then(|()| Ok(detach(root, &from, &to)?)),
            done => done.map_err(io::Error::from),
        };
        if let Err(error) = &detached {
            tracing::info!(container, %error, "an upper directory stays in podman's storage");
        }
        detached.is_ok()
    }

    /// The upper directory of a container, which holds what its processes wrote outside of its volumes. `None`
    /// where there is no such container, or podman's storage has no such directories.
    pub async fn upper_dir(&self, container: &str) -> Result<Option<PathBuf>, EngineError> {
        if let Some(detached) = self.detached_upper(container) {
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
        // Where there is none, Go prints nothing, or `<no value>`.
        let path = Some(answer.trim()).filter(|path| path.starts_with('/'));
        Ok(path.map(PathBuf::from))
    }

    /// The name of a container's upper directory in our directory.
    fn upper_name(&self, container: &str) -> Option<String> {
        let node_uuid = self.upper_owner.as_ref()?;
        Some(format!("{node_uuid}.{container}"))
    }

    /// The upper directory of a container in our directory; `None` where it isn't there.
    pub fn detached_upper(&self, container: &str) -> Option<PathBuf> {
        let name = self.upper_name(container)?;
        let path = self.info.graph_root.join(UPPERS_DIR).join(name);
        path.exists().then_some(path)
    }

    /// All upper directories of this node in our directory, with the names of their containers.
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

    /// The upper directories in our directory that are of other nodes, and of no container that podman has.
    /// A node that uses this podman still may be about to remove them.
    pub async fn orphaned_uppers(&self) -> Result<Vec<PathBuf>, EngineError> {
        let Some(prefix) = self.upper_name("") else {
            return Ok(Vec::new());
        };
        let list = ["ps", "--all", "--format={{.Names}}"];
        let containers = self.call(&list, INSPECT_TIMEOUT).await?;
        let mut strays = Vec::new();
        for entry in fs::read_dir(self.info.graph_root.join(UPPERS_DIR))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let container = name.split_once('.').map_or("", |(_, container)| container);
            if !name.starts_with(&prefix) && !containers.lines().any(|known| known == container) {
                strays.push(entry.path());
            }
        }
        Ok(strays)
    }
}

/// The layer of which `upper` is the upper directory. Nothing else of what the path says is used.
fn layer_of(upper: &str) -> Option<&str> {
    let layer = Path::new(upper.strip_suffix("/diff")?).file_name()?;
    let layer = layer.to_str()?;
    let is_layer = layer.len() == LAYER_DIGITS && layer.bytes().all(|c| c.is_ascii_hexdigit());
    is_layer.then_some(layer)
}

/// Moves a directory, and leaves an empty one in its place. Both paths are relative to `root`.
fn detach(root: &Path, from: &Path, to: &Path) -> rustix::io::Result<()> {
    let plain = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let top = openat(CWD, root, plain, Mode::empty())?;
    match detach_at(&top, from, to) {
        // Podman mounts its directory of layers over itself, and nothing moves from one mount to another. In a
        // copy of the mount below, both are in one.
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

/// Moves a directory that not even its owner may write to, as the root of some images.
fn rename_closed(top: impl AsFd, from: &Path, to: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(&top, from, flags, Mode::empty())?;
    let mode = Mode::from_raw_mode(fstat(&directory)?.st_mode);
    fchmod(&directory, mode | Mode::RWXU)?;
    let renamed = renameat(&top, from, &top, to);
    // The sandbox is to see its root as the image has it.
    fchmod(&directory, mode)?;
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_layer_is_taken_from_a_path() {
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
