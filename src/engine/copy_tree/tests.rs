use super::*;
use rustix::{
    fs::{XattrFlags, fgetxattr, fsetxattr},
    process::geteuid,
};
use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
};
use tempfile::TempDir;

/// A source and a target.
struct Trees {
    home: TempDir,
}

impl Trees {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("from")).unwrap();
        fs::create_dir(home.path().join("to")).unwrap();
        Self { home }
    }

    fn from(&self, name: &str) -> PathBuf {
        self.home.path().join("from").join(name)
    }

    fn to(&self, name: &str) -> PathBuf {
        self.home.path().join("to").join(name)
    }

    fn request(&self, kind: CopyKind, max_bytes: u64) -> CopyRequest {
        CopyRequest {
            from: self.from(""),
            to: self.to(""),
            kind,
            max_bytes,
            min_free: 0,
        }
    }

    fn copy(&self, kind: CopyKind) -> Result<Copied, CopyError> {
        copy_tree(&self.request(kind, u64::MAX))
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn files_links_and_directories_are_copied() {
    let trees = Trees::new();
    fs::create_dir_all(trees.from("a/b")).unwrap();
    fs::write(trees.from("a/b/file"), "content").unwrap();
    fs::write(trees.from("empty"), "").unwrap();
    symlink("/etc/passwd", trees.from("a/link")).unwrap();
    fs::set_permissions(trees.from("a/b/file"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(trees.from("a/b"), fs::Permissions::from_mode(0o555)).unwrap();
    let copied = trees.copy(CopyKind::Workspace).unwrap();
    assert_eq!(copied.entries, 5);
    assert!(copied.bytes >= 2 * DIRECTORY_BYTES, "{copied:?}");
    assert_eq!(fs::read_to_string(trees.to("a/b/file")).unwrap(), "content");
    assert_eq!(mode(&trees.to("a/b/file")), 0o751);
    assert_eq!(mode(&trees.to("a/b")), 0o555);
    let link = fs::read_link(trees.to("a/link")).unwrap();
    assert_eq!(link, Path::new("/etc/passwd"));
    for name in ["a/b/file", "a/b", "a/link", "empty"] {
        let modified = |path: PathBuf| {
            let meta = fs::symlink_metadata(path).unwrap();
            (meta.mtime(), meta.mtime_nsec())
        };
        assert_eq!(
            modified(trees.from(name)),
            modified(trees.to(name)),
            "{name}"
        );
    }
}

#[test]
fn directory_behind_link_is_not_copied() {
    let trees = Trees::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), trees.from("link")).unwrap();
    trees.copy(CopyKind::Workspace).unwrap();
    let copy = fs::symlink_metadata(trees.to("link")).unwrap();
    assert!(copy.is_symlink());
    // A directory that becomes a link after it was noted.
    fs::create_dir(trees.from("swapped")).unwrap();
    let request = trees.request(CopyKind::Workspace, u64::MAX);
    let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
    let mut copy = TreeCopy {
        from: open(&request.from),
        to: open(&request.to),
        request: &request,
        copied: Copied::default(),
        pending: Vec::new(),
        pending_bytes: 0,
        unchecked_bytes: 0,
        unchecked_entries: 0,
        can_clone: false,
    };
    fs::remove_dir(trees.from("swapped")).unwrap();
    symlink(outside.path(), trees.from("swapped")).unwrap();
    fs::create_dir(trees.to("swapped")).unwrap();
    copy.copy_directory(b"swapped").unwrap();
    assert_eq!(fs::read_dir(trees.to("swapped")).unwrap().count(), 0);
}

#[test]
fn fifo_is_left_out() {
    let trees = Trees::new();
    let at = File::open(trees.from("")).unwrap();
    mknodat(&at, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::write(trees.from("file"), "").unwrap();
    trees.copy(CopyKind::Workspace).unwrap();
    let names = fs::read_dir(trees.to("")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["file"]);
}

#[test]
fn holes_stay_holes() {
    let trees = Trees::new();
    let sparse = File::create(trees.from("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(b"end", 1 << 30).unwrap();
    sparse.set_len(2 << 30).unwrap();
    let copied = trees.copy(CopyKind::Workspace).unwrap();
    let copy = File::open(trees.to("sparse")).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), 2 << 30);
    let mut end = [0; 4];
    copy.read_exact_at(&mut end, 1 << 30).unwrap();
    assert_eq!(&end, b"end\0");
    // A file system without holes writes them all.
    if sparse.metadata().unwrap().blocks() < 10_000 {
        assert!(copied.bytes < 16 << 20, "{copied:?}");
        assert!(copy.metadata().unwrap().blocks() < 10_000);
    }
}

#[test]
fn holes_of_upper_count() {
    let trees = Trees::new();
    let sparse = File::create(trees.from("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    let request = trees.request(CopyKind::Upper, 1 << 20);
    assert_eq!(copy_tree(&request), Err(CopyError::TooLarge));
    let copy = fs::symlink_metadata(trees.to("sparse"));
    assert!(copy.is_ok_and(|copy| copy.len() == 0 && copy.blocks() == 0));
    fs::remove_file(trees.to("sparse")).unwrap();
    let copied = trees.copy(CopyKind::Upper).unwrap();
    assert!(copied.bytes >= 1 << 30, "{copied:?}");
    assert!(copied.bytes < (1 << 30) + (1 << 20), "{copied:?}");
}

#[test]
fn content_of_upper_counts_once() {
    let trees = Trees::new();
    fs::write(trees.from("file"), vec![1; 1 << 20]).unwrap();
    let copied = trees.copy(CopyKind::Upper).unwrap();
    assert!(copied.bytes >= 1 << 20, "{copied:?}");
    assert!(copied.bytes < (1 << 20) + (64 << 10), "{copied:?}");
    assert_eq!(fs::read(trees.to("file")).unwrap(), vec![1; 1 << 20]);
}

#[test]
fn entries_and_links_of_upper_count() {
    let target = "x".repeat(1000);
    for (kind, at_least) in [(CopyKind::Workspace, 0), (CopyKind::Upper, 20_000)] {
        let trees = Trees::new();
        for n in 0..10 {
            symlink(&target, trees.from(&n.to_string())).unwrap();
        }
        let copied = trees.copy(kind).unwrap();
        assert!(copied.bytes >= at_least, "{copied:?}");
        assert!(copied.bytes < at_least + 1000, "{copied:?}");
    }
}

#[test]
fn file_with_lease_is_refused() {
    let refused = failure(b"a", Errno::AGAIN);
    assert!(matches!(refused, CopyError::Refused(text) if text.contains("lease")));
}

#[test]
fn too_large_tree_is_refused() {
    let trees = Trees::new();
    fs::write(trees.from("file"), vec![1; 100_000]).unwrap();
    let request = trees.request(CopyKind::Workspace, 50_000);
    assert_eq!(copy_tree(&request), Err(CopyError::TooLarge));
}

#[test]
fn reserve_of_disk_is_kept() {
    let trees = Trees::new();
    let request = CopyRequest {
        min_free: u64::MAX,
        ..trees.request(CopyKind::Workspace, u64::MAX)
    };
    assert!(matches!(copy_tree(&request), Err(CopyError::NoSpace(_))));
}

#[test]
fn deep_tree_is_refused_and_less_deep_one_copied() {
    for (levels, is_copied) in [(900, true), (1100, false)] {
        let trees = Trees::new();
        let mut directory = trees.from("");
        for _ in 0..levels {
            directory.push("d");
        }
        fs::create_dir_all(&directory).unwrap();
        let copied = trees.copy(CopyKind::Workspace);
        match copied {
            Ok(copied) => assert!(is_copied && copied.entries == levels),
            Err(CopyError::Refused(_)) => assert!(!is_copied),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn setuid_stays_in_upper_alone() {
    let (upper, workspace) = (Trees::new(), Trees::new());
    for (trees, kind, expected) in [
        (&upper, CopyKind::Upper, 0o4755),
        (&workspace, CopyKind::Workspace, 0o755),
    ] {
        fs::write(trees.from("program"), "x").unwrap();
        let mode_of = fs::Permissions::from_mode(0o4755);
        fs::set_permissions(trees.from("program"), mode_of).unwrap();
        trees.copy(kind).unwrap();
        assert_eq!(mode(&trees.to("program")), expected, "{kind:?}");
    }
}

#[test]
fn whiteouts_stay_in_upper() {
    let trees = Trees::new();
    let at = File::open(trees.from("")).unwrap();
    // Not permitted to users on kernels before 5.8, and in some containers.
    if mknodat(&at, "gone", FileType::CharacterDevice, Mode::empty(), 0).is_err() {
        return;
    }
    trees.copy(CopyKind::Upper).unwrap();
    // A directory may name an entry twice.
    trees.copy(CopyKind::Upper).unwrap();
    let copy = fs::symlink_metadata(trees.to("gone")).unwrap();
    assert_eq!(copy.rdev(), 0);
    assert_eq!(copy.mode() & 0o170_000, 0o020_000);
}

#[test]
fn opaque_directories_stay_and_redirected_ones_are_refused() {
    let trees = Trees::new();
    fs::create_dir(trees.from("hidden")).unwrap();
    let directory = File::open(trees.from("hidden")).unwrap();
    // As root and on file systems with such attributes.
    let name = if geteuid().is_root() {
        "trusted.overlay."
    } else {
        "user.overlay."
    };
    let set = |attribute: &str| {
        let name = format!("{name}{attribute}");
        fsetxattr(&directory, name, b"y", XattrFlags::empty())
    };
    if set("opaque").is_err() {
        return;
    }
    trees.copy(CopyKind::Upper).unwrap();
    let copy = File::open(trees.to("hidden")).unwrap();
    let mut value = [0_u8; 4];
    assert_eq!(fgetxattr(&copy, format!("{name}opaque"), &mut value), Ok(1));
    set("redirect").unwrap();
    fs::remove_dir(trees.to("hidden")).unwrap();
    let refused = trees.copy(CopyKind::Upper);
    assert!(matches!(refused, Err(CopyError::Refused(text)) if text.contains("hidden")));
}

#[test]
fn answer_survives_its_way() {
    let trees = Trees::new();
    fs::write(trees.from("file"), "x").unwrap();
    for (max_bytes, is_copied) in [(0, false), (1 << 20, true)] {
        let request = trees.request(CopyKind::Workspace, max_bytes);
        let request = serde_json::to_string(&request).unwrap();
        let answer = copy_from_argument(&request).unwrap();
        let answer: Result<Copied, CopyError> = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer.is_ok(), is_copied, "{answer:?}");
        let _ = fs::remove_file(trees.to("file"));
    }
    assert!(copy_from_argument("no request").is_err());
}
