//! One file, read or written.
//!
//! A new content is written beside its place and renamed over the old one, so that a reader has one of both and never
//! half of one. It lies in a directory that exists already: directories on the way are made only at the end, and an
//! upload that breaks off leaves nothing.

use super::{
    answer::{Answer, OpenFile, last_modified},
    failure::{check_regular, is_no_room, name, no_room, problem},
    query::invalid,
    request::{Body, Head},
};
use crate::{
    api::problem::{Problem, ProblemKind},
    disk_space::DiskSpace,
    files::{PRIVATE_MODE, Replacement},
    range::{Requested, requested},
};
use http::StatusCode;
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// Bytes that are read and written at a time.
const BLOCK_BYTES: usize = 256 << 10;
/// Age from which the time of a change, in whole seconds, is that of one version.
const DISTINCT_AGE: Duration = Duration::from_mins(1);
/// Mode of a new file.
const DEFAULT_MODE: u32 = 0o644;
/// Bits of a mode that are kept of a file that is replaced: none that changes whom a new content runs as.
const KEPT_MODE_BITS: u32 = 0o777;
/// Most links from a path to its file, as the kernel limits them.
const MAX_LINKS: usize = 40;

/// Opens a regular file to read, also through links. Never waits, as it would for the writer of a FIFO.
pub(super) fn open_regular(path: &Path) -> Result<(File, Metadata), Problem> {
    let at_path = |error: io::Error| problem(path, &error);
    // A device may do something when it is opened, and a FIFO's writer would notice.
    check_regular(path, fs::metadata(path).map_err(at_path)?.file_type())?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(at_path)?;
    let metadata = file.metadata().map_err(at_path)?;
    check_regular(path, metadata.file_type())?;
    Ok((file, metadata))
}

/// Answers with a file, or with the one range of it that the request asks for. Fails with 416 where that begins beyond the
/// end.
pub(super) fn get(path: &Path, head: &Head) -> Result<Answer, Problem> {
    let (file, metadata) = open_regular(path)?;
    let size = metadata.size();
    // A file of /proc says that it is empty, and comes whole.
    let takes_range = head.method == "GET" && size > 0 && is_same_version(head, &metadata);
    let range = head.range.as_deref().filter(|_| takes_range);
    let range = match requested(range, size) {
        Requested::Whole => None,
        Requested::Part(range) => Some(range),
        Requested::Unsatisfiable => {
            let name = name(path);
            let detail = format!("{name} has {size} bytes; ask for a range that begins in it");
            return Err(Problem::new(ProblemKind::RangeNotSatisfiable, detail)
                .with_header("content-range", format!("bytes */{size}")));
        }
    };
    Ok(Answer::File(OpenFile {
        file,
        metadata,
        range,
    }))
}

/// Whether the caller means this version of a file, where they name one: by its time, which tells versions apart only some
/// time after the change (RFC 9110, section 8.8.2.2).
fn is_same_version(head: &Head, metadata: &Metadata) -> bool {
    let Some(condition) = &head.if_range else {
        return true;
    };
    let age = metadata
        .modified()
        .ok()
        .and_then(|time| time.elapsed().ok());
    let is_settled = age.is_some_and(|age| age >= DISTINCT_AGE);
    is_settled && last_modified(metadata).as_ref() == Some(condition)
}

/// Writes a body to a file: 201 for a new one, 204 for one that is replaced, whose mode it keeps unless there is another.
pub(super) fn put(path: &Path, mode: Option<u32>, body: &mut Body<'_>) -> Result<Answer, Problem> {
    let path = &link_target(path)?;
    let at_path = |error: io::Error| problem(path, &error);
    let old = metadata_if_any(path)?;
    if let Some(old) = &old {
        check_regular(path, old.file_type())?;
    }
    let directory = existing_ancestor(path)?;
    let needed = body.announced_size();
    check_room(path, directory, needed)?;
    let new = Replacement::begin_in(directory, path, PRIVATE_MODE);
    let mut new = new.map_err(|error| problem(directory, &error))?;
    if let Err(error) = receive(body, &mut new) {
        // Its bytes would count as used.
        drop(new);
        return Err(match error {
            ReceiveError::Body => ended_early(),
            ReceiveError::File(error) if is_no_room(&error) => no_room(path, needed),
            ReceiveError::File(error) => at_path(error),
        });
    }
    if let Some(old) = &old {
        // Only root may, and where it may not the file is the writer's own.
        let (owner, group) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
        let _ = fchown(new.file(), Some(owner), Some(group));
    }
    let old_mode = old.as_ref().map(|old| old.mode() & KEPT_MODE_BITS);
    let mode = mode.or(old_mode).unwrap_or(DEFAULT_MODE);
    let changed = fchmod(new.file(), Mode::from_raw_mode(mode));
    changed.map_err(|error| at_path(error.into()))?;
    make_parents(path)?;
    new.commit().map_err(at_path)?;
    Ok(Answer::Empty(match old {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::CREATED,
    }))
}

/// Copies a regular file, with its mode and the time of its last change, and replaces one that is there.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<(), Problem> {
    let (file, metadata) = open_regular(from)?;
    let at_target = |error: io::Error| problem(to, &error);
    check_room(
        to,
        to.parent().unwrap_or(Path::new("/")),
        Some(metadata.size()),
    )?;
    let new = Replacement::begin(to, PRIVATE_MODE).map_err(at_target)?;
    io::copy(&mut &file, &mut new.file()).map_err(at_target)?;
    let mode = Mode::from_raw_mode(metadata.mode() & KEPT_MODE_BITS);
    fchmod(new.file(), mode).map_err(|error| at_target(error.into()))?;
    if let Ok(modified) = metadata.modified() {
        // A time that the file system can't hold is no reason to fail.
        let _ = new.file().set_modified(modified);
    }
    new.commit().map_err(at_target)
}

/// Path without the links at its end, which need not lead to something that exists.
fn link_target(path: &Path) -> Result<PathBuf, Problem> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match metadata_if_any(&path)? {
            Some(metadata) if metadata.is_symlink() => {
                let target = fs::read_link(&path).map_err(|error| problem(&path, &error))?;
                let directory = path.parent().unwrap_or(Path::new("/"));
                path = directory.join(target);
            }
            _ if path.file_name().is_none() => {
                let detail = format!("{} names no file; use another path", name(&path));
                return Err(invalid(detail));
            }
            _ => return Ok(path),
        }
    }
    let error = io::Error::from(rustix::io::Errno::LOOP);
    Err(problem(&path, &error))
}

/// Metadata of an entry itself; `None` where there is none.
pub(super) fn metadata_if_any(path: &Path) -> Result<Option<Metadata>, Problem> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(problem(path, &error)),
    }
}

/// Nearest directory above a path that exists.
fn existing_ancestor(path: &Path) -> Result<&Path, Problem> {
    for directory in path.ancestors().skip(1) {
        match fs::metadata(directory) {
            Ok(metadata) if metadata.is_dir() => return Ok(directory),
            Ok(_) => return Err(problem(path, &rustix::io::Errno::NOTDIR.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(problem(directory, &error)),
        }
    }
    Ok(Path::new("/"))
}

/// Makes the directories above a path.
pub(super) fn make_parents(path: &Path) -> Result<(), Problem> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|error| problem(parent, &error))
}

/// Refuses what can't fit, before any of it is sent.
pub(super) fn check_room(
    path: &Path,
    directory: &Path,
    needed: Option<u64>,
) -> Result<(), Problem> {
    let (Some(needed), Ok(space)) = (needed, DiskSpace::at(directory)) else {
        return Ok(());
    };
    // Some file systems don't say how large they are.
    if space.bytes.total > 0 && space.bytes.free < needed {
        return Err(no_room(path, Some(needed)));
    }
    Ok(())
}

/// Reason for which a body was not written to its end.
enum ReceiveError {
    /// It broke off.
    Body,
    /// The file can't be written.
    File(io::Error),
}

fn receive(body: &mut Body<'_>, new: &mut Replacement) -> Result<(), ReceiveError> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let read = match body.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(ReceiveError::Body),
        };
        let written = new.write_all(&block[..read]);
        written.map_err(ReceiveError::File)?;
    }
}

/// Problem of a body that breaks off.
pub(super) fn ended_early() -> Problem {
    invalid("the body ended early, and nothing was changed; send it again")
}
