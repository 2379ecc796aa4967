//! Move of the files that are collected from the workspace to the spool.

use super::{
    DIRECTORY as ARTIFACTS, file_name,
    skips::{Skip, Skips},
    walk::{Denial, open_directory},
};
use crate::{api::jobs::JobArtifact, disk_space::DiskSpace, files::copy_part};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, Stat, chmod, chownat, fstat, openat, renameat,
        statat, unlinkat,
    },
    io::Errno,
    process::{getegid, geteuid},
};
use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

/// Bytes that are copied between two checks of the disk.
const CHUNK_BYTES: u64 = 16 << 20;
/// Name of a file that is being copied; artifacts are named by hashes.
const COPY: &str = "copy";
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Terms of a transfer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Bytes that stay free on the disk where files are copied.
    pub(super) min_free: u64,
    /// Whether nothing is kept while the disk has less than that: what is kept of a job that has filled it would be
    /// missing to others.
    pub(super) may_have_filled_disk: bool,
    pub(super) denial: Denial,
}

/// Moves files to the spool, and returns those that are there: also those that an earlier collection has moved.
pub(super) fn take(
    spool: &Path,
    wanted: Vec<JobArtifact>,
    terms: Terms,
    skips: &mut Skips,
) -> io::Result<Vec<JobArtifact>> {
    let artifacts = openat(CWD, spool.join(ARTIFACTS), DIRECTORY, Mode::empty())?;
    let workspace = match openat(CWD, spool.join("workspace"), DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => None,
        opened => Some(opened?),
    };
    let transfer = Transfer {
        spool,
        artifacts,
        workspace,
        terms,
    };
    let mut taken = Vec::with_capacity(wanted.len());
    for artifact in wanted {
        match transfer.take(&artifact) {
            Ok(()) => taken.push(artifact),
            Err(error) if terms.denial.ends(&error) => return Err(error),
            Err(error) => skips.add(Skip::Failed(error.to_string()), artifact.path.as_bytes()),
        }
    }
    Ok(taken)
}

struct Transfer<'a> {
    spool: &'a Path,
    artifacts: OwnedFd,
    workspace: Option<OwnedFd>,
    terms: Terms,
}

impl Transfer<'_> {
    fn take(&self, artifact: &JobArtifact) -> io::Result<()> {
        let name = file_name(&artifact.path);
        if self.is_taken(&name, artifact)? {
            return self.make_ours(&name, artifact);
        }
        let Some(workspace) = &self.workspace else {
            return Err(Errno::NOENT.into());
        };
        let (parent, file) = match artifact.path.rsplit_once('/') {
            Some((parent, file)) => (Some(parent), file),
            None => (None, artifact.path.as_str()),
        };
        let parent = match parent {
            Some(parent) => open_directory(workspace, &CString::new(parent)?)?,
            None => workspace.try_clone()?,
        };
        let stat = statat(&parent, file, AtFlags::SYMLINK_NOFOLLOW)?;
        check(&stat, artifact)?;
        if self.terms.may_have_filled_disk {
            self.check_disk()?;
        }
        match renameat(&parent, file, &self.artifacts, &name) {
            Err(Errno::XDEV) => self.copy(&parent, file, &name, artifact)?,
            renamed => renamed?,
        }
        self.make_ours(&name, artifact)
    }

    /// Whether an earlier collection has moved the file.
    fn is_taken(&self, name: &str, artifact: &JobArtifact) -> io::Result<bool> {
        match statat(&self.artifacts, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => check(&stat, artifact).map(|()| true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies a file between file systems, under another name until it is whole.
    fn copy(
        &self,
        parent: &OwnedFd,
        file: &str,
        name: &str,
        artifact: &JobArtifact,
    ) -> io::Result<()> {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = openat(parent, file, read, Mode::empty())?;
        check(&fstat(&from)?, artifact)?;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let to = openat(&self.artifacts, COPY, write, Mode::RUSR | Mode::WUSR)?;
        let copied = self.copy_content(&from.into(), &to.into(), artifact.size_bytes);
        if let Err(error) = copied {
            unlinkat(&self.artifacts, COPY, AtFlags::empty())?;
            return Err(error);
        }
        renameat(&self.artifacts, COPY, &self.artifacts, name)?;
        Ok(unlinkat(parent, file, AtFlags::empty())?)
    }

    fn copy_content(&self, from: &File, to: &File, size: u64) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            self.check_disk()?;
            match copy_part(from, to, left.min(CHUNK_BYTES))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                copied => left -= copied,
            }
        }
        Ok(())
    }

    fn check_disk(&self) -> io::Result<()> {
        let space = DiskSpace::at(self.spool)?;
        match space.shortage(self.terms.min_free) {
            // No numbers: files with the same reason are counted together.
            Some(_) => Err(io::Error::other("the node's disk is full")),
            None => Ok(()),
        }
    }

    /// Makes the worker's user the owner of a file, whoever's it was.
    fn make_ours(&self, name: &str, artifact: &JobArtifact) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.artifacts, name, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if let Err(error) = check(&stat, artifact) {
            // A sandbox that could not be ended may have put something else in its place.
            unlinkat(&self.artifacts, name, AtFlags::empty())?;
            return Err(error);
        }
        let (user, group) = (geteuid(), getegid());
        if (stat.st_uid, stat.st_gid) != (user.as_raw(), group.as_raw()) {
            chownat(&file, c"", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
        }
        // The mode can't be changed through a descriptor with O_PATH itself.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(chmod(path, Mode::RUSR | Mode::WUSR)?)
    }
}

/// Whether a collection has moved an artifact to this path, to its last step.
pub(super) fn is_whole(path: &Path, artifact: &JobArtifact) -> bool {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| {
        let mode = Mode::from_raw_mode(stat.st_mode);
        let is_ours = stat.st_uid == geteuid().as_raw() && mode == Mode::RUSR | Mode::WUSR;
        is_ours && check(&stat, artifact).is_ok()
    })
}

/// Fails where a file is not the one that is on the list.
fn check(stat: &Stat, artifact: &JobArtifact) -> io::Result<()> {
    let is_same = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size) == Ok(artifact.size_bytes);
    if is_same {
        return Ok(());
    }
    Err(io::Error::other("it changed while it was collected"))
}
