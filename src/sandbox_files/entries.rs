//! Entries of directories: listed, made, moved, removed.

use super::{
    failure::{name, problem},
    query::invalid,
    transfer::{copy_file, make_parents, metadata_if_any},
};
use crate::{
    api::problem::{Problem, ProblemKind},
    engine::remove_tree,
};
use rustix::io::Errno;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
};

/// Makes a directory and those above it. Returns whether it is new.
pub(super) fn make_directory(path: &Path) -> Result<bool, Problem> {
    let is_new = !fs::metadata(path).is_ok_and(|found| found.is_dir());
    fs::create_dir_all(path).map_err(|error| problem(path, &error))?;
    Ok(is_new)
}

/// Removes a file or a link, and a directory where it is empty or all of it is to go.
pub(super) fn remove(path: &Path, workspace: &Path, is_recursive: bool) -> Result<(), Problem> {
    let at_path = |error: io::Error| problem(path, &error);
    let metadata = fs::symlink_metadata(path).map_err(at_path)?;
    if !metadata.is_dir() {
        return fs::remove_file(path).map_err(at_path);
    }
    let above = path.parent().unwrap_or(path);
    let parent = fs::metadata(path.join("..")).or_else(|_| fs::metadata(above));
    let parent = parent.map_err(at_path)?;
    let is_mount = metadata.dev() != parent.dev() || metadata.ino() == parent.ino();
    let is_workspace = fs::metadata(workspace)
        .is_ok_and(|found| (found.dev(), found.ino()) == (metadata.dev(), metadata.ino()));
    if is_mount || is_workspace {
        let detail = format!(
            "{} is a mount point of the sandbox, which stays; delete what is in it",
            name(path)
        );
        return Err(Problem::new(ProblemKind::Conflict, detail));
    }
    match fs::remove_dir(path) {
        Err(error) if is_recursive && has_entries(&error) => remove_all(path),
        removed => removed.map_err(at_path),
    }
}

/// Whether a directory could not be removed because of what is in it.
fn has_entries(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOTEMPTY | Errno::EXIST))
}

fn remove_all(path: &Path) -> Result<(), Problem> {
    remove_tree(path).map_err(|error| {
        if error.raw_os_error().is_some() {
            return problem(path, &error);
        }
        let detail = format!("not all of {} could be deleted: {error}", name(path));
        Problem::new(ProblemKind::Conflict, detail)
    })
}

/// Gives a file or directory another path. A file that is there is replaced, a directory is not.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Problem> {
    fs::symlink_metadata(from).map_err(|error| problem(from, &error))?;
    if to.file_name().is_none() {
        return Err(invalid(format!(
            "{} is no new path; name the file or directory in it",
            name(to)
        )));
    }
    if metadata_if_any(to)?.is_some_and(|found| found.is_dir()) {
        return Err(problem(to, &Errno::EXIST.into()));
    }
    make_parents(to)?;
    match fs::rename(from, to) {
        Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
            move_across(from, to)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(problem(from, &error)),
        renamed => renamed.map_err(|error| problem(to, &error)),
    }
}

/// Moves a file or a link to another file system.
fn move_across(from: &Path, to: &Path) -> Result<(), Problem> {
    let metadata = fs::symlink_metadata(from).map_err(|error| problem(from, &error))?;
    if metadata.is_symlink() {
        let target = fs::read_link(from).map_err(|error| problem(from, &error))?;
        if metadata_if_any(to)?.is_some() {
            fs::remove_file(to).map_err(|error| problem(to, &error))?;
        }
        symlink(target, to).map_err(|error| problem(to, &error))?;
    } else if metadata.is_file() {
        copy_file(from, to)?;
    } else {
        let detail = format!(
            "{} and {} are on different file systems, between which only files and links can be moved; run mv in the \
             sandbox, or read and write it with archive",
            name(from),
            name(to)
        );
        return Err(Problem::new(ProblemKind::Conflict, detail));
    }
    fs::remove_file(from).map_err(|error| problem(from, &error))
}
