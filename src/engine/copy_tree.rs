//! Copy of a directory tree that a job may have written, and may be changing meanwhile.
//!
//! A hostile tree may be of any depth and size, and an entry may become another one between two looks. So nothing here
//! recurses; every entry is opened relative to a descriptor, without following a link and without entering a mount
//! ([`open`]); only what is open is asked for its type and copied; and bytes, entries, depth and memory have limits. A
//! directory that changes while it is read may name an entry twice: the first one counts.
//!
//! What is copied:
//!
//! | entry | |
//! |---|---|
//! | directory, regular file | mode and time of change; hard links become separate files, holes stay holes |
//! | symbolic link | as it is |
//! | whiteout (device 0:0) | in an upper directory: the file of the image was removed |
//! | FIFO, socket, other device | left out |
//!
//! In an upper directory owners, setuid and setgid stay, and the attribute by which overlay hides a directory of the
//! image. In a workspace everything belongs to the process that copies: podman gives it to the image's user later.
//!
//! A workspace counts with the space that its copy takes. An upper directory counts with what the image takes that
//! podman makes of the copy: its archive has each hole written out, a header for each entry, and the targets of links.

mod budget;
mod data;
mod metadata;
mod open;

use super::{Engine, EngineError, Program, call};
use metadata::times;
use open::{open_child, open_directory};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, mkdirat,
        mknodat, openat, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

/// First argument that makes the binary copy a tree, inside podman's user namespace where that is rootless.
pub const COPY_TREE_ARGUMENT: &str = "__copy-tree";

/// Most directories within each other.
const MAX_DEPTH: usize = 1000;
/// Longest path of a directory below the top, in bytes: what the kernel takes.
const MAX_PATH_BYTES: usize = 4000;
/// Memory for paths of directories that are not copied yet.
const MAX_PENDING_BYTES: usize = 64 << 20;
/// Memory that a path takes besides its bytes.
const PATH_OVERHEAD_BYTES: usize = 32;
/// Space that a directory counts with.
const DIRECTORY_BYTES: u64 = 4096;

/// Kind of a tree, and so what of its entries is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyKind {
    /// Workspace of a job.
    Workspace,
    /// Upper directory of an overlay.
    Upper,
}

/// Tree to copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyRequest {
    /// Directory whose content is copied.
    pub from: PathBuf,
    /// Directory that gets it, which exists and has none of the names.
    pub to: PathBuf,
    /// Kind of the tree.
    pub kind: CopyKind,
    /// Most bytes, counted as in [`Copied::bytes`].
    pub max_bytes: u64,
    /// Bytes that stay free on the filesystem of `to`, and the same share of its inodes.
    pub min_free: u64,
}

/// Size of a tree that was copied.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Copied {
    /// Bytes of whole blocks; those of an upper directory with its holes and a header for each entry.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// Failure of a copy, which may leave a part behind.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyError {
    /// The tree has more bytes than were allowed.
    #[error("it has more bytes than may be copied")]
    TooLarge,
    /// The disk is short.
    #[error("the disk has no room for it ({0})")]
    NoSpace(String),
    /// The tree has what can't be copied.
    #[error("{0}")]
    Refused(String),
    /// The node failed.
    #[error("{0}")]
    Failed(String),
}

impl Engine {
    /// Copies a tree within `limit`. `init` is a copy of our binary. Dropped, it ends the process that copies.
    pub async fn copy_tree(
        &self,
        init: &Path,
        request: &CopyRequest,
        limit: Duration,
    ) -> Result<Copied, CopyError> {
        let text = serde_json::to_string(request);
        let (Ok(text), Some(init)) = (text, init.to_str()) else {
            let advice = "a path of the data directory is not UTF-8; choose another --data-dir";
            return Err(CopyError::Failed(advice.to_owned()));
        };
        // Rootless, files of a job's users belong to subordinate ids, which only podman's user namespace may read.
        // A process of its own also as root: it can be ended.
        let answer = if self.info.rootless {
            let arguments = ["unshare", init, COPY_TREE_ARGUMENT, &text];
            call(&self.program, &arguments, limit, |_| ()).await
        } else {
            let program = Program::plain(init);
            call(&program, &[COPY_TREE_ARGUMENT, &text], limit, |_| ()).await
        };
        let answer = answer.map_err(|error| match error {
            EngineError::TimedOut { limit, .. } => {
                let minutes = limit.as_secs() / 60;
                CopyError::Failed(format!("it was not copied within {minutes} minutes"))
            }
            error => CopyError::Failed(error.to_string()),
        })?;
        let outcome = serde_json::from_str::<Result<Copied, CopyError>>(&answer);
        outcome.map_err(|error| CopyError::Failed(format!("the copy gave no answer: {error}")))?
    }
}

/// Copies a tree by a request in JSON, and returns the answer to print.
pub fn copy_from_argument(argument: &str) -> serde_json::Result<String> {
    let request: CopyRequest = serde_json::from_str(argument)?;
    serde_json::to_string(&copy_tree(&request))
}

/// Copies a tree.
fn copy_tree(request: &CopyRequest) -> Result<Copied, CopyError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path: &Path| openat(CWD, path, flags, Mode::empty());
    let mut copy = TreeCopy {
        from: open(&request.from).map_err(|error| failure(b".", error))?,
        to: open(&request.to).map_err(|error| failure(b".", error))?,
        request,
        copied: Copied::default(),
        pending: vec![b".".to_vec()],
        pending_bytes: 1 + PATH_OVERHEAD_BYTES,
        unchecked_bytes: 0,
        unchecked_entries: 0,
        can_clone: true,
    };
    copy.check_disk()?;
    while let Some(path) = copy.pending.pop() {
        copy.pending_bytes = copy.pending_bytes.saturating_sub(cost(&path));
        copy.copy_directory(&path)?;
    }
    Ok(copy.copied)
}

/// Copy of one tree.
struct TreeCopy<'a> {
    request: &'a CopyRequest,
    from: OwnedFd,
    to: OwnedFd,
    copied: Copied,
    /// Paths of directories that are made, and not copied yet.
    pending: Vec<Vec<u8>>,
    pending_bytes: usize,
    unchecked_bytes: u64,
    unchecked_entries: u64,
    /// Whether the file systems may share the blocks of two files.
    can_clone: bool,
}

impl TreeCopy<'_> {
    fn is_upper(&self) -> bool {
        self.request.kind == CopyKind::Upper
    }

    /// Copies the entries of a directory, and notes the directories among them.
    fn copy_directory(&mut self, path: &[u8]) -> Result<(), CopyError> {
        let from = match open_directory(&self.from, path) {
            Err(error) if is_vanished(error) => return Ok(()),
            opened => opened.map_err(|error| failure(path, error))?,
        };
        let to = open_directory(&self.to, path).map_err(|error| failure(path, error))?;
        for entry in Dir::read_from(&from).map_err(|error| failure(path, error))? {
            let entry = entry.map_err(|error| failure(path, error))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.copy_entry((&from, &to), name, &join(path, name))?;
            }
        }
        self.finish_directory(&from, &to, path)
    }

    fn copy_entry(
        &mut self,
        (from, to): (&OwnedFd, &OwnedFd),
        name: &CStr,
        path: &[u8],
    ) -> Result<(), CopyError> {
        self.count_entry(path)?;
        let stat = match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(error) if is_vanished(error) => return Ok(()),
            stat => stat.map_err(|error| failure(path, error))?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.add_directory(to, name, path),
            FileType::RegularFile => self.copy_file((from, to), name, path),
            FileType::Symlink => self.copy_link((from, to), name, &stat, path),
            FileType::CharacterDevice if self.is_upper() && stat.st_rdev == 0 => {
                let kind = FileType::CharacterDevice;
                match mknodat(to, name, kind, Mode::empty(), 0) {
                    Err(Errno::EXIST) => Ok(()),
                    made => made.map_err(|error| failure(path, error)),
                }
            }
            _ => Ok(()),
        }
    }

    /// Makes a directory, whose content comes later.
    fn add_directory(&mut self, to: &OwnedFd, name: &CStr, path: &[u8]) -> Result<(), CopyError> {
        let depth = path.iter().filter(|byte| **byte == b'/').count() + 1;
        if depth > MAX_DEPTH || path.len() > MAX_PATH_BYTES {
            return Err(CopyError::Refused(format!(
                "it has more than {MAX_DEPTH} directories within each other, or a path of more than {MAX_PATH_BYTES} bytes; remove those"
            )));
        }
        self.pending_bytes += cost(path);
        if self.pending_bytes > MAX_PENDING_BYTES {
            let text = "it has too many directories beside each other; remove some, or pack them";
            return Err(CopyError::Refused(text.to_owned()));
        }
        match mkdirat(to, name, Mode::RWXU) {
            Err(Errno::EXIST) => return Ok(()),
            made => made.map_err(|error| failure(path, error))?,
        }
        self.pending.push(path.to_owned());
        self.spend(DIRECTORY_BYTES)
    }

    /// Gives a directory, whose entries are all made, its properties.
    fn finish_directory(&self, from: &OwnedFd, to: &OwnedFd, path: &[u8]) -> Result<(), CopyError> {
        let is_top = path == b".";
        if is_top && !self.is_upper() {
            // Whoever made the target chose its mode.
            return Ok(());
        }
        let finished = || {
            self.copy_attributes(from, to)?;
            let stat = fstat(from)?;
            self.set_metadata(to, &stat)
        };
        self.check_attributes(from, path)?;
        finished().map_err(|error| failure(path, error))
    }

    fn copy_file(
        &mut self,
        (from, to): (&OwnedFd, &OwnedFd),
        name: &CStr,
        path: &[u8],
    ) -> Result<(), CopyError> {
        let at_path = |error: Errno| failure(path, error);
        // Opens no FIFO that has taken its place, which would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let source = match open_child(from, name, flags) {
            Err(error) if is_vanished(error) => return Ok(()),
            opened => opened.map_err(at_path)?,
        };
        let stat = fstat(&source).map_err(at_path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        self.check_attributes(&source, path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let target = match openat(to, name, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => return Ok(()),
            opened => opened.map_err(at_path)?,
        };
        let (source, target) = (File::from(source), File::from(target));
        self.copy_data(&source, &target, &stat, path)?;
        self.set_metadata(&target, &stat).map_err(at_path)
    }

    fn copy_link(
        &mut self,
        (from, to): (&OwnedFd, &OwnedFd),
        name: &CStr,
        stat: &Stat,
        path: &[u8],
    ) -> Result<(), CopyError> {
        let target = match readlinkat(from, name, Vec::<u8>::new()) {
            // It is gone, or no link any more.
            Err(Errno::INVAL) => return Ok(()),
            Err(error) if is_vanished(error) => return Ok(()),
            target => target.map_err(|error| failure(path, error))?,
        };
        if self.is_upper() {
            self.count_bytes(target.as_bytes().len() as u64)?;
        }
        let copied = || {
            symlinkat(&target, to, name)?;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            if self.is_upper() {
                let owner = Some(Uid::from_raw(stat.st_uid));
                chownat(to, name, owner, Some(Gid::from_raw(stat.st_gid)), flags)?;
            }
            utimensat(to, name, &times(stat), flags)
        };
        match copied() {
            Err(Errno::EXIST) => Ok(()),
            copied => copied.map_err(|error| failure(path, error)),
        }
    }
}

/// Whether an entry is gone, or another one than a moment before.
fn is_vanished(error: Errno) -> bool {
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::NXIO];
    gone.contains(&error) || error == Errno::XDEV
}

/// Path of an entry of a directory.
fn join(directory: &[u8], name: &CStr) -> Vec<u8> {
    if directory == b"." {
        return name.to_bytes().to_vec();
    }
    [directory, b"/", name.to_bytes()].concat()
}

/// Memory that a path takes.
fn cost(path: &[u8]) -> usize {
    path.len() + PATH_OVERHEAD_BYTES
}

fn quoted(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}

fn failure(path: &[u8], error: impl Into<io::Error>) -> CopyError {
    let error: io::Error = error.into();
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    if is(Errno::NOSPC) || is(Errno::DQUOT) {
        return CopyError::NoSpace(error.to_string());
    }
    let text = format!("{} can't be copied: {error}", quoted(path));
    if is(Errno::AGAIN) {
        return CopyError::Refused(format!(
            "{} can't be opened: a process has a lease on it (F_SETLEASE), or renames files all the time; end that one, and try again",
            quoted(path)
        ));
    }
    if is(Errno::NAMETOOLONG) || is(Errno::FBIG) {
        return CopyError::Refused(text);
    }
    CopyError::Failed(text)
}

#[cfg(test)]
mod tests;
