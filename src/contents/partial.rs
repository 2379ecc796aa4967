//! Uploads in parts, which go on where they broke off.
//!
//! An upload has a key of the caller's, such as a user with a hash: parts are appended to the file of that name, and
//! the whole is checked at its end. After a crash the file may be longer than what was answered for, or have a hole;
//! the first is the offset that the next part gets named, and the second shows in the hash.

use super::{
    ContentError, ContentStore, Shared, StoredContent,
    sink::{BLOCK_BYTES, BlockWriter, FilePlace, Sink},
    writer::{Expected, finish},
};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::task::spawn_blocking;

/// Most uploads whose hash so far is remembered between parts; that of others is computed again.
const MAX_REMEMBERED: usize = 256;

/// Uploads that a call sends, and hashes of those that wait for their next part.
#[derive(Default)]
pub(super) struct Partials(Mutex<HashMap<String, State>>);

enum State {
    InUse,
    Waiting(Sha256, u64),
}

/// Claim on an upload, which no other call can send meanwhile.
pub(super) struct PartialKey {
    store: Arc<Shared>,
    key: String,
}

impl PartialKey {
    /// Claims an upload; also returns its hash so far, where it is known for this `offset`.
    fn claim(
        store: Arc<Shared>,
        key: &str,
        offset: u64,
    ) -> Result<(Self, Option<Sha256>), ContentError> {
        let mut table = store.partials.0.lock();
        let before = match table.insert(key.to_owned(), State::InUse) {
            Some(State::InUse) => return Err(ContentError::Busy),
            Some(State::Waiting(hasher, at)) => (at == offset).then_some(hasher),
            None => None,
        };
        drop(table);
        let key = key.to_owned();
        Ok((Self { store, key }, before))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.store.partial.join(&self.key)
    }

    /// Keeps the hash of the bytes so far for the next part.
    pub(super) fn remember(&self, hasher: &Sha256, written: u64) {
        let mut table = self.store.partials.0.lock();
        if table.len() < MAX_REMEMBERED {
            let waiting = State::Waiting(hasher.clone(), written);
            table.insert(self.key.clone(), waiting);
        }
    }
}

impl Drop for PartialKey {
    fn drop(&mut self) {
        let mut table = self.store.partials.0.lock();
        if matches!(table.get(&self.key), Some(State::InUse)) {
            table.remove(&self.key);
        }
    }
}

/// Upload of which a part is being sent.
pub struct PartialUpload {
    blocks: BlockWriter,
    expected: Expected,
}

impl PartialUpload {
    /// Bytes of the upload so far.
    pub fn size(&self) -> u64 {
        self.blocks.taken()
    }

    /// Takes the next chunk of the part, of any size.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), ContentError> {
        let found = self.blocks.taken() + chunk.len() as u64;
        if let Some(expected) = self.expected.size.filter(|size| found > *size) {
            return Err(ContentError::WrongSize { expected, found });
        }
        self.blocks.write(chunk).await
    }

    /// Keeps what has arrived for the next part.
    pub async fn pause(self) -> Result<(), ContentError> {
        self.blocks.flush().await.map(drop)
    }

    /// Stores the content, whose last part has arrived. One that isn't what was announced is removed.
    pub async fn finish(self) -> Result<StoredContent, ContentError> {
        let sink = self.blocks.flush().await?;
        let finished = spawn_blocking(move || finish(sink, &self.expected));
        finished.await.map_err(io::Error::other)?
    }
}

impl ContentStore {
    /// Bytes that are here of the upload `key`; 0 where there is none.
    pub fn partial_size(&self, key: &str) -> io::Result<u64> {
        match fs::symlink_metadata(self.0.partial.join(key)) {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Begins or resumes the upload `key`, which is a file name of the caller's making, at `offset`. Fails where
    /// another call sends it, and where its bytes end elsewhere.
    pub async fn resume(
        &self,
        key: &str,
        offset: u64,
        expected: Expected,
    ) -> Result<PartialUpload, ContentError> {
        let (store, key) = (Arc::clone(&self.0), key.to_owned());
        let left = expected.size.unwrap_or(offset).saturating_sub(offset);
        let opened = spawn_blocking(move || {
            store.check_room(left)?;
            let (claim, known) = PartialKey::claim(Arc::clone(&store), &key, offset)?;
            let mut file = File::options()
                .read(true)
                .append(true)
                .create(true)
                .mode(crate::files::PRIVATE_MODE)
                .open(claim.path())?;
            let found = file.metadata()?.len();
            if found != offset {
                return Err(ContentError::WrongOffset { offset, found });
            }
            let hasher = match known {
                Some(hasher) => hasher,
                None => hash_of(&mut file)?,
            };
            let place = (file, FilePlace::Partial(claim));
            Ok(Sink::new(store, place, (hasher, found)))
        });
        let sink = opened.await.map_err(io::Error::other)??;
        Ok(PartialUpload {
            blocks: BlockWriter::new(sink),
            expected,
        })
    }

    /// Removes uploads whose last part arrived longer than `max_age` ago. Returns their number.
    pub fn remove_stale_uploads(&self, max_age: Duration) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.0.partial)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            let age = SystemTime::now().duration_since(meta.modified()?);
            let (name, is_old) = (
                entry.file_name(),
                age.is_ok_and(|age| age >= max_age) && meta.is_file(),
            );
            let Some(name) = name.to_str().filter(|_| is_old) else {
                continue;
            };
            let Ok((claim, _)) = PartialKey::claim(Arc::clone(&self.0), name, 0) else {
                continue;
            };
            fs::remove_file(claim.path())?;
            self.0.release(meta.len());
            removed += 1;
        }
        Ok(removed)
    }
}

/// Hash of a file from its beginning.
fn hash_of(file: &mut File) -> io::Result<Sha256> {
    let (mut hasher, mut block) = (Sha256::new(), vec![0; BLOCK_BYTES]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hasher),
            length => hasher.update(&block[..length]),
        }
    }
}
