//! A file that gives way to a start on a full disk.
//!
//! SQLite needs a little room to open a database: its index of the log is a file of its own, made anew at
//! each start. So there is a file beside the database that holds nothing, and goes where that room is
//! missing. It is made again once the disk has room.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Enough to open the database, and for some logins and cancels.
const BALLAST_BYTES: usize = 1 << 20;

/// Path of the ballast of the database at `path`.
fn path_of(path: &Path) -> PathBuf {
    path.with_extension("db-ballast")
}

/// Makes it where it is missing.
pub(super) fn ensure(path: &Path) -> io::Result<()> {
    let ballast = path_of(path);
    if ballast.exists() {
        return Ok(());
    }
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&ballast)
        // Bytes that no file system makes less of.
        .and_then(|mut file| {
            let mut bytes = vec![0; BALLAST_BYTES];
            getrandom::fill(&mut bytes).map_err(io::Error::other)?;
            file.write_all(&bytes)
        });
    if written.is_err() {
        // Half of one would pass for a whole one.
        let _ = fs::remove_file(&ballast);
    }
    written
}

/// Gives its room away; false where there is none.
pub(super) fn remove(path: &Path) -> bool {
    fs::remove_file(path_of(path)).is_ok()
}
