//! Hostile and ordinary files and archives, placed in a directory.

mod damaged;

use super::*;
use proptest::prelude::*;
use std::{
    fs::{self, Permissions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
};
use tar::{Builder, EntryType, Header};

const NO_LIMITS: Limits = Limits {
    workspace_bytes: u64::MAX,
    min_free: 0,
};

fn content(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn job_file(path: &str, extract: bool) -> JobFile {
    let content = serde_json::json!({"sha256": "0".repeat(64), "size_bytes": 0});
    let file = serde_json::json!({"path": path, "content": content, "extract": extract});
    serde_json::from_value(file).unwrap()
}

/// Header of an entry with any name, also one that no archiver writes.
fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o640);
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    header.set_cksum();
    header
}

fn link(name: &[u8], kind: EntryType, target: &[u8]) -> Header {
    let mut header = header(name, kind, 0);
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
    header.set_cksum();
    header
}

fn file(name: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut all = header(name, EntryType::Regular, bytes.len() as u64)
        .as_bytes()
        .to_vec();
    all.extend_from_slice(bytes);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn entry(header: &Header) -> Vec<u8> {
    header.as_bytes().to_vec()
}

/// Home with a workspace, and beside it what no archive may reach.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("workspace")).unwrap();
    fs::write(home.path().join("secret"), "secret").unwrap();
    home
}

fn extract_with(home: &Path, bytes: &[u8], limits: &Limits) -> Result<(), PlaceError> {
    let file = job_file(".", true);
    let open = |_: &JobFile| Ok(content(bytes));
    place(
        &home.join("workspace"),
        &[file],
        open,
        limits,
        &Control::default(),
    )
}

fn extracted(bytes: &[u8]) -> (tempfile::TempDir, Result<(), PlaceError>) {
    let home = home();
    let done = extract_with(home.path(), bytes, &NO_LIMITS);
    assert_eq!(fs::read(home.path().join("secret")).unwrap(), b"secret");
    let beside = fs::read_dir(home.path()).unwrap().count();
    assert_eq!(beside, 2, "nothing is made outside of the workspace");
    (home, done)
}

/// Reason for which an archive is refused.
#[track_caller]
fn refused(entries: &[Vec<u8>]) -> String {
    match extracted(&archive(entries)).1 {
        Err(PlaceError::Invalid(reason)) => reason,
        other => panic!("not refused as invalid: {other:?}"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn three_formats_extract_the_same() {
    let mut builder = Builder::new(Vec::new());
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(255));
    for (name, bytes) in [("a", b"one".as_slice()), (&long, b"two"), ("empty", b"")] {
        let mut header = Header::new_gnu();
        header.set_mode(0o4755);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    let plain = builder.into_inner().unwrap();
    let zst = zstd::encode_all(&plain[..], 1).unwrap();
    for bytes in [&plain, &gzip(&plain), &zst] {
        let (home, done) = extracted(bytes);
        done.unwrap();
        let inside = |name: &str| home.path().join("workspace").join(name);
        assert_eq!(fs::read(inside("a")).unwrap(), b"one");
        assert_eq!(fs::read(inside(&long)).unwrap(), b"two");
        assert_eq!(fs::metadata(inside("empty")).unwrap().len(), 0);
        let mode = fs::metadata(inside("a")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755, "no setuid bit");
    }
}

#[test]
fn plain_files_have_modes_and_parents() {
    let home = home();
    let mut script = job_file("/workspace/bin/run.sh", false);
    script.mode = Some(crate::api::jobs::files::FileMode(0o755));
    let odd = "a\nb/".to_owned() + &"x".repeat(255);
    let mut again = job_file("twice", false);
    again.content.size_bytes = 3;
    let files = [
        script,
        job_file(&odd, false),
        job_file("twice", false),
        again,
    ];
    let open = |file: &JobFile| {
        Ok(content(match file.path.as_str() {
            "/workspace/bin/run.sh" => b"#!/bin/sh",
            "twice" if file.content.size_bytes == 3 => b"two",
            "twice" => b"one",
            _ => b"",
        }))
    };
    let control = Control::default();
    let workspace = home.path().join("workspace");
    place(&workspace, &files, open, &NO_LIMITS, &control).unwrap();
    let inside = |name: &str| home.path().join("workspace").join(name);
    let mode = |name: &str| fs::metadata(inside(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("bin/run.sh"), 0o755);
    assert_eq!((mode(&odd), mode("a\nb")), (0o644, 0o755));
    assert_eq!(fs::read(inside("twice")).unwrap(), b"two");
    assert_eq!(control.bytes_read.into_inner(), 9 + 3 + 3);
}

#[test]
fn climbing_and_absolute_names_are_refused() {
    for name in ["../x", "a/../../x", "/etc/x", "..", "a/.."] {
        let reason = refused(&[file(name.as_bytes(), b"x")]);
        assert!(reason.contains(name), "{reason}");
    }
}

#[test]
fn no_entry_goes_through_a_link() {
    for target in ["..", "/", "."] {
        let link = entry(&link(b"link", EntryType::Symlink, target.as_bytes()));
        let reason = refused(&[link.clone(), file(b"link/x", b"x")]);
        assert!(reason.contains("link/x"), "{reason}");
        let deeper = entry(&header(b"link/d/", EntryType::Directory, 0));
        refused(&[link, deeper]);
    }
    // A file of the same name takes the place of a link, and goes nowhere.
    let to_secret = entry(&link(b"x", EntryType::Symlink, b"../secret"));
    let (home, done) = extracted(&archive(&[to_secret, file(b"x", b"mine")]));
    done.unwrap();
    assert_eq!(fs::read(home.path().join("workspace/x")).unwrap(), b"mine");
}

#[test]
fn symbolic_links_are_kept_as_they_are() {
    let links = [("a", "/etc/passwd"), ("b", "../../x"), ("c", "nowhere")];
    let entries =
        links.map(|(name, to)| entry(&link(name.as_bytes(), EntryType::Symlink, to.as_bytes())));
    let (home, done) = extracted(&archive(&entries));
    done.unwrap();
    for (name, to) in links {
        let found = fs::read_link(home.path().join("workspace").join(name)).unwrap();
        assert_eq!(found, Path::new(to));
    }
}

#[test]
fn hard_links_stay_inside() {
    for target in ["../secret", "/etc/passwd", "missing", "d", "s"] {
        let reason = refused(&[
            entry(&header(b"d/", EntryType::Directory, 0)),
            entry(&link(b"s", EntryType::Symlink, b"../secret")),
            entry(&link(b"l", EntryType::Link, target.as_bytes())),
        ]);
        assert!(reason.contains("hard link"), "{target}: {reason}");
    }
    let through = refused(&[
        entry(&link(b"up", EntryType::Symlink, b"..")),
        entry(&link(b"l", EntryType::Link, b"up/secret")),
    ]);
    assert!(through.contains("hard link"), "{through}");
    let same = entry(&link(b"b", EntryType::Link, b"./a"));
    let (home, done) = extracted(&archive(&[file(b"a", b"one"), same.clone(), same]));
    done.unwrap();
    let inode = |name: &str| {
        fs::metadata(home.path().join("workspace").join(name))
            .unwrap()
            .ino()
    };
    assert_eq!(inode("a"), inode("b"));
}

#[test]
fn devices_and_unknown_types_are_refused() {
    let kinds = [EntryType::Char, EntryType::Block, EntryType::Fifo];
    for kind in kinds
        .into_iter()
        .chain([b'M', b'S', b'?'].map(EntryType::new))
    {
        let reason = refused(&[entry(&header(b"dev/odd", kind, 0))]);
        assert!(reason.contains("dev/odd"), "{reason}");
    }
}

#[test]
fn file_and_directory_of_one_name_clash() {
    let directory = entry(&header(b"a/", EntryType::Directory, 0));
    let reason = refused(&[directory.clone(), file(b"a", b"x")]);
    assert!(reason.contains("directory"), "{reason}");
    refused(&[file(b"a", b"x"), directory]);
    refused(&[file(b"a", b"x"), file(b"a/b", b"x")]);
}

#[test]
fn directories_without_access_can_be_filled() {
    let mut closed = header(b"d/", EntryType::Directory, 0);
    closed.set_mode(0o2000);
    closed.set_cksum();
    let (home, done) = extracted(&archive(&[entry(&closed), file(b"d/a", b"x")]));
    done.unwrap();
    let path = home.path().join("workspace/d");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0);
    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(fs::read(path.join("a")).unwrap(), b"x");
}

#[test]
fn cancel_stops_extraction() {
    let home = home();
    let control = Control::default();
    control.is_canceled.store(true, Ordering::Relaxed);
    let open = |_: &JobFile| Ok(content(&archive(&[file(b"a", b"x")])));
    let files = [job_file(".", true)];
    let done = place(
        &home.path().join("workspace"),
        &files,
        open,
        &NO_LIMITS,
        &control,
    );
    assert!(matches!(done, Err(PlaceError::Canceled)));
}

#[test]
fn long_targets_do_not_leave_through_workspace_link() {
    let home = home();
    symlink("..", home.path().join("workspace/out")).unwrap();
    for extract in [true, false] {
        let bytes = archive(&[file(b"x", b"x")]);
        let path = if extract { "out" } else { "out/x" };
        let files = [job_file(path, extract)];
        let (open, control) = (|_: &JobFile| Ok(content(&bytes)), Control::default());
        let workspace = home.path().join("workspace");
        let done = place(&workspace, &files, open, &NO_LIMITS, &control);
        assert!(matches!(done, Err(PlaceError::Invalid(_))), "{done:?}");
    }
    assert!(!home.path().join("x").exists());
}

#[test]
#[ignore = "takes long without optimization; run by hand"]
fn two_hundred_thousand_entries_fit() {
    let entries: Vec<_> = (0..200_000)
        .map(|n| file(format!("d{}/{n}", n % 100).as_bytes(), b""))
        .collect();
    let (home, done) = extracted(&archive(&entries));
    done.unwrap();
    let directories = fs::read_dir(home.path().join("workspace")).unwrap();
    assert_eq!(directories.count(), 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_archives_stay_inside(
        entries in prop::collection::vec((r"(\.\./|/|a/|b/|\./|l/){0,4}[abl.]{0,2}", 0_u8..8, r"(\.\./|/|a/|l/){0,3}[abls.]{0,2}"), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..64),
        at in any::<prop::sample::Index>(),
    ) {
        let kinds = *b"00125xL7";
        let entries: Vec<_> = entries.iter().map(|(name, kind, target)| {
            let kind = EntryType::new(kinds[usize::from(*kind)]);
            if kind == EntryType::Regular {
                file(name.as_bytes(), target.as_bytes())
            } else {
                entry(&link(name.as_bytes(), kind, target.as_bytes()))
            }
        }).collect();
        let mut bytes = archive(&entries);
        if !noise.is_empty() {
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + noise.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
        }
        // The check that matters is there: nothing outside is made or changed.
        let _ = extracted(&bytes);
    }
}

#[test]
fn copies_go_on_after_part() {
    let (from, mut to) = (content(b"0123456789"), tempfile::tempfile().unwrap());
    while copy_part(&from, &to, 4).unwrap() > 0 {}
    let mut text = String::new();
    to.rewind().unwrap();
    to.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0123456789");
}
