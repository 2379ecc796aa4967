//! Trees that a hostile job may leave.

use super::*;
use rustix::fs::{IFlags, Mode, chmodat, ioctl_setflags, mkdirat};
use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
};

/// Creates a chain of directories.
fn deep(tree: &Path, levels: usize) {
    fs::create_dir(tree).unwrap();
    let mut at = open(CWD, tree).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = open(&at, "d").unwrap();
    }
}

/// Removes a tree as if it could not be moved.
fn remove_in_place(home: &Path, name: &CStr) -> io::Result<()> {
    let mut failures = Failures::default();
    in_place::remove(&open(CWD, home).unwrap(), name, &mut failures);
    failures.result()
}

#[test]
fn very_deep_tree_is_removed() {
    let home = tempfile::tempdir().unwrap();
    let tree = home.path().join("tree");
    deep(&tree, 20_000);
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    remove_tree(&tree).unwrap();
    deep(&tree, 2_000);
    remove_in_place(home.path(), c"tree").unwrap();
    assert!(!tree.exists());
}

/// Creates links, sockets, FIFOs and closed directories, and a directory outside that the links point to.
fn odd(tree: &Path, outside: &Path) {
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::create_dir_all(tree.join(".cynode-1/x")).unwrap();
    fs::create_dir_all(outside).unwrap();
    fs::write(outside.join("kept"), "x").unwrap();
    symlink(outside, tree.join("link")).unwrap();
    symlink(outside, tree.join("a/b/link")).unwrap();
    symlink("nowhere", tree.join("a/dangling")).unwrap();
    fs::hard_link(outside.join("kept"), tree.join("a/b/hard")).unwrap();
    UnixListener::bind(tree.join("a/socket")).unwrap();
    let mode = Mode::RWXU;
    rustix::fs::mknodat(CWD, tree.join("a/b/fifo"), FileType::Fifo, mode, 0).unwrap();
    for n in 0..3000 {
        fs::write(tree.join(format!("a/{n}")), "").unwrap();
    }
    for closed in ["a/b/c", "a/b", "a", ""] {
        chmodat(CWD, tree.join(closed), Mode::empty(), AtFlags::empty()).unwrap();
    }
}

#[test]
fn unusual_files_are_removed_links_not_followed() {
    let home = tempfile::tempdir().unwrap();
    let (tree, outside) = (home.path().join("tree"), home.path().join("outside"));
    odd(&tree, &outside);
    remove_tree(&tree).unwrap();
    assert!(!tree.exists() && outside.join("kept").exists());
    odd(&tree, &outside);
    remove_in_place(home.path(), c"tree").unwrap();
    assert!(!tree.exists() && outside.join("kept").exists());
    symlink(&outside, &tree).unwrap();
    let mode = fs::metadata(&outside).unwrap().permissions();
    remove_tree(&tree).unwrap_err();
    assert!(outside.join("kept").exists());
    assert_eq!(fs::metadata(&outside).unwrap().permissions(), mode);
}

#[test]
fn immutable_flags_do_not_block_removal() {
    let home = tempfile::tempdir().unwrap();
    let tree = home.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/file"), "").unwrap();
    let flags = [
        ("a/b/file", IFlags::APPEND),
        ("a/b", IFlags::IMMUTABLE),
        ("a", IFlags::APPEND),
    ];
    for (path, flag) in flags {
        let file = fs::File::open(tree.join(path)).unwrap();
        if let Err(error) = ioctl_setflags(&file, flag) {
            eprintln!("not tried: {error}");
            return;
        }
    }
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn failed_removal_is_named_and_isolated() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tried: only root may mount anything");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (tree, outside) = (home.path().join("tree"), home.path().join("outside"));
    for path in ["a/b/mount", "a/c", "d"] {
        fs::create_dir_all(tree.join(path)).unwrap();
    }
    fs::write(tree.join("a/c/file"), "").unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "x").unwrap();
    let mount = tree.join("a/b/mount");
    rustix::mount::mount_bind(&outside, &mount).unwrap();
    let error = remove_tree(&tree).unwrap_err().to_string();
    let again = remove_tree(&tree).unwrap_err().to_string();
    let left: Vec<_> = fs::read_dir(&tree).unwrap().map(Result::unwrap).collect();
    let holder = left[0].path();
    rustix::mount::unmount(holder.join("mount"), rustix::mount::UnmountFlags::DETACH).unwrap();
    for error in [error, again] {
        assert!(error.contains("busy") && error.contains("mount"), "{error}");
    }
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(outside.join("kept").exists());
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}
