//! Content of one file: its blocks are shared where the file system can do that, and copied else, without its holes.

use super::{CopyError, TreeCopy, failure};
use crate::files::copy_part;
use rustix::{
    fs::{SeekFrom, Stat, fstat, ftruncate, ioctl_ficlone, seek},
    io::Errno,
};
use std::fs::File;

/// Bytes that are copied at a time.
const CHUNK_BYTES: u64 = 8 << 20;
/// Unit in which a file takes space.
const BLOCK_BYTES: u64 = 4096;
/// Unit of `st_blocks`, in bytes.
const STAT_BLOCK_BYTES: u64 = 512;

impl TreeCopy<'_> {
    /// Copies the content of a file up to the size that it had when it was opened: it may grow for ever.
    pub(super) fn copy_data(
        &mut self,
        source: &File,
        target: &File,
        stat: &Stat,
        path: &[u8],
    ) -> Result<(), CopyError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size == 0 {
            return Ok(());
        }
        if self.is_upper() {
            // All of it at once, and before it is written: in the image there are no holes.
            self.count_bytes(size.next_multiple_of(BLOCK_BYTES))?;
        }
        if self.can_clone {
            match ioctl_ficlone(target, source) {
                // Not what the source has grown by since.
                Ok(()) if self.is_upper() => {
                    return ftruncate(target, size).map_err(|error| failure(path, error));
                }
                Ok(()) => {
                    // Of the copy: the source may have grown since it was looked at.
                    let stat = fstat(target).map_err(|error| failure(path, error))?;
                    let blocks = u64::try_from(stat.st_blocks).unwrap_or(u64::MAX);
                    return self.spend(blocks.saturating_mul(STAT_BLOCK_BYTES));
                }
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                    self.can_clone = false;
                }
                // Such as a file with other properties than the target has.
                Err(_) => {}
            }
        }
        let mut at = 0;
        while let Some((start, end)) = next_extent(source, at, size) {
            self.copy_extent((source, target), start, end, path)?;
            at = end;
        }
        ftruncate(target, size).map_err(|error| failure(path, error))
    }

    fn copy_extent(
        &mut self,
        (source, target): (&File, &File),
        start: u64,
        end: u64,
        path: &[u8],
    ) -> Result<(), CopyError> {
        for file in [source, target] {
            seek(file, SeekFrom::Start(start)).map_err(|error| failure(path, error))?;
        }
        let mut left = end - start;
        while left > 0 {
            let copied = copy_part(source, target, left.min(CHUNK_BYTES));
            let copied = copied.map_err(|error| failure(path, error))?;
            if copied == 0 {
                // It was cut meanwhile.
                break;
            }
            let written = copied.next_multiple_of(BLOCK_BYTES);
            if self.is_upper() {
                self.note_written(written)?;
            } else {
                self.spend(written)?;
            }
            left = left.saturating_sub(copied);
        }
        Ok(())
    }
}

/// Next part of a file from `at` on that is no hole, as start and end; `None` where the rest is one.
fn next_extent(file: &File, at: u64, size: u64) -> Option<(u64, u64)> {
    if at >= size {
        return None;
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return None,
        // A file system that can't say.
        Err(_) => at,
    };
    let end = seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
    (start < end).then_some((start, end))
}
