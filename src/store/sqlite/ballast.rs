//! Ballast: a file that is deleted to free space for a start on a full disk.
//!
//! SQLite needs a little space to open a database: its index of the log is a file that each start creates. So
//! a file without content is kept beside the database, and deleted where that space is missing. It is
//! created again once the disk has space.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Size of the ballast: enough to open the database, and for some logins and cancels.
const BALLAST_BYTES: usize = 1 << 20;

/// Path of the ballast of the database at `path`.
fn path_of(path: &Path) -> PathBuf {
    path.with_extension("db-ballast")
}

/// Creates the ballast where it is missing.
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
        // Random bytes, which no file system compresses.
        .and_then(|mut file| {
            let mut bytes = vec![0; BALLAST_BYTES];
            getrandom::fill(&mut bytes).map_err(io::Error::other)?;
            file.write_all(&bytes)
        });
    if written.is_err() {
        // A partial file would pass for a whole one.
        let _ = fs::remove_file(&ballast);
    }
    written
}

/// Deletes the ballast; false where there is none.
pub(super) fn remove(path: &Path) -> bool {
    fs::remove_file(path_of(path)).is_ok()
}
