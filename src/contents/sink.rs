//! Blocks that are hashed and written on a blocking thread.

use super::{ContentError, Shared, partial::PartialKey, room::Room};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    mem,
    sync::Arc,
};
use tempfile::TempPath;
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes that are gathered before they are hashed and written: so many that the change of threads costs nothing.
pub(super) const BLOCK_BYTES: usize = 1024 * 1024;
/// Bytes after which a file is synced while it grows, so that the last sync of a large one is short.
pub(super) const SYNC_BYTES: u64 = 64 * 1024 * 1024;

/// Where a file that grows stands, and what becomes of it when it is dropped.
pub(super) enum FilePlace {
    /// Removed when dropped.
    Temporary(TempPath),
    /// Stays, to be resumed.
    Partial(PartialKey),
    /// A content by now, or removed.
    Settled,
}

/// File with the hash of what was written to it.
pub(super) struct Sink {
    pub(super) store: Arc<Shared>,
    pub(super) file: File,
    pub(super) place: FilePlace,
    pub(super) hasher: Sha256,
    /// Length of the file.
    pub(super) written: u64,
    /// Length up to which the file was synced.
    synced: u64,
    room: Room,
    /// Buffer to be filled next.
    spare: Vec<u8>,
}

impl Sink {
    /// Sink to the end of a file that has `written` bytes of the hash `hasher`.
    pub(super) fn new(
        store: Arc<Shared>,
        (file, place): (File, FilePlace),
        (hasher, written): (Sha256, u64),
        room: Room,
    ) -> Self {
        Self {
            store,
            file,
            place,
            hasher,
            written,
            synced: written,
            room,
            spare: Vec::new(),
        }
    }

    /// Appends a block, all of it or nothing.
    fn append(&mut self, block: &[u8]) -> Result<(), ContentError> {
        let length = block.len() as u64;
        self.room.use_bytes(length)?;
        if let Err(error) = self.file.write_all(block) {
            self.room.give_back(length);
            // A part of the block would make the next part begin at a wrong place.
            self.file.set_len(self.written)?;
            return Err(match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    ContentError::disk_full(&self.store)
                }
                _ => error.into(),
            });
        }
        self.hasher.update(block);
        self.written += length;
        // At multiples of it, also where an upload goes on elsewhere: so it is known after a crash what was synced.
        if self.written / SYNC_BYTES > self.synced / SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// Has the bytes on the disk. Where that fails, nobody knows which of them are, and a second try would succeed
    /// all the same, so the file is removed.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        match self.file.sync_data() {
            Ok(()) => {
                self.synced = self.written;
                Ok(())
            }
            Err(error) => {
                self.discard()?;
                Err(error)
            }
        }
    }

    /// Removes a partial upload that nobody needs any more. A temporary file goes when it is dropped.
    pub(super) fn discard(&mut self) -> io::Result<()> {
        if let FilePlace::Partial(key) = &self.place {
            fs::remove_file(key.path())?;
            self.store.release(self.written);
            self.place = FilePlace::Settled;
        }
        Ok(())
    }
}

/// Bytes of a content that doesn't become one are counted no more; a partial upload stays, and so does the
/// hash of its bytes.
impl Drop for Sink {
    fn drop(&mut self) {
        match &self.place {
            FilePlace::Temporary(_) => self.store.release(self.written),
            FilePlace::Partial(key) => key.remember(&self.hasher, self.written),
            FilePlace::Settled => {}
        }
    }
}

impl ContentError {
    fn disk_full(store: &Shared) -> Self {
        match store.check_disk(BLOCK_BYTES as u64, 0) {
            Err(error) => error,
            Ok(()) => io::Error::from(ErrorKind::StorageFull).into(),
        }
    }
}

/// Where the sink is: here, or on a blocking thread with a block.
enum Place {
    Here(Box<Sink>),
    Writing(JoinHandle<(Box<Sink>, Result<(), ContentError>)>),
    /// An earlier block failed, or a caller was dropped while it waited.
    Gone,
}

/// Sink that takes chunks of any size.
pub(super) struct BlockWriter {
    place: Place,
    block: Vec<u8>,
    /// Bytes taken, with those that are not written yet and those that were there before.
    taken: u64,
}

impl BlockWriter {
    pub(super) fn new(sink: Sink) -> Self {
        Self {
            taken: sink.written,
            place: Place::Here(Box::new(sink)),
            block: Vec::new(),
        }
    }

    /// Bytes taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes a chunk. A failure may be that of an earlier one.
    pub(super) async fn write(&mut self, mut chunk: &[u8]) -> Result<(), ContentError> {
        self.taken += chunk.len() as u64;
        while !chunk.is_empty() {
            let room = BLOCK_BYTES - self.block.len();
            let (now, later) = chunk.split_at(room.min(chunk.len()));
            self.block.extend_from_slice(now);
            chunk = later;
            if self.block.len() == BLOCK_BYTES {
                let sink = self.wait().await?;
                self.start(sink);
            }
        }
        Ok(())
    }

    /// Waits until the sink is here.
    async fn wait(&mut self) -> Result<Box<Sink>, ContentError> {
        match &mut self.place {
            Place::Here(_) => {}
            Place::Gone => return Err(gone()),
            Place::Writing(writing) => {
                let joined = writing.await;
                self.place = Place::Gone;
                let (sink, written) = joined.map_err(io::Error::other)?;
                written?;
                return Ok(sink);
            }
        }
        match mem::replace(&mut self.place, Place::Gone) {
            Place::Here(sink) => Ok(sink),
            Place::Writing(_) | Place::Gone => Err(gone()),
        }
    }

    /// Writes the block on a blocking thread, while the next one is filled.
    fn start(&mut self, mut sink: Box<Sink>) {
        let mut block = mem::replace(&mut self.block, mem::take(&mut sink.spare));
        self.place = Place::Writing(spawn_blocking(move || {
            let appended = sink.append(&block);
            block.clear();
            sink.spare = block;
            (sink, appended)
        }));
    }

    /// Writes what is left, and returns the sink.
    pub(super) async fn flush(mut self) -> Result<Box<Sink>, ContentError> {
        let sink = self.wait().await?;
        if self.block.is_empty() {
            return Ok(sink);
        }
        self.start(sink);
        self.wait().await
    }
}

fn gone() -> ContentError {
    io::Error::other("an earlier write failed").into()
}
