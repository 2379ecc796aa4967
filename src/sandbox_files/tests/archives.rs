//! Archives that are made, unpacked, broken and hostile.

use super::*;
use std::io::Write as _;
use tar::{Builder, EntryType, Header};

fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o640);
    header.set_size(size);
    header.set_cksum();
    header
}

/// Entry of a file.
fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    let header = header(name.as_bytes(), EntryType::Regular, bytes.len() as u64);
    let mut all = [header.as_bytes(), bytes].concat();
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn link(name: &str, kind: EntryType, target: &str) -> Vec<u8> {
    let mut header = header(name.as_bytes(), kind, 0);
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

/// Paths, kinds and targets of an archive, sorted, without comments.
fn entries(bytes: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let target = entry.link_name_bytes().unwrap_or_default();
        let (path, target) = (entry.path_bytes(), String::from_utf8_lossy(&target));
        let kind = char::from(entry.header().entry_type().as_byte());
        format!("{} {kind} {target}", String::from_utf8_lossy(&path))
    });
    let mut entries: Vec<_> = entries.filter(|entry| !entry.ends_with(" g ")).collect();
    entries.sort();
    entries
}

#[test]
fn archive_of_directory_makes_copy() {
    let sandbox = Sandbox::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    fs::create_dir_all(sandbox.path("from").join("d".repeat(120))).unwrap();
    fs::create_dir(sandbox.path("from/empty")).unwrap();
    let large: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    for (path, content) in [("a", b"one".as_slice()), ("large", &large), (&long, b"")] {
        fs::write(sandbox.path("from").join(path), content).unwrap();
    }
    fs::set_permissions(sandbox.path("from/a"), Permissions::from_mode(0o751)).unwrap();
    fs::hard_link(sandbox.path("from/a"), sandbox.path("from/b")).unwrap();
    symlink("//etc/./x".repeat(20), sandbox.path("from/link")).unwrap();
    let made = sandbox.get("/archive?path=from");
    assert_eq!(
        (made.status, made.header("content-type")),
        (200, "application/x-tar")
    );
    assert_eq!(entries(&made.body).len(), 7);
    assert_eq!(
        sandbox
            .put("/archive?path=new/to", made.body.clone())
            .status,
        204
    );
    let to = sandbox.path("new/to");
    assert_eq!(fs::read(to.join("large")).unwrap(), large);
    assert_eq!(mode(&to.join("b")), 0o751);
    let inode = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"), "further names are links");
    assert!(to.join("empty").is_dir() && to.join(&long).is_file());
    let target = fs::read_link(to.join("link")).unwrap();
    assert_eq!(target.to_str().unwrap(), "//etc/./x".repeat(20));
    assert_eq!(
        sandbox.put("/archive?path=new/to", made.body).status,
        204,
        "again"
    );
    let one = sandbox.get("/archive?path=from/a").body;
    assert_eq!(entries(&one), ["a 0 "]);
    let none = sandbox.get("/archive?path=from/empty").body;
    assert_eq!(none, [0; 1024]);
    assert_eq!(sandbox.put("/archive?path=nothing", none).status, 204);
    assert_eq!(sandbox.get("/archive?path=none").status, 404);
}

#[test]
fn archive_counts_what_it_leaves_out() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("file"), "x").unwrap();
    for name in ["fifo1", "fifo2"] {
        rustix::fs::mkfifoat(rustix::fs::CWD, sandbox.path(name), rustix::fs::Mode::RWXU).unwrap();
    }
    let made = sandbox.get("/archive?path=.").body;
    assert_eq!(entries(&made), ["file 0 "]);
    let text = String::from_utf8_lossy(&made);
    assert!(
        text.contains(" comment=cynode: left out 2 entries"),
        "{text}"
    );
    assert_eq!(sandbox.put("/archive?path=copy", made).status, 204);
    assert_eq!(fs::read_dir(sandbox.path("copy")).unwrap().count(), 1);
}

#[test]
fn compressed_archive_is_unpacked() {
    let sandbox = Sandbox::new();
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "a/b", b"one".as_slice())
        .unwrap();
    let plain = builder.into_inner().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    let gzip = encoder.finish().unwrap();
    for (path, bytes) in [
        ("gzip", gzip),
        ("zstd", zstd::encode_all(&plain[..], 3).unwrap()),
    ] {
        assert_eq!(
            sandbox.put(&format!("/archive?path={path}"), bytes).status,
            204
        );
        assert_eq!(fs::read(sandbox.path(path).join("a/b")).unwrap(), b"one");
    }
}

#[test]
fn no_entry_leaves_the_directory() {
    let sandbox = Sandbox::new();
    let home = sandbox.0.path().to_str().unwrap();
    symlink(home, sandbox.path("out")).unwrap();
    symlink("..", sandbox.path("up")).unwrap();
    let absolute = format!("{home}/evil");
    for (entries, word) in [
        (vec![file("../evil", b"x")], ".."),
        (vec![file("a/../../evil", b"x")], ".."),
        (vec![file(&absolute, b"x")], "relative"),
        (vec![file("out/evil", b"x")], "link out of"),
        (vec![file("up/evil", b"x")], "link out of"),
        (vec![file("up/new/evil", b"x")], "link out of"),
        (
            vec![link("l", EntryType::Symlink, ".."), file("l/evil", b"x")],
            "link out of",
        ),
        (
            vec![link("l", EntryType::Symlink, "/"), file("l/evil", b"x")],
            "link out of",
        ),
        (
            vec![link("evil", EntryType::Link, "../secret")],
            "hard link",
        ),
        (
            vec![link("evil", EntryType::Link, "out/secret")],
            "hard link",
        ),
        (vec![link("evil", EntryType::Char, "")], "device"),
        (vec![link("evil", EntryType::Fifo, "")], "FIFO"),
    ] {
        fs::write(sandbox.0.path().join("secret"), "secret").unwrap();
        let reply = sandbox.put("/archive?path=.", archive(&entries));
        assert_eq!(reply.status, 400, "{word}");
        assert!(reply.detail().contains(word), "{word}: {}", reply.detail());
        let _ = fs::remove_file(sandbox.path("l"));
        assert_eq!(sandbox.names(), ["out", "up"]);
        assert_eq!(fs::read_dir(home).unwrap().count(), 2, "{word}");
    }
}

#[test]
fn links_inside_the_directory_are_followed() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("real")).unwrap();
    symlink("real", sandbox.path("link")).unwrap();
    let entries = [file("link/a", b"1"), file("link/new/b", b"2")];
    assert_eq!(
        sandbox.put("/archive?path=.", archive(&entries)).status,
        204
    );
    assert_eq!(fs::read(sandbox.path("real/a")).unwrap(), b"1");
    assert_eq!(fs::read(sandbox.path("real/new/b")).unwrap(), b"2");
}

#[test]
fn broken_archive_keeps_whole_entries_only() {
    let sandbox = Sandbox::new();
    let whole = archive(&[file("one", &[1; 5000]), file("two", &[2; 5000])]);
    for cut in [7000, 8000, 11_500] {
        let reply = sandbox.put("/archive?path=.", whole[..cut].to_vec());
        assert_eq!(reply.status, 400);
        assert!(
            reply.detail().contains("were unpacked and stay"),
            "{}",
            reply.detail()
        );
        let expected: &[&str] = if cut > 11_264 {
            &["one", "two"]
        } else {
            &["one"]
        };
        assert_eq!(sandbox.names(), expected, "{cut}");
    }
    for body in [b"".as_slice(), b"no archive", &[7; 2000]] {
        let reply = sandbox.put("/archive?path=new", body.to_vec());
        assert_eq!(reply.status, 400, "{}", reply.detail());
    }
    fs::write(sandbox.path("file"), "").unwrap();
    assert_eq!(sandbox.put("/archive?path=file", whole).status, 409);
}
