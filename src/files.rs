//! Files that are replaced in one piece.
//!
//! A reader, and the next start after a crash, finds the old content or the new one, never a mix:
//! the new content is written beside the file and renamed over it.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};
use tempfile::Builder;

/// Mode of a file that only its owner may read.
pub const PRIVATE_MODE: u32 = 0o600;

/// Crash that a replaced file survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// The end of the process. After a loss of power the file may be empty.
    Process,
    /// A loss of power: the file then has its old content or the new one.
    Content,
    /// A loss of power: the file then has the new content.
    Full,
}

/// Replaces the content of the file at `path`, which is made where it is missing, with mode 0600.
///
/// Fails where the directory is missing, not writable or full; the old content then stays.
pub fn replace_file(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    replace_file_with_mode(path, content, PRIVATE_MODE, durability)
}

/// Same as [`replace_file`], with another mode.
pub fn replace_file_with_mode(
    path: &Path,
    content: &[u8],
    mode: u32,
    durability: Durability,
) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // Removed when dropped, so that a failure leaves nothing behind.
    let mut temporary = Builder::new().prefix(".new-").tempfile_in(directory)?;
    temporary.write_all(content)?;
    // The umask must not narrow a mode that others rely on.
    fs::set_permissions(temporary.path(), Permissions::from_mode(mode))?;
    if durability != Durability::Process {
        temporary.as_file().sync_all()?;
    }
    temporary.persist(path).map_err(|error| error.error)?;
    if durability == Durability::Full {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn replaced_file_has_new_content_and_mode() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        for (content, mode) in [("old, and longer", 0o600), ("new", 0o555)] {
            replace_file_with_mode(&path, content.as_bytes(), mode, Durability::Full).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
        }
        assert_eq!(
            fs::read_dir(home.path()).unwrap().count(),
            1,
            "no other file is left"
        );
    }

    #[test]
    fn failed_replacement_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("directory");
        fs::create_dir(&path).unwrap();
        replace_file(&path, b"new", Durability::Process).unwrap_err();
        assert!(path.is_dir());
        assert_eq!(
            fs::read_dir(home.path()).unwrap().count(),
            1,
            "no other file is left"
        );
    }
}
