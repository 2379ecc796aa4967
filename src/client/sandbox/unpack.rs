//! Archive of a sandbox, unpacked into a directory of this machine.
//!
//! The archive is hostile: entries land below the directory, or not at all, whatever links it makes. Files keep their
//! permission bits, and get no others. Nothing is written to a `.git`, whose files name commands that run here.

use super::receive::cut;
use crate::{
    archive::{
        Archive, ArchiveError, Entry, EntryKind, Links, RelativePath, Tree, normalize, quoted,
        set_mode, set_modified,
    },
    client::{many::Failures, print::note, progress::Progress},
    exit::{Exit, Failure},
};
use std::{
    io::{self, Read, Write as _},
    path::Path,
};

/// Size of a piece.
const PIECE_BYTES: usize = 256 * 1024;
/// Errors after which the rest is not tried.
const MAX_FAILURES: usize = 20;

/// Unpacks an archive. Entries that can't be made are named, and the others are.
pub(super) fn unpack(body: impl Read, name: &str, into: &Path) -> Result<(), Failure> {
    let tree = Tree::open(into, "", Links::Refused)
        .map_err(|error| Failure::internal(format!("{}: {error}", into.display())))?;
    let mut unpacking = Unpacking {
        tree,
        progress: Progress::start("copy", name, 0),
        buffer: vec![0; PIECE_BYTES],
    };
    let (mut failures, mut failed, mut in_git) = (Failures::default(), 0, 0_u64);
    let mut archive = Archive::open(body).map_err(|error| unreadable(&error))?;
    while let Some(entry) = archive.next_entry().map_err(|error| unreadable(&error))? {
        let is_git = |part: &[u8]| part.eq_ignore_ascii_case(b".git");
        if entry.path.split(|byte| *byte == b'/').any(is_git) {
            in_git += 1;
            continue;
        }
        match unpacking.place(&mut archive, &entry) {
            Ok(()) => {}
            Err(PlaceError::Archive(error)) => return Err(unreadable(&error)),
            Err(PlaceError::Entry(reason)) => {
                failures.add(
                    Exit::Conflict,
                    format!("{} is not written: {reason}", quoted(&entry.path)),
                );
                failed += 1;
                if failed == MAX_FAILURES {
                    failures.add(
                        Exit::Conflict,
                        "too many errors; the rest is left out".to_owned(),
                    );
                    return failures.finish();
                }
            }
        }
    }
    unpacking.tree.finish()?;
    if in_git > 0 {
        note(&format!(
            "warning: {in_git} entries in .git are left out, since files there can run commands here; get them with: \
             cynode sandbox cp NAME:PATH - | tar x"
        ));
    }
    failures.finish()
}

/// Failure of an archive that can't be read to its end.
fn unreadable(error: &ArchiveError) -> Failure {
    match error {
        ArchiveError::Read(error) => cut(error),
        ArchiveError::Invalid(reason) => Failure::internal(format!(
            "the sandbox sent an archive that is not valid: {reason}"
        )),
    }
}

/// Reason for which an entry is not there.
enum PlaceError {
    Archive(ArchiveError),
    Entry(String),
}

impl From<io::Error> for PlaceError {
    fn from(error: io::Error) -> Self {
        Self::Entry(error.to_string())
    }
}

struct Unpacking {
    tree: Tree,
    progress: Progress,
    buffer: Vec<u8>,
}

impl Unpacking {
    fn place(&mut self, archive: &mut Archive<'_>, entry: &Entry) -> Result<(), PlaceError> {
        let relative =
            |path: &[u8]| normalize(path).map_err(|reason| PlaceError::Entry(reason.to_owned()));
        let path = relative(&entry.path)?;
        match entry.kind {
            EntryKind::File => self.place_file(archive, entry, &path),
            EntryKind::Directory => Ok(self.tree.create_directory(&path, entry.mode)?),
            EntryKind::Symlink => Ok(self.tree.create_symlink(&path, &entry.target)?),
            EntryKind::Link => Ok(self.tree.create_link(&path, &relative(&entry.target)?)?),
        }
    }

    fn place_file(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        path: &RelativePath,
    ) -> Result<(), PlaceError> {
        let mut file = self.tree.create_file(path)?;
        loop {
            let read = archive
                .read(&mut self.buffer)
                .map_err(PlaceError::Archive)?;
            if read == 0 {
                break;
            }
            file.write_all(&self.buffer[..read])?;
            self.progress.add(read as u64);
        }
        set_mode(&file, entry.mode)?;
        if let Some(seconds) = entry.modified {
            // A time that the file system can't hold is no reason to do without the file.
            let _ = set_modified(&file, seconds);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };
    use tar::{Builder, EntryType, Header};

    /// Archive with these entries: type, path, target or content.
    fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, path, rest) in entries {
            let mut header = Header::new_gnu();
            let is_file = *kind == EntryType::Regular;
            let name = path.as_bytes();
            // The crate's own function refuses what is tested here.
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            if !is_file {
                header.as_old_mut().linkname[..rest.len()].copy_from_slice(rest.as_bytes());
            }
            header.set_entry_type(*kind);
            header.set_mode(0o6750);
            header.set_size(if is_file { rest.len() as u64 } else { 0 });
            header.set_cksum();
            let content = if is_file { rest.as_bytes() } else { &[] };
            builder.append(&header, content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn entries_stay_below_directory() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("in");
        fs::create_dir(&dir).unwrap();
        symlink(home.path(), dir.join("up")).unwrap();
        use EntryType::{Directory, Fifo, Link, Regular, Symlink};
        let bytes = archive(&[
            (Regular, "../escaped", "x"),
            (Regular, "/tmp/escaped-cynode", "x"),
            (Symlink, "link", ".."),
            (Regular, "link/escaped", "x"),
            (Regular, "up/escaped", "x"),
            (Directory, "a/.GIT", ""),
            (Regular, "a/.GIT/config", "x"),
            (Link, "hard", "../in-vain"),
            (Regular, "ok", "fine"),
        ]);
        let failure = unpack(&bytes[..], "x", &dir).unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        let left: Vec<_> = fs::read_dir(home.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(!dir.join("a/.GIT").exists());
        assert_eq!(fs::read_to_string(dir.join("ok")).unwrap(), "fine");
        let mode = fs::metadata(dir.join("ok")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o750);
        let bytes = archive(&[(Fifo, "fifo", "")]);
        assert!(unpack(&bytes[..], "x", &dir).is_err());
        assert!(!dir.join("fifo").exists());
    }

    #[test]
    fn cut_archive_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let bytes = archive(&[(EntryType::Regular, "a", "content")]);
        for cut in [0, 100, 512, 515, 1024, bytes.len() - 600] {
            assert!(unpack(&bytes[..cut], "x", home.path()).is_err(), "{cut}");
        }
        unpack(&bytes[..], "x", home.path()).unwrap();
    }
}
