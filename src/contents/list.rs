//! Contents that are here, read from the directory.

use crate::api::jobs::files::ContentHash;
use std::{fs, io, path::Path, time::SystemTime};

/// A content in a list.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    /// Hash.
    pub sha256: ContentHash,
    /// Number of bytes.
    pub size_bytes: u64,
    /// Time when it was last put or opened.
    pub last_used: SystemTime,
}

/// All contents in `objects`. A file with another name is not ours and is left alone.
pub(super) fn contents(objects: &Path) -> io::Result<Vec<StoredEntry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(objects)? {
        let entry = entry?;
        let Some(sha256) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        found.push(StoredEntry {
            sha256,
            size_bytes: meta.len(),
            last_used: meta.modified()?,
        });
    }
    Ok(found)
}

/// Bytes of all files of a directory.
pub(super) fn total_bytes(directory: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(directory)? {
        total += entry?.metadata()?.len();
    }
    Ok(total)
}
