//! Writer of a content that arrives in one go.

use super::{
    ContentError, ContentStore, Pin, Shared, record_use,
    sink::{BlockWriter, FilePlace, Sink},
};
use crate::api::jobs::files::{Content, ContentHash};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io, mem,
    sync::Arc,
};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

/// Hash and size of a content, as far as they are known before it arrives.
#[derive(Clone, Default, Debug)]
pub struct Expected {
    /// Hash.
    pub sha256: Option<ContentHash>,
    /// Number of bytes.
    pub size: Option<u64>,
}

/// Content that is stored, pinned for as long as this value lives.
#[derive(Debug)]
pub struct StoredContent {
    /// Hash and size.
    pub content: Content,
    /// Pin, to be held until a lasting reference is stored.
    pub pin: Pin,
}

/// Writer of a content. Nothing is left of it when it is dropped before its end.
pub struct ContentWriter {
    blocks: BlockWriter,
    expected: Expected,
}

impl ContentWriter {
    pub(super) async fn begin(
        store: &ContentStore,
        expected: Expected,
    ) -> Result<Self, ContentError> {
        let size = expected.size.unwrap_or(0);
        let store = store.clone();
        let begun = spawn_blocking(move || {
            let room = store.reserve(size)?;
            let store = store.shared;
            let file = NamedTempFile::new_in(&store.temporary)?;
            let (file, path) = file.into_parts();
            let place = (file, FilePlace::Temporary(path));
            Ok::<_, ContentError>(Sink::new(store, place, (Sha256::new(), 0), room))
        });
        let sink = begun.await.map_err(io::Error::other)??;
        Ok(Self {
            blocks: BlockWriter::new(sink),
            expected,
        })
    }

    /// Takes the next chunk, of any size. Fails where the store is full and where more arrives than was announced.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), ContentError> {
        let found = self.blocks.taken() + chunk.len() as u64;
        if let Some(expected) = self.expected.size.filter(|size| found > *size) {
            return Err(ContentError::WrongSize { expected, found });
        }
        self.blocks.write(chunk).await
    }

    /// Stores the content once all of it is on the disk and is what was announced.
    pub async fn finish(self) -> Result<StoredContent, ContentError> {
        let sink = self.blocks.flush().await?;
        let finished = spawn_blocking(move || finish(sink, &self.expected));
        finished.await.map_err(io::Error::other)?
    }
}

/// Moves a file that is complete to its name.
pub(super) fn finish(
    mut sink: Box<Sink>,
    expected: &Expected,
) -> Result<StoredContent, ContentError> {
    let (found, store) = (sink.written, Arc::clone(&sink.store));
    if let Some(expected) = expected.size.filter(|size| *size != found) {
        return Err(ContentError::WrongSize { expected, found });
    }
    // A copy, since the upload goes on with its hash where a step below fails.
    let hash = ContentHash::from_digest(&sink.hasher.clone().finalize().into());
    if let Some(expected) = expected.sha256.clone().filter(|sha256| *sha256 != hash) {
        let found = hash;
        // No further part can make it right.
        sink.discard()?;
        return Err(ContentError::WrongHash { expected, found });
    }
    // Pinned first, so that it is not removed between the look and the answer.
    let pin = Pin::new(Arc::clone(&store), hash.clone());
    let is_here = || Ok::<_, io::Error>(store.size_of(&hash)? == Some(found));
    if !is_here()? {
        // A name in `objects` promises that the bytes are on the disk.
        sink.sync()?;
    }
    let publishing = store.publishing.lock();
    if is_here()? {
        sink.discard()?;
        record_use(&File::open(store.object(&hash))?, &hash);
    } else {
        publish(&mut sink, &store, &hash)?;
    }
    drop(publishing);
    store.names.sync(&store.objects)?;
    Ok(StoredContent {
        content: Content {
            sha256: hash,
            size_bytes: found,
        },
        pin,
    })
}

/// Gives a file its name. A file of that name with another size, which a broken disk may leave, is replaced.
fn publish(sink: &mut Sink, store: &Shared, hash: &ContentHash) -> io::Result<()> {
    let path = store.object(hash);
    let replaced = store.size_of(hash)?.unwrap_or(0);
    match mem::replace(&mut sink.place, FilePlace::Settled) {
        FilePlace::Temporary(file) => {
            if let Err(failed) = file.persist(&path) {
                sink.place = FilePlace::Temporary(failed.path);
                return Err(failed.error);
            }
        }
        FilePlace::Partial(key) => {
            if let Err(error) = fs::rename(key.path(), &path) {
                sink.place = FilePlace::Partial(key);
                return Err(error);
            }
        }
        FilePlace::Settled => {}
    }
    store.release(replaced);
    Ok(())
}
