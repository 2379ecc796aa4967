//! Files that are replaced in one piece.
//!
//! A reader, and the next start after a crash, finds the old content or the new one, never a mix:
//! the new content is written beside the file and renamed over it. A process that is killed meanwhile leaves
//! that file, perhaps with a secret in it, and [`remove_temporary_files`] removes it later.

#[cfg(target_os = "linux")]
use rustix::io::Errno;
use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tempfile::{Builder, NamedTempFile};

/// Mode of a file that only its owner may read.
pub const PRIVATE_MODE: u32 = 0o600;

/// Age from which a temporary file is no running process's.
pub const STALE_AGE: Duration = Duration::from_hours(1);
/// Start of the name of a temporary file.
const TEMPORARY_PREFIX: &str = ".new-";
/// Start of the name of a file that is not yet complete, in a directory of the user's: no name that they would give.
const UNFINISHED_PREFIX: &str = ".cynode-new-";

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
    let directory = directory_of(path);
    // Removed when dropped, so that a failure leaves nothing behind.
    let mut temporary = Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(directory)?;
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

/// Copies at most `most` bytes from where one file is to where the other is, inside the kernel where it can. Returns
/// their number, which is 0 only at the end.
pub fn copy_part(from: &File, to: &File, most: u64) -> io::Result<u64> {
    #[cfg(target_os = "linux")]
    {
        let length = usize::try_from(most).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, None, to, None, length) {
            // Such as between file systems of older kernels.
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => {}
            copied => return Ok(copied? as u64),
        }
    }
    io::copy(&mut from.take(most), &mut &*to)
}

/// New content of a file, written piece by piece. Dropped without [`commit`](Self::commit), it leaves the old content.
pub(crate) struct Replacement {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl Replacement {
    /// Begins to replace the file at `path`. The new one gets this mode, less the umask.
    pub(crate) fn begin(path: &Path, mode: u32) -> io::Result<Self> {
        Self::begin_in(directory_of(path), path, mode)
    }

    /// Same as [`begin`](Self::begin), with the new content in another directory of the same file system until then.
    pub(crate) fn begin_in(directory: &Path, path: &Path, mode: u32) -> io::Result<Self> {
        let temporary = Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory)?;
        Ok(Self {
            temporary,
            path: path.to_owned(),
        })
    }

    /// The new content, which is not in its place yet.
    pub(crate) fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Puts the new content in the place of the old one. After a loss of power the file may be empty.
    pub(crate) fn commit(self) -> io::Result<()> {
        self.temporary
            .persist(self.path)
            .map_err(|error| error.error)?;
        Ok(())
    }
}

impl io::Write for Replacement {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

/// Directory of a file.
fn directory_of(path: &Path) -> &Path {
    let parent = path.parent();
    let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// File of any length that is written beside its place and moved there once it is complete. Removed where it is not.
pub struct NewFile(NamedTempFile);

impl NewFile {
    /// Empty file of mode 0600 in `directory`.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let file = Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempfile_in(directory)?;
        Ok(Self(file))
    }

    /// Gives the file its name, also across a loss of power. Returns its size.
    pub fn persist(self, path: &Path) -> io::Result<u64> {
        self.0.as_file().sync_all()?;
        let file = self.0.persist(path).map_err(|error| error.error)?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(file.metadata()?.len())
    }
}

impl io::Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Removes files that killed processes left in `directory` while they replaced others. One that is younger than
/// `min_age` stays: it may be a running process's. A failure is logged.
pub fn remove_temporary_files(directory: &Path, min_age: Duration) {
    if let Err(error) = try_remove(directory, TEMPORARY_PREFIX, min_age)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, directory = %directory.display(), "temporary files not removed");
    }
}

/// Removes what killed processes left of files that they replaced piece by piece, beside the file at `path`.
pub(crate) fn remove_unfinished_downloads(path: &Path) {
    let directory = directory_of(path);
    if let Err(error) = try_remove(directory, UNFINISHED_PREFIX, STALE_AGE) {
        tracing::debug!(%error, directory = %directory.display(), "unfinished files not removed");
    }
}

/// Whether a file of this name is not yet complete, or never will be.
pub(crate) fn is_unfinished(name: &OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(UNFINISHED_PREFIX.as_bytes())
}

fn try_remove(directory: &Path, prefix: &str, min_age: Duration) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        // Of the entry itself, not of a link's target. A file from the future counts as new.
        let meta = entry.metadata()?;
        let age = now
            .duration_since(meta.modified()?)
            .unwrap_or(Duration::ZERO);
        if meta.is_file() && age >= min_age {
            fs::remove_file(entry.path())?;
        }
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

    #[test]
    fn temporary_files_of_killed_processes_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let inside = |name: &str| home.path().join(name);
        for name in [".new-old", ".new-young", "psk"] {
            fs::write(inside(name), "secret").unwrap();
        }
        fs::create_dir(inside(".new-directory")).unwrap();
        let two_hours_ago = SystemTime::now() - 2 * STALE_AGE;
        for name in [".new-old", "psk"] {
            let file = File::options().write(true).open(inside(name)).unwrap();
            file.set_modified(two_hours_ago).unwrap();
        }
        let names = || {
            let entries = fs::read_dir(home.path()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        remove_temporary_files(home.path(), STALE_AGE);
        assert_eq!(names(), [".new-directory", ".new-young", "psk"]);
        remove_temporary_files(home.path(), Duration::ZERO);
        assert_eq!(names(), [".new-directory", "psk"]);
        remove_temporary_files(&inside("missing"), Duration::ZERO);

        let unfinished = Replacement::begin(&inside("result"), 0o666).unwrap();
        let (_, path) = unfinished.temporary.keep().unwrap();
        assert!(is_unfinished(path.file_name().unwrap()));
        remove_unfinished_downloads(&inside("result"));
        assert!(path.exists(), "a running process may write it");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(two_hours_ago).unwrap();
        remove_unfinished_downloads(&inside("result"));
        assert_eq!(names(), [".new-directory", "psk"]);
    }
}
