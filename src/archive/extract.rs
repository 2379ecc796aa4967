//! Extraction of one archive into a tree.

use super::{
    quoted,
    reader::{Archive, ArchiveError, Entry, EntryKind},
    tree::{RelativePath, Tree, normalize, set_mode, set_modified},
};
use rustix::io::Errno;
use std::{
    fs::File,
    io::{self, Write as _},
};

/// Bytes that are read of an archive at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Longest target of a link, as the kernel limits it.
const MAX_TARGET_BYTES: usize = 4095;

/// Limits of an extraction. Each call fails where one of them is reached, and ends the extraction.
pub(crate) trait Meter {
    /// Reason for which an extraction ends.
    type Error;

    /// Counts files, directories and links that are about to be made.
    fn count_entries(&mut self, count: u64) -> Result<(), Self::Error>;

    /// Fails where so many more bytes can't fit.
    fn check_room(&self, bytes: u64) -> Result<(), Self::Error>;

    /// Counts bytes that were written.
    fn spend(&mut self, bytes: u64) -> Result<(), Self::Error>;
}

/// Reason for which an extraction ended early. What it made before stays.
pub(crate) enum ExtractError<E> {
    /// The archive can't be read.
    Archive(ArchiveError),
    /// An entry is not allowed.
    Entry(String),
    /// An entry of this path can't be made.
    Io(Vec<u8>, io::Error),
    /// A limit is reached.
    Limit(E),
}

impl<E> From<ArchiveError> for ExtractError<E> {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

/// Whether an error is one of the entry, and not of the disk or of the permissions.
fn is_about_entry(error: &io::Error) -> bool {
    [
        Errno::LOOP,
        Errno::NOTDIR,
        Errno::ISDIR,
        Errno::NOTEMPTY,
        Errno::NAMETOOLONG,
        Errno::ILSEQ,
        Errno::INVAL,
        Errno::NOENT,
        Errno::MLINK,
        Errno::XDEV,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Extracts an archive into a tree. Returns the number of its entries.
pub(crate) fn extract<M: Meter>(
    tree: Tree,
    archive: &mut Archive<'_>,
    meter: &mut M,
) -> Result<u64, ExtractError<M::Error>> {
    let mut extraction = Extraction {
        tree,
        meter,
        buffer: vec![0; CHUNK_BYTES],
    };
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        extraction.place(archive, &entry)?;
        let made = extraction.tree.take_made();
        let counted = extraction.meter.count_entries(made);
        counted.map_err(ExtractError::Limit)?;
    }
    let finished = extraction.tree.finish();
    finished.map_err(|error| ExtractError::Io(b".".to_vec(), error))?;
    Ok(entries)
}

struct Extraction<'a, M> {
    tree: Tree,
    meter: &'a mut M,
    buffer: Vec<u8>,
}

impl<M: Meter> Extraction<'_, M> {
    fn place(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
    ) -> Result<(), ExtractError<M::Error>> {
        let path = relative(&entry.path)?;
        let failed = |error| ExtractError::Io(entry.path.clone(), error);
        self.meter.count_entries(1).map_err(ExtractError::Limit)?;
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
                Err(ExtractError::Entry(reason))
            }
            EntryKind::Link => {
                let target = normalize(&entry.target).map_err(|_| bad_link(entry))?;
                let linked = self.tree.create_link(&path, &target);
                linked.map_err(|error| {
                    if is_about_entry(&error) {
                        bad_link(entry)
                    } else {
                        failed(error)
                    }
                })
            }
        }
    }

    fn place_file(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        path: &RelativePath,
    ) -> Result<(), ExtractError<M::Error>> {
        let failed = |error| ExtractError::Io(entry.path.clone(), error);
        let room = self.meter.check_room(entry.size);
        room.map_err(ExtractError::Limit)?;
        let mut file = self.tree.create_file(path).map_err(failed)?;
        if let Err(error) = self.fill(archive, entry, &mut file) {
            // Half a file is worse than none.
            let _ = self.tree.remove_file(path);
            return Err(error);
        }
        if let Some(seconds) = entry.modified {
            // A time that the file system can't hold is no reason to do without the file.
            let _ = set_modified(&file, seconds);
        }
        Ok(())
    }

    fn fill(
        &mut self,
        archive: &mut Archive<'_>,
        entry: &Entry,
        file: &mut File,
    ) -> Result<(), ExtractError<M::Error>> {
        let failed = |error| ExtractError::Io(entry.path.clone(), error);
        loop {
            let read = archive.read(&mut self.buffer)?;
            if read == 0 {
                return set_mode(&*file, entry.mode).map_err(failed);
            }
            file.write_all(&self.buffer[..read]).map_err(failed)?;
            let spent = self.meter.spend(read as u64);
            spent.map_err(ExtractError::Limit)?;
        }
    }
}

fn relative<E>(path: &[u8]) -> Result<RelativePath, ExtractError<E>> {
    normalize(path)
        .map_err(|reason| ExtractError::Entry(format!("file {}: {reason}", quoted(path))))
}

fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= MAX_TARGET_BYTES && !target.contains(&0)
}

fn bad_link<E>(entry: &Entry) -> ExtractError<E> {
    let [name, target] = [&entry.path, &entry.target].map(|name| quoted(name));
    ExtractError::Entry(format!(
        "file {name}: it is a hard link to {target}, which the archive has not placed before"
    ))
}
