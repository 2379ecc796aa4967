//! Removing what a job left, however it left it.
//!
//! A hostile tree may be deeper than any stack and than all descriptors, hold directories
//! that can't be entered, and links to anywhere. So nothing here recurses, no link is ever
//! followed, and two descriptors are enough: whatever lies deeper than one level is moved up
//! to the top, under a name of ours, and emptied there.

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, unlinkat},
    io::Errno,
};
use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// The argument by which the binary knows that it is to remove a tree, inside podman's user namespace.
pub const REMOVE_ARGUMENT: &str = "__remove-tree";

/// Names that are read from a directory before they are worked on.
const BATCH: usize = 1024;

/// Removes a directory and all that is in it; one that isn't there is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match open(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let mut moved = 0_u64;
    loop {
        let names = entries(&top)?;
        if names.is_empty() {
            break;
        }
        for (name, kind) in names {
            remove_entry(&top, &name, kind, &mut moved)?;
        }
    }
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Removes what `name` stands for in `top`; directories inside of it are moved up to `top`.
fn remove_entry(top: &OwnedFd, name: &CString, kind: FileType, moved: &mut u64) -> io::Result<()> {
    if kind != FileType::Directory {
        return Ok(unlinkat(top, name, AtFlags::empty())?);
    }
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
        done => return Ok(done?),
    }
    make_accessible(top, name);
    let inner = open(top, name)?;
    loop {
        let names = entries(&inner)?;
        if names.is_empty() {
            break;
        }
        for (name, kind) in names {
            if kind != FileType::Directory {
                unlinkat(&inner, &name, AtFlags::empty())?;
            } else if unlinkat(&inner, &name, AtFlags::REMOVEDIR).is_err() {
                make_accessible(&inner, &name);
                move_up(&inner, &name, top, moved)?;
            }
        }
    }
    Ok(unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

fn move_up(from: &OwnedFd, name: &CString, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match renameat(from, name, top, format!(".cynode-{moved}")) {
            // The job may have had the same idea for a name.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            done => return Ok(done?),
        }
    }
}

/// Nothing but a real directory is opened.
fn open(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(
        at,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Lets us into a directory of ours; where it isn't ours, what follows fails and says so. The name
/// was just seen to be a directory, and whoever could have changed that is dead.
fn make_accessible(at: &OwnedFd, name: &CString) {
    let _ = chmodat(at, name, Mode::RWXU, AtFlags::empty());
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        names.push((name.to_owned(), kind_of(directory, &entry)?));
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

/// Some file systems don't say in the directory itself.
fn kind_of(directory: &OwnedFd, entry: &rustix::fs::DirEntry) -> io::Result<FileType> {
    if entry.file_type() != FileType::Unknown {
        return Ok(entry.file_type());
    }
    let stat = rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn a_tree_deeper_than_any_stack_goes() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = open(CWD, &tree).unwrap();
        for _ in 0..20_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open(&at, "d").unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn links_are_removed_and_not_followed_and_odd_things_go() {
        let home = tempfile::tempdir().unwrap();
        let (tree, outside) = (home.path().join("tree"), home.path().join("outside"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir_all(tree.join(".cynode-1/x")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink(&outside, tree.join("a/b/link")).unwrap();
        symlink("nowhere", tree.join("a/dangling")).unwrap();
        for n in 0..3000 {
            fs::write(tree.join(format!("a/{n}")), "").unwrap();
        }
        for closed in ["a/b/c", "a/b", "a"] {
            chmodat(CWD, tree.join(closed), Mode::empty(), AtFlags::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
        symlink(&outside, &tree).unwrap();
        assert!(
            remove_tree(&tree).is_err(),
            "a link in the tree's place is not followed"
        );
        assert!(outside.join("kept").exists());
    }
}
