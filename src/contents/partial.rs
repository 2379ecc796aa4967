//! Uploads in parts, which go on where they broke off.
//!
//! An upload has a key of the caller's, such as a user with a hash: parts are appended to the file of that name, and
//! the whole is checked at its end. After a crash the file may be longer than what was answered for, or have a hole;
//! the first is the offset that the next part gets named, and the second shows in the hash, where that is announced; see
//! [`cut_unsynced`](ContentStore::cut_unsynced) for where it is not.

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
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, task::spawn_blocking, time::Instant};

/// Most uploads whose hash so far is remembered between parts; that of others is computed again.
const MAX_REMEMBERED: usize = 256;
/// Silence after which another call takes an upload over: the connection of its sender is probably broken.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// Time for a call to let an upload go.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Uploads that a call sends, and hashes of those that wait for their next part.
#[derive(Default)]
pub(super) struct Partials(Mutex<HashMap<String, State>>);

enum State {
    InUse(Arc<Claim>),
    Waiting {
        hasher: Sha256,
        size: u64,
        since: Instant,
    },
}

/// Use of an upload by a call.
pub(super) struct Claim {
    last_chunk: Mutex<Instant>,
    /// Asks the call to let the upload go.
    stop: Notify,
    released: Notify,
}

impl Claim {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            last_chunk: Mutex::new(Instant::now()),
            stop: Notify::new(),
            released: Notify::new(),
        })
    }
}

impl Partials {
    /// Claim of the call that sends an upload.
    pub(super) fn claim_of(&self, key: &str) -> Option<Arc<Claim>> {
        match self.0.lock().get(key) {
            Some(State::InUse(claim)) => Some(Arc::clone(claim)),
            _ => None,
        }
    }
}

/// Claim on an upload, which no other call can send meanwhile.
pub(super) struct PartialKey {
    store: Arc<Shared>,
    key: String,
    claim: Arc<Claim>,
}

impl PartialKey {
    /// Claims an upload; also returns its hash so far, where it is known for this `offset`.
    pub(super) fn claim(
        store: Arc<Shared>,
        key: &str,
        offset: u64,
    ) -> Result<(Self, Option<Sha256>), ContentError> {
        let claim = Claim::new();
        let mut table = store.partials.0.lock();
        if let Some(State::InUse(_)) = table.get(key) {
            return Err(ContentError::Busy);
        }
        let before = table.insert(key.to_owned(), State::InUse(Arc::clone(&claim)));
        drop(table);
        let known = match before {
            Some(State::Waiting { hasher, size, .. }) => (size == offset).then_some(hasher),
            _ => None,
        };
        let key = key.to_owned();
        Ok((Self { store, key, claim }, known))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.store.partial.join(&self.key)
    }

    /// Keeps the hash of the bytes so far for the next part, and forgets the oldest beyond the limit.
    pub(super) fn remember(&self, hasher: &Sha256, size: u64) {
        let mut table = self.store.partials.0.lock();
        let waiting = table.iter().filter_map(|(key, state)| match state {
            State::Waiting { since, .. } => Some((*since, key)),
            State::InUse(_) => None,
        });
        let (count, oldest) = waiting.fold((0, None), |(count, oldest), next| {
            let oldest = oldest.map_or(next, |oldest| next.min(oldest));
            (count + 1, Some(oldest))
        });
        if count >= MAX_REMEMBERED
            && let Some(oldest) = oldest.map(|(_, key)| key.clone())
        {
            table.remove(&oldest);
        }
        let state = State::Waiting {
            hasher: hasher.clone(),
            size,
            since: Instant::now(),
        };
        table.insert(self.key.clone(), state);
    }
}

impl Drop for PartialKey {
    fn drop(&mut self) {
        let mut table = self.store.partials.0.lock();
        if matches!(table.get(&self.key), Some(State::InUse(_))) {
            table.remove(&self.key);
        }
        drop(table);
        self.claim.released.notify_waiters();
    }
}

/// Upload of which a part is being sent.
pub struct PartialUpload {
    blocks: BlockWriter,
    expected: Expected,
    claim: Arc<Claim>,
}

impl PartialUpload {
    /// Bytes of the upload so far.
    pub fn size(&self) -> u64 {
        self.blocks.taken()
    }

    /// Ends once another call of the same user wants to go on with this upload, after a silence of 5 s. Then it is to
    /// be [paused](Self::pause).
    pub async fn taken_over(&self) {
        self.claim.stop.notified().await;
    }

    /// Takes the next chunk of the part, of any size.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), ContentError> {
        *self.claim.last_chunk.lock() = Instant::now();
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
        match fs::symlink_metadata(self.shared.partial.join(key)) {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Begins or resumes the upload `key`, which is a file name of the caller's making, at `offset`. Reserves room for
    /// what is left of it. Fails where another call sends it, and where its bytes end elsewhere.
    pub async fn resume(
        &self,
        key: &str,
        offset: u64,
        expected: Expected,
    ) -> Result<PartialUpload, ContentError> {
        self.take_over(key).await;
        let (store, key) = (self.clone(), key.to_owned());
        let left = expected.size.unwrap_or(offset).saturating_sub(offset);
        let opened = spawn_blocking(move || {
            let (key, known) = PartialKey::claim(Arc::clone(&store.shared), &key, offset)?;
            let room = store.reserve(left)?;
            let mut file = File::options()
                .read(true)
                .append(true)
                .create(true)
                .mode(crate::files::PRIVATE_MODE)
                .open(key.path())?;
            let found = file.metadata()?.len();
            if found != offset {
                return Err(ContentError::WrongOffset { offset, found });
            }
            let hasher = match known {
                Some(hasher) => hasher,
                None => hash_of(&mut file)?,
            };
            let claim = Arc::clone(&key.claim);
            *claim.last_chunk.lock() = Instant::now();
            let place = (file, FilePlace::Partial(key));
            let sink = Sink::new(store.shared, place, (hasher, found), room);
            Ok((sink, claim))
        });
        let (sink, claim) = opened.await.map_err(io::Error::other)??;
        Ok(PartialUpload {
            blocks: BlockWriter::new(sink),
            expected,
            claim,
        })
    }

    /// Ends the call that sends the upload `key`, where that has been silent for 5 s, so that a new call of the same
    /// user need not wait until the old connection is found to be broken.
    pub async fn take_over(&self, key: &str) {
        let Some(claim) = self.shared.partials.claim_of(key) else {
            return;
        };
        if claim.last_chunk.lock().elapsed() < SILENCE_LIMIT {
            return;
        }
        let mut released = pin!(claim.released.notified());
        released.as_mut().enable();
        // Asked again, since it may have ended before the line above.
        let now = self.shared.partials.claim_of(key);
        if now.is_some_and(|now| Arc::ptr_eq(&now, &claim)) {
            claim.stop.notify_one();
            // One that is busy with the disk keeps its upload.
            let _ = tokio::time::timeout(TAKEOVER_TIMEOUT, released).await;
        }
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
