//! Extraction of one archive into a directory of the workspace.

use super::{
    Budget, PlaceError,
    archive::{Archive, ArchiveError, Entry, EntryKind},
    failure, quoted,
    tree::{RelativePath, Tree, normalize, set_mode, set_modified},
};
use std::{fs::File, io::Write as _};

/// Bytes that are read of an archive at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Extracts an archive into the directory `path` of `workspace`.
pub(super) fn extract(
    workspace: &Tree,
    path: &str,
    content: &File,
    budget: &mut Budget<'_>,
) -> Result<(), PlaceError> {
    let name = quoted(path.as_bytes());
    let in_archive =
        |error: ArchiveError| PlaceError::Invalid(format!("archive for {name}: {error}"));
    let directory = relative(path.as_bytes())?;
    budget.count_entries(1)?;
    let tree = workspace.subtree(&directory);
    let mut extraction = Extraction {
        tree: tree.map_err(|error| failure(&name, &error))?,
        budget,
        buffer: vec![0; CHUNK_BYTES],
    };
    let mut archive = Archive::open(content).map_err(in_archive)?;
    let mut entries = 0_u64;
    while let Some(entry) = archive.next_entry().map_err(in_archive)? {
        entries += 1;
        extraction
            .place(&mut archive, &entry)
            .map_err(|error| match error {
                EntryError::Place(error) => error,
                EntryError::Archive(error) => in_archive(error),
            })?;
        let made = extraction.tree.take_made();
        extraction.budget.count_entries(made)?;
    }
    if let Ok(read) = content.metadata().map(|meta| meta.len()) {
        extraction.budget.count_read(read);
    }
    tracing::debug!(entries, path, "archive extracted");
    extraction
        .tree
        .finish()
        .map_err(|error| failure(&name, &error))
}

/// Reason for which an entry was not placed.
enum EntryError {
    Place(PlaceError),
    Archive(ArchiveError),
}

impl From<PlaceError> for EntryError {
    fn from(error: PlaceError) -> Self {
        Self::Place(error)
    }
}

impl From<ArchiveError> for EntryError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

fn relative(path: &[u8]) -> Result<RelativePath, PlaceError> {
    normalize(path)
        .map_err(|reason| PlaceError::Invalid(format!("file {}: {reason}", quoted(path))))
}

struct Extraction<'a, 'b> {
    tree: Tree,
    budget: &'a mut Budget<'b>,
    buffer: Vec<u8>,
}

impl Extraction<'_, '_> {
    fn place(&mut self, archive: &mut Archive<'_>, entry: &Entry) -> Result<(), EntryError> {
        let path = relative(&entry.path)?;
        let failed = |error| EntryError::Place(failure(&quoted(&entry.path), &error));
        self.budget.count_entries(1)?;
        match entry.kind {
            EntryKind::File => self.place_file(archive, entry, &path),
            EntryKind::Directory => self
                .tree
                .create_directory(&path, entry.mode)
                .map_err(failed),
            EntryKind::Symlink if is_target(&entry.target) => self
                .tree
                .create_symlink(&path, &entry.target)
                .map_err(failed),
            EntryKind::Symlink => {
                let name = quoted(&entry.path);
                let reason = format!("file {name}: the target of its link is empty or too long");
                Err(PlaceError::Invalid(reason).into())
            }
            EntryKind::Link => {
                let target = relative(&entry.target).map_err(|_| bad_link(entry))?;
                let linked = self.tree.create_link(&path, &target);
                linked.map_err(|error| match failure("", &error) {
                    PlaceError::Invalid(_) => bad_link(entry).into(),
                    _ => failed(error),
                })
            }
        }
    }

    fn place_file(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        path: &RelativePath,
    ) -> Result<(), EntryError> {
        let failed = |error| EntryError::Place(failure(&quoted(&entry.path), &error));
        self.budget.check_room(entry.size)?;
        let mut file = self.tree.create_file(path).map_err(failed)?;
        loop {
            let read = archive.read(&mut self.buffer)?;
            if read == 0 {
                break;
            }
            file.write_all(&self.buffer[..read]).map_err(failed)?;
            self.budget.spend(read as u64)?;
        }
        set_mode(&file, entry.mode).map_err(failed)?;
        if let Some(seconds) = entry.modified {
            // A time that the file system can't hold is no reason to do without the file.
            let _ = set_modified(&file, seconds);
        }
        Ok(())
    }
}

fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() < 4096 && !target.contains(&0)
}

fn bad_link(entry: &Entry) -> PlaceError {
    let [name, target] = [&entry.path, &entry.target].map(|name| quoted(name));
    PlaceError::Invalid(format!(
        "file {name}: it is a hard link to {target}, which is no file that the archive has placed before"
    ))
}
