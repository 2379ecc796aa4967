//! Limits of a copy: entries, bytes, and the reserve of the disk.

use super::{CopyError, TreeCopy, failure};
use crate::disk_space::DiskSpace;

/// Most entries of a tree.
const MAX_ENTRIES: u64 = 2_000_000;
/// Bytes that an entry takes in the archive of an image, besides its content and its path.
const ENTRY_BYTES: u64 = 1024;
/// Bytes, and entries, that are copied between two checks of the disk.
const CHECK_BYTES: u64 = 64 << 20;
const CHECK_ENTRIES: u64 = 4096;

impl TreeCopy<'_> {
    /// Counts an entry of this path.
    pub(super) fn count_entry(&mut self, path: &[u8]) -> Result<(), CopyError> {
        self.copied.entries += 1;
        if self.copied.entries > MAX_ENTRIES {
            return Err(CopyError::Refused(format!(
                "it has more than {MAX_ENTRIES} entries; remove some, or pack them"
            )));
        }
        if self.is_upper() {
            self.count_bytes(ENTRY_BYTES.saturating_add(path.len() as u64))?;
        }
        self.unchecked_entries += 1;
        self.check_disk_at_times()
    }

    /// Counts bytes that were written.
    pub(super) fn spend(&mut self, bytes: u64) -> Result<(), CopyError> {
        self.count_bytes(bytes)?;
        self.note_written(bytes)
    }

    /// Counts bytes toward the limit of the copy.
    pub(super) fn count_bytes(&mut self, bytes: u64) -> Result<(), CopyError> {
        self.copied.bytes = self.copied.bytes.saturating_add(bytes);
        if self.copied.bytes > self.request.max_bytes {
            return Err(CopyError::TooLarge);
        }
        Ok(())
    }

    /// Notes that bytes were written, which count toward the limit elsewhere, and looks at the disk at times.
    pub(super) fn note_written(&mut self, bytes: u64) -> Result<(), CopyError> {
        self.unchecked_bytes = self.unchecked_bytes.saturating_add(bytes);
        self.check_disk_at_times()
    }

    fn check_disk_at_times(&mut self) -> Result<(), CopyError> {
        if self.unchecked_bytes < CHECK_BYTES && self.unchecked_entries < CHECK_ENTRIES {
            return Ok(());
        }
        (self.unchecked_bytes, self.unchecked_entries) = (0, 0);
        self.check_disk()
    }

    /// Fails where the disk is short.
    pub(super) fn check_disk(&self) -> Result<(), CopyError> {
        let space = DiskSpace::at(&self.request.to).map_err(|error| failure(b".", error))?;
        match space.shortage(self.request.min_free) {
            None => Ok(()),
            Some(shortage) => Err(CopyError::NoSpace(shortage.to_string())),
        }
    }
}
