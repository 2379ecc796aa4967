//! Copy of this binary that sandboxes get as their init.
//!
//! A copy, named by its hash, so that an upgrade never replaces it under a running job. It is compared with this
//! binary at the start, and again before a sandbox is started where its file is not the one that was compared
//! last: a copy that was damaged, removed or lost its mode would end every job.

use crate::{
    data_dir::{make_private_dir, make_private_subdir},
    digest::sha256_hex,
    files::{Durability, replace_file_with_mode},
};
use parking_lot::Mutex;
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// Mode of the file: every user of a sandbox may run it, none may write it.
const INIT_MODE: u32 = 0o555;

/// Identity and times of a file: inode, size, mode, change of content, change of anything.
type Stamp = (u64, u64, u32, (i64, i64), (i64, i64));

/// The copy; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct InitCopy {
    path: PathBuf,
    /// Stamp of the file that was last compared with this binary.
    verified: Arc<Mutex<Option<Stamp>>>,
}

impl InitCopy {
    /// Makes the copy in `dir`, where there is none that is intact. Reads and writes the disk.
    pub(crate) fn install(dir: &Path) -> io::Result<Self> {
        make_private_dir(dir)?;
        let binary = read_own_binary()?;
        let copy = Self {
            path: dir.join(format!("init-{}", &sha256_hex(&binary)[..16])),
            verified: Arc::default(),
        };
        copy.verify(&binary)?;
        Ok(copy)
    }

    /// Path of the copy.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the copy where it differs from this binary.
    pub(crate) async fn ensure(&self) -> io::Result<()> {
        let copy = self.clone();
        let ensured = spawn_blocking(move || {
            if copy.is_verified() {
                return Ok(());
            }
            copy.verify(&read_own_binary()?)
        });
        ensured.await?
    }

    fn is_verified(&self) -> bool {
        let verified = *self.verified.lock();
        verified.is_some() && verified == self.stamp()
    }

    fn stamp(&self) -> Option<Stamp> {
        let file = fs::symlink_metadata(&self.path).ok()?;
        let (content, change) = (
            (file.mtime(), file.mtime_nsec()),
            (file.ctime(), file.ctime_nsec()),
        );
        Some((file.ino(), file.size(), file.mode(), content, change))
    }

    fn verify(&self, binary: &[u8]) -> io::Result<()> {
        let mut verified = self.verified.lock();
        // Taken before the comparison: a change meanwhile is seen by the next one.
        let stamp = self.stamp();
        if stamp.is_some() && is_intact(&self.path, binary) {
            *verified = stamp;
            return Ok(());
        }
        if stamp.is_some() {
            tracing::warn!(path = %self.path.display(), "copy of this binary for sandboxes was damaged; replaced");
        }
        self.write(binary)?;
        *verified = self.stamp();
        Ok(())
    }

    fn write(&self, binary: &[u8]) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        // Fails without its parent: a data directory that was moved is not made again.
        make_private_subdir(dir)?;
        replace_file_with_mode(&self.path, binary, INIT_MODE, Durability::Content)
    }
}

/// Whether a file has the content of this binary, and may be run by every user of a sandbox.
fn is_intact(path: &Path, binary: &[u8]) -> bool {
    let meta = fs::symlink_metadata(path);
    meta.is_ok_and(|meta| meta.is_file() && meta.mode() & 0o7777 == INIT_MODE)
        && fs::read(path).is_ok_and(|content| content == binary)
}

/// Content of this binary. Fails where it is not linked statically, since a sandbox has no libraries for it.
fn read_own_binary() -> io::Result<Vec<u8>> {
    let binary = fs::read("/proc/self/exe")?;
    if is_dynamic(&binary) {
        return Err(io::Error::other(
            "this cynode is linked dynamically and can't be the init of a sandbox; \
             build it with the project's .cargo/config.toml (make build), or use a release",
        ));
    }
    Ok(binary)
}

/// Whether an ELF file needs a dynamic linker (a `PT_INTERP` segment), by the layout of elf(5).
fn is_dynamic(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at + size)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_usize, |n, byte| n << 8 | usize::from(*byte)),
        )
    };
    let segments = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|n| number(start + n * size, 4))
            .collect::<Option<Vec<_>>>()
    };
    segments().is_none_or(|kinds| kinds.contains(&(PT_INTERP as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_binaries_are_recognised() {
        assert!(
            !is_dynamic(&fs::read("/proc/self/exe").unwrap()),
            "tests are built as the binary is"
        );
        assert!(is_dynamic(&fs::read("/bin/sh").unwrap()));
        assert!(is_dynamic(b"#!/bin/sh\n"));
    }
}
