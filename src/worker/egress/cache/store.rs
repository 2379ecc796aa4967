//! Files of the cache: one for each download, by the name of its [key](super::policy::Key).
//!
//! A file is written beside its place and renamed once it is whole, so a crash leaves old content, new content, or a file
//! that the next start removes. Nothing is flushed to the disk: after a loss of power a file may be damaged, which its sum
//! shows. Of two jobs that fetch the same at once the last one's file stays.
//!
//! The time of change of a file is that of its last use, and the one that was not used for longest goes first.
//!
//! All calls here may block.

use super::{
    entry::{CHUNK_BYTES, Entry},
    policy::Key,
    reader::Reader,
};
use crate::{
    data_dir::make_private_dir,
    disk_space::DiskSpace,
    files::{PRIVATE_MODE, Replacement, is_unfinished},
};
use parking_lot::Mutex;
use prometheus::IntGauge;
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// Bytes of which a file takes whole multiples, so that many small ones are counted as what they take.
const BLOCK_BYTES: u64 = 4096;
/// Files at most, however small: all are listed at once, in memory, and a job could have many made.
const MAX_FILES: u64 = 250_000;

/// Directory of downloads.
pub(super) struct Store {
    path: PathBuf,
    /// Most bytes of all files together.
    limit: u64,
    /// Bytes of the disk that stay free.
    min_free: u64,
    state: Mutex<State>,
    used_bytes: IntGauge,
}

#[derive(Default)]
struct State {
    /// Whether the files of earlier processes were counted. Nothing is stored before that.
    is_open: bool,
    used: u64,
    /// Bytes of files that are being written.
    arriving: u64,
}

/// File of a download.
struct StoredFile {
    path: PathBuf,
    /// Bytes on disk.
    size: u64,
    last_used: SystemTime,
}

/// Download that was found.
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) reader: Reader,
}

impl Store {
    /// Store in a directory, which [`open`](Self::open) makes. Touches no file.
    pub(super) fn new(path: PathBuf, limit: u64, min_free: u64, used_bytes: IntGauge) -> Self {
        Self {
            path,
            limit,
            min_free,
            state: Mutex::default(),
            used_bytes,
        }
    }

    /// Most bytes of one download.
    pub(super) fn max_entry_bytes(&self) -> u64 {
        self.limit / 4
    }

    /// Counts what earlier processes have stored, and removes what they have not completed.
    pub(super) fn open(&self) -> io::Result<()> {
        make_private_dir(&self.path)?;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if is_unfinished(&entry.file_name()) {
                remove(&entry.path())?;
            }
        }
        // Many files take long, and nothing is stored meanwhile.
        let files = self.list()?;
        let mut state = self.state.lock();
        self.evict(&mut state, files, self.limit)?;
        state.is_open = true;
        Ok(())
    }

    /// Opens a download; `None` where there is none. A damaged file is removed.
    pub(super) fn find(self: &Arc<Self>, key: &Key) -> io::Result<Option<Found>> {
        let file = match File::open(self.path_of(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match Reader::open(self, key, file) {
            Ok((entry, reader)) => Ok(Some(Found { entry, reader })),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.remove_damaged(key, &error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Begins to store a download; `None` where there is no room.
    pub(super) fn begin(self: &Arc<Self>, key: &Key, entry: &Entry) -> io::Result<Option<Writer>> {
        let line = entry.to_line()?;
        let size = self.disk_bytes(entry.file_bytes(line.len()));
        let Some(arriving) = self.reserve(size)? else {
            return Ok(None);
        };
        let path = self.path_of(key);
        let mut writer = Writer {
            file: Replacement::begin(&path, PRIVATE_MODE)?,
            path,
            hasher: Sha256::new(),
            until_sum: CHUNK_BYTES,
            arriving,
        };
        writer.hasher.update(&line);
        writer.file.write_all(&line)?;
        Ok(Some(writer))
    }

    /// Removes a download.
    pub(super) fn remove(&self, key: &Key) -> io::Result<()> {
        let path = self.path_of(key);
        let mut state = self.state.lock();
        let size = self.size_of(&path);
        remove(&path)?;
        self.set_used(&mut state, size, 0);
        Ok(())
    }

    /// Removes a download whose file is not what was written.
    pub(super) fn remove_damaged(&self, key: &Key, cause: &io::Error) {
        tracing::warn!(%cause, "damaged download removed from the egress cache; it is fetched again");
        if let Err(error) = self.remove(key) {
            tracing::warn!(%error, "damaged download not removed from the egress cache");
        }
    }

    /// Removes downloads while the disk is short.
    pub(super) fn make_room(&self) -> io::Result<()> {
        let is_short = || {
            let space = DiskSpace::at(&self.path);
            space.is_ok_and(|space| space.shortage(self.min_free).is_some())
        };
        let mut state = self.state.lock();
        if !state.is_open || !is_short() {
            return Ok(());
        }
        let files = self.list()?;
        self.remove_first(&mut state, files, |_| is_short())
    }

    fn path_of(&self, key: &Key) -> PathBuf {
        self.path.join(key.as_str())
    }

    /// Bytes for which a file of this length counts: what it takes on disk, and its part of the limit at least.
    fn disk_bytes(&self, length: u64) -> u64 {
        let blocks = length.div_ceil(BLOCK_BYTES);
        let bytes = blocks.saturating_mul(BLOCK_BYTES);
        bytes.max(self.limit / MAX_FILES)
    }

    /// Bytes for which a file counts; 0 where it is not there.
    fn size_of(&self, path: &Path) -> u64 {
        fs::symlink_metadata(path).map_or(0, |meta| self.disk_bytes(meta.len()))
    }

    /// Counts bytes that will arrive; `None` where there is no room for them. What a job begins to fetch drives nothing
    /// out before it is whole: a host could promise much and send nothing.
    fn reserve(self: &Arc<Self>, bytes: u64) -> io::Result<Option<Arriving>> {
        let mut state = self.state.lock();
        let all = state.arriving.saturating_add(bytes);
        // More than the limit is there where old ones can't be removed.
        if !state.is_open || state.used > self.limit || all > self.limit / 2 {
            return Ok(None);
        }
        let space = DiskSpace::at(&self.path)?;
        if space.shortage_with(self.min_free, all).is_some() {
            return Ok(None);
        }
        state.arriving = all;
        Ok(Some(Arriving {
            store: Arc::clone(self),
            bytes,
        }))
    }

    /// Removes the first of all files until the others have at most `target` bytes, and counts these.
    fn evict(&self, state: &mut State, files: Vec<StoredFile>, target: u64) -> io::Result<()> {
        state.used = files.iter().map(|file| file.size).sum();
        self.set_used(state, 0, 0);
        self.remove_first(state, files, |used| used > target)
    }

    /// Removes files, the first ones first, while there are too many. One that can't be removed keeps no other.
    fn remove_first(
        &self,
        state: &mut State,
        files: Vec<StoredFile>,
        is_too_much: impl Fn(u64) -> bool,
    ) -> io::Result<()> {
        let mut failure = None;
        for file in files {
            if !is_too_much(state.used) {
                return Ok(());
            }
            match remove(&file.path) {
                Ok(()) => self.set_used(state, file.size, 0),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if is_too_much(state.used) => Err(error),
            _ => Ok(()),
        }
    }

    /// Counts fewer bytes, and more.
    fn set_used(&self, state: &mut State, fewer: u64, more: u64) {
        state.used = state.used.saturating_sub(fewer).saturating_add(more);
        let used = i64::try_from(state.used).unwrap_or(i64::MAX);
        self.used_bytes.set(used);
    }

    /// Files, the one first that was not used for longest. A file with another name is not ours and is left alone.
    fn list(&self) -> io::Result<Vec<StoredFile>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(Key::is_one) {
                let meta = match entry.metadata() {
                    // A damaged one, removed meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    meta => meta?,
                };
                found.push(StoredFile {
                    path: entry.path(),
                    size: self.disk_bytes(meta.len()),
                    last_used: meta.modified()?,
                });
            }
        }
        found.sort_by_key(|file| file.last_used);
        Ok(found)
    }
}

/// Bytes of a file that is being written; counted no more when dropped.
struct Arriving {
    store: Arc<Store>,
    bytes: u64,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut state = self.store.state.lock();
        state.arriving = state.arriving.saturating_sub(self.bytes);
    }
}

/// Download that is being written. Dropped before its end, it leaves nothing.
pub(super) struct Writer {
    file: Replacement,
    path: PathBuf,
    /// Of all until now, sums left out.
    hasher: Sha256,
    /// Bytes until the next sum.
    until_sum: usize,
    arriving: Arriving,
}

impl Writer {
    /// Adds bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(self.until_sum));
            self.hasher.update(part);
            self.file.write_all(part)?;
            self.until_sum -= part.len();
            if self.until_sum == 0 {
                self.write_sum()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    fn write_sum(&mut self) -> io::Result<()> {
        self.until_sum = CHUNK_BYTES;
        self.file.write_all(&self.hasher.clone().finalize())
    }

    /// Gives the file its name, once all bytes are there. Others go where it is too much.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.until_sum < CHUNK_BYTES {
            self.write_sum()?;
        }
        let Self {
            file,
            path,
            arriving,
            ..
        } = self;
        let store = Arc::clone(&arriving.store);
        let mut state = store.state.lock();
        let before = store.size_of(&path);
        file.commit()?;
        store.set_used(&mut state, before, arriving.bytes);
        if state.used > store.limit {
            // More than is necessary, since each time all files are listed.
            store.evict(&mut state, store.list()?, store.limit / 10 * 9)?;
        }
        Ok(())
    }
}

/// Removes a file, which may be gone.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests;
