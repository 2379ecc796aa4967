//! Trees that are hard to remove: deep, wide, closed, with odd names and odd kinds of files.

use super::report;
use std::{
    ffi::{CString, OsStr},
    fs::{self, File, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
};

/// Directories inside each other: more than there are descriptors, and far longer than any path.
const DEPTH: usize = 3000;
/// Files beside each other.
const WIDTH: usize = 3000;

/// Creates this many files, a thousand to a directory.
pub(super) fn many_files(count: &str, place: &str) {
    let made = (0..count.parse().unwrap_or(0)).try_for_each(|n: usize| {
        let directory = format!("{place}/d{}", n / 1000);
        if n.is_multiple_of(1000) {
            fs::create_dir_all(&directory)?;
        }
        File::create(format!("{directory}/{n}")).map(drop)
    });
    report("files", &made);
}

/// Creates all kinds of trees in a directory.
pub(super) fn grow(place: &str) {
    let top = format!("{place}/grown");
    report("top", &fs::create_dir(&top));
    report("deep", &deep(&top));
    let wide = (0..WIDTH).try_for_each(|n| File::create(format!("{top}/{n}")).map(drop));
    report("wide", &wide);
    report("names", &odd_names(Path::new(&top)));
    report("kinds", &odd_kinds(&top));
    // Last: it also denies access to its creator.
    report("modes", &odd_modes(&top));
}

fn deep(top: &str) -> io::Result<()> {
    std::env::set_current_dir(top)?;
    (0..DEPTH).try_for_each(|_| {
        fs::create_dir("d")?;
        std::env::set_current_dir("d")
    })?;
    std::env::set_current_dir("/")
}

fn odd_names(top: &Path) -> io::Result<()> {
    let long = [b'x'; 255];
    let names: [&[u8]; 8] = [
        b"-rf",
        b"..x",
        b" ",
        b"new\nline",
        b"\x1b[2J",
        b"\xff\xfe",
        b".cynode-1",
        &long,
    ];
    names.iter().try_for_each(|name| {
        let directory = top.join(OsStr::from_bytes(name));
        fs::create_dir(&directory)?;
        File::create(directory.join(OsStr::from_bytes(name))).map(drop)
    })
}

fn odd_kinds(top: &str) -> io::Result<()> {
    let fifo = CString::new(format!("{top}/fifo"))?;
    // SAFETY: the name ends with a NUL, and outlives the call.
    if unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) } == -1 {
        return Err(io::Error::last_os_error());
    }
    drop(UnixListener::bind(format!("{top}/socket"))?);
    symlink("/etc", format!("{top}/link"))?;
    symlink("loop", format!("{top}/loop"))?;
    File::create(format!("{top}/many"))?;
    (0..100).try_for_each(|n| fs::hard_link(format!("{top}/many"), format!("{top}/hard-{n}")))?;
    File::create(format!("{top}/sparse"))?.set_len(1 << 40)
}

fn odd_modes(top: &str) -> io::Result<()> {
    let closed = format!("{top}/closed/closed");
    fs::create_dir_all(&closed)?;
    File::create(format!("{closed}/file"))?;
    for (path, mode) in [
        (closed.as_str(), 0),
        (&format!("{top}/closed"), 0o1000),
        (top, 0o7000),
    ] {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(())
}
