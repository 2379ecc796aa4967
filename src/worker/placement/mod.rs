//! Placement of a job's files in its workspace, before there is a container.
//!
//! Contents and archives are hostile input. Every entry is made relative to a descriptor of its directory, and no
//! link is ever followed ([`unpack`](crate::archive)), so nothing outside the workspace can be reached. An entry that is
//! not allowed, or an archive that ends early, fails the job, and its workspace is removed: a command never sees half
//! of its files.
//!
//! Placement reads and writes one chunk at a time, stops soon after a cancel, and is bounded by the limit of the
//! workspace and by the node's reserve of bytes and inodes, which it checks while it writes. Entries and time have
//! limits of their own, for an archive that is small and never ends.

mod owner;

pub(super) use owner::give_to;

use crate::{
    api::{jobs::files::JobFile, size::ByteSize},
    archive::{self, Archive, ArchiveError, ExtractError, Links, Meter, Tree, quoted},
    disk_space::DiskSpace,
    files::copy_part,
    sandbox_init::WORKSPACE,
};
use rustix::io::Errno;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Bytes that are copied at a time.
const CHUNK_BYTES: u64 = 1 << 20;
/// Most bytes that are written between two checks of the disk, and of a small reserve its part.
const CHECK_BYTES: u64 = 16 << 20;
const CHECK_RESERVE_DIVISOR: u64 = 4;
/// Entries that are made between two checks of the disk.
const CHECK_ENTRIES: u64 = 1024;
/// Entries of all archives and files of a job, with the directories that are made for them.
const MAX_ENTRIES: u64 = 2_000_000;
/// Time for all files of a job.
const MAX_TIME: Duration = Duration::from_hours(1);
/// Mode of a file that names none.
const DEFAULT_MODE: u32 = 0o644;

/// Limits of one placement.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Most bytes in the workspace.
    pub(super) workspace_bytes: u64,
    /// Bytes that stay free on its filesystem, and the same share of the inodes.
    pub(super) min_free: u64,
}

/// Control of a placement by those who wait for it.
#[derive(Default)]
pub(super) struct Control {
    /// Whether it is to stop.
    pub(super) is_canceled: AtomicBool,
    /// Bytes of contents that were read so far.
    pub(super) bytes_read: AtomicU64,
}

/// Reason for which files were not placed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// A file or an entry of an archive is not allowed, or an archive is damaged.
    #[error("{0}")]
    Invalid(String),
    /// There is no room for the files.
    #[error("{0}")]
    NoSpace(String),
    /// The files are more than a workspace may hold.
    #[error("{0}")]
    TooLarge(String),
    /// Canceled.
    #[error("canceled")]
    Canceled,
    /// The node's disk failed.
    #[error("{0}")]
    Failed(String),
}

/// Places files, in their order, into `workspace`, which exists. Each content is opened when it is needed.
pub(super) fn place(
    workspace: &Path,
    files: &[JobFile],
    open: impl Fn(&JobFile) -> io::Result<File>,
    limits: &Limits,
    control: &Control,
) -> Result<(), PlaceError> {
    let tree = Tree::open(workspace, WORKSPACE, Links::Refused);
    let mut tree = tree.map_err(|error| failure("workspace", &error))?;
    let mut budget = Budget::new(workspace, limits, control);
    for file in files {
        let content = open(file).map_err(|error| {
            PlaceError::Failed(format!("a content can't be read on this node: {error}"))
        })?;
        let path = file.path.strip_prefix("/workspace/").unwrap_or(&file.path);
        if file.extract {
            let path = if file.path == "/workspace" { "." } else { path };
            extract(&tree, path, &content, &mut budget)?;
        } else {
            let mode = file.mode.map_or(DEFAULT_MODE, |mode| mode.0);
            place_file(&mut tree, path, &content, mode, &mut budget)?;
            budget.count_entries(tree.take_made())?;
        }
    }
    tree.finish().map_err(|error| failure("workspace", &error))
}

/// Extracts an archive into the directory `path` of the workspace.
fn extract(
    workspace: &Tree,
    path: &str,
    content: &File,
    budget: &mut Budget<'_>,
) -> Result<(), PlaceError> {
    let name = quoted(path.as_bytes());
    let in_archive =
        |error: ArchiveError| PlaceError::Invalid(format!("archive for {name}: {error}"));
    let directory = archive::normalize(path.as_bytes())
        .map_err(|reason| PlaceError::Invalid(format!("file {name}: {reason}")))?;
    budget.count_entries(1)?;
    let tree = workspace.subtree(&directory);
    let tree = tree.map_err(|error| failure(&name, &error))?;
    let mut archive = Archive::open(content).map_err(in_archive)?;
    let extracted = archive::extract(tree, &mut archive, budget);
    let entries = extracted.map_err(|error| match error {
        ExtractError::Archive(error) => in_archive(error),
        ExtractError::Entry(reason) => PlaceError::Invalid(reason),
        ExtractError::Io(entry, error) => failure(&quoted(&entry), &error),
        ExtractError::Limit(error) => error,
    })?;
    if let Ok(read) = content.metadata().map(|meta| meta.len()) {
        budget.count_read(read);
    }
    tracing::debug!(entries, path, "archive extracted");
    Ok(())
}

fn place_file(
    tree: &mut Tree,
    path: &str,
    content: &File,
    mode: u32,
    budget: &mut Budget<'_>,
) -> Result<(), PlaceError> {
    let at_path = |error: io::Error| failure(&quoted(path.as_bytes()), &error);
    budget.count_entries(1)?;
    let relative = archive::normalize(path.as_bytes()).map_err(|reason| {
        PlaceError::Invalid(format!("file {}: {reason}", quoted(path.as_bytes())))
    })?;
    let file = tree.create_file(&relative).map_err(at_path)?;
    let size = content.metadata().map_err(at_path)?.len();
    budget.check_room(size)?;
    let mut copied = 0;
    while copied < size {
        let written =
            copy_part(content, &file, (size - copied).min(CHUNK_BYTES)).map_err(at_path)?;
        if written == 0 {
            return Err(PlaceError::Failed("a content was cut on this node".into()));
        }
        copied += written;
        budget.spend(written)?;
        budget.count_read(written);
    }
    archive::set_mode(&file, mode).map_err(at_path)
}

/// Room that is left, checked against the limits while files are written.
struct Budget<'a> {
    workspace: PathBuf,
    limits: &'a Limits,
    control: &'a Control,
    deadline: Instant,
    spent_bytes: u64,
    spent_entries: u64,
    unchecked_bytes: u64,
    unchecked_entries: u64,
}

impl<'a> Budget<'a> {
    fn new(workspace: &Path, limits: &'a Limits, control: &'a Control) -> Self {
        Self {
            workspace: workspace.to_owned(),
            limits,
            control,
            deadline: Instant::now() + MAX_TIME,
            spent_bytes: 0,
            spent_entries: 0,
            // The first one of anything is checked.
            unchecked_bytes: CHECK_BYTES,
            unchecked_entries: CHECK_ENTRIES,
        }
    }

    /// Counts bytes that were read of a content.
    fn count_read(&self, bytes: u64) {
        self.control.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    fn check(&mut self) -> Result<(), PlaceError> {
        if self.control.is_canceled.load(Ordering::Relaxed) {
            return Err(PlaceError::Canceled);
        }
        if Instant::now() >= self.deadline {
            let minutes = MAX_TIME.as_secs() / 60;
            return Err(PlaceError::Invalid(format!(
                "the job's files could not be placed within {minutes} minutes; send less, or have them in the image"
            )));
        }
        let reserve = self.limits.min_free / CHECK_RESERVE_DIVISOR;
        if self.unchecked_bytes < CHECK_BYTES.min(reserve.max(1))
            && self.unchecked_entries < CHECK_ENTRIES
        {
            return Ok(());
        }
        (self.unchecked_bytes, self.unchecked_entries) = (0, 0);
        self.check_disk(0)
    }

    /// Fails where `coming` more bytes would eat into the reserve of the disk.
    fn check_disk(&self, coming: u64) -> Result<(), PlaceError> {
        let space = DiskSpace::at(&self.workspace).map_err(|error| failure("workspace", &error))?;
        match space.shortage_with(self.limits.min_free, coming) {
            None => Ok(()),
            Some(shortage) => Err(PlaceError::NoSpace(format!(
                "the node's disk has no room for the job's files ({shortage}); send less, or run the job on a node with more room"
            ))),
        }
    }
}

impl Meter for Budget<'_> {
    type Error = PlaceError;

    fn check_room(&self, bytes: u64) -> Result<(), PlaceError> {
        let limit = self.limits.workspace_bytes;
        if self.spent_bytes.saturating_add(bytes) > limit {
            let limit = ByteSize(limit);
            return Err(PlaceError::TooLarge(format!(
                "the job's files need more than the {limit} that a workspace may hold (--workspace-limit of the node); send less"
            )));
        }
        // A large file is refused before it takes all the room, and not after.
        if bytes >= CHECK_BYTES {
            return self.check_disk(bytes);
        }
        Ok(())
    }

    fn spend(&mut self, bytes: u64) -> Result<(), PlaceError> {
        self.check_room(bytes)?;
        self.spent_bytes += bytes;
        self.unchecked_bytes += bytes;
        self.check()
    }

    fn count_entries(&mut self, count: u64) -> Result<(), PlaceError> {
        self.spent_entries += count;
        if self.spent_entries > MAX_ENTRIES {
            return Err(PlaceError::Invalid(format!(
                "the job's files have more than {MAX_ENTRIES} entries; send fewer and larger ones"
            )));
        }
        self.unchecked_entries += count;
        self.check()
    }
}

/// Error of a file operation on an entry, by what its cause is: the entry, a full disk, or the node.
fn failure(name: &str, error: &io::Error) -> PlaceError {
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    let invalid = |reason: &str| PlaceError::Invalid(format!("file {name}: {reason}"));
    if [Errno::NOSPC, Errno::DQUOT, Errno::FBIG]
        .into_iter()
        .any(is)
    {
        return PlaceError::NoSpace(format!(
            "the node's disk is full, so file {name} could not be written; send less, or run the job on a node with more room"
        ));
    }
    if [Errno::LOOP, Errno::NOTDIR].into_iter().any(is) {
        return invalid("a part of its path is a file or a link, not a directory");
    }
    if [Errno::ISDIR, Errno::NOTEMPTY].into_iter().any(is) {
        return invalid("there is a directory of that name");
    }
    if [Errno::NAMETOOLONG, Errno::ILSEQ, Errno::INVAL]
        .into_iter()
        .any(is)
    {
        return invalid(
            "its name or path is longer than the node allows, or has characters that its file system does not",
        );
    }
    if [Errno::NOENT, Errno::MLINK].into_iter().any(is) {
        return invalid(&format!("can't be made: {error}"));
    }
    PlaceError::Failed(format!("file {name} could not be written: {error}"))
}

#[cfg(test)]
mod tests;
