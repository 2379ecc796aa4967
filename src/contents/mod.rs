//! Contents by their SHA-256: a directory of files, each named by the hash of its bytes.
//!
//! The orchestrator keeps the files of tasks and their artifacts here, and a node keeps what its jobs need.
//!
//! ```text
//! objects/<sha256>   whole contents; a file is here only once its hash is proven and its bytes are on the disk
//! temporary/         contents that arrive; removed when the directory is opened
//! partial/<key>      uploads that can be resumed; see [`PartialUpload`]
//! ```
//!
//! A content arrives through a [`ContentWriter`] in chunks of any size, which are gathered to blocks and hashed and
//! written on a blocking thread, one block while the next one arrives. So an upload costs two blocks of memory, and
//! a slow client holds no thread. A content is never changed; putting it twice, also at once, is the same as once.
//!
//! A [`Pin`] keeps a content from [`remove`](ContentStore::remove). Whoever puts a content holds a pin until a
//! lasting reference to it is stored, so that no clean-up comes between.

mod discard;
mod error;
mod list;
mod names;
mod partial;
mod pin;
mod room;
mod sink;
mod sweep;
#[cfg(test)]
mod tests;
mod writer;

pub use discard::UnfinishedUpload;
pub use error::ContentError;
pub use list::StoredEntry;
pub use partial::PartialUpload;
pub use pin::Pin;
pub use sweep::Sweep;
pub use writer::{ContentWriter, Expected, StoredContent};

use crate::{
    api::jobs::files::ContentHash,
    data_dir::{make_private_dir, make_private_subdir},
};
use names::NameSync;
use parking_lot::Mutex;
use partial::Partials;
use pin::Pins;
use room::Room;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};
use tokio::task::spawn_blocking;

/// Limits of a store.
#[derive(Clone, Copy, Default, Debug)]
pub struct StoreLimits {
    /// Most bytes of all contents together, with those that arrive; no limit by default.
    pub quota: Option<u64>,
    /// Bytes that stay free on the disk.
    pub min_free: u64,
}

/// Store of contents; cheap to clone.
///
/// Calls that are not asynchronous read the disk and may block.
#[derive(Clone)]
pub struct ContentStore {
    shared: Arc<Shared>,
    /// Most bytes of the store up to which contents are taken through this value.
    quota: Option<u64>,
    /// Most bytes that a content reserves which arrives through this value.
    reserve_limit: u64,
}

/// State that all parts of a store share.
struct Shared {
    objects: PathBuf,
    temporary: PathBuf,
    partial: PathBuf,
    limits: StoreLimits,
    /// Bytes of all contents and uploads, with those that are reserved.
    used: AtomicU64,
    /// Bytes that were announced and have not arrived.
    reserved: AtomicU64,
    pins: Pins,
    partials: Partials,
    /// Held while a content gets its name, so that each is counted once.
    publishing: Mutex<()>,
    names: NameSync,
}

impl ContentStore {
    /// Opens the store in `directory`, which is made where it is missing, and removes what killed processes left of
    /// contents that arrived. Only one process at a time may use it.
    pub fn open(directory: &Path, limits: StoreLimits) -> io::Result<Self> {
        make_private_dir(directory)?;
        let subdir = |name: &str| {
            let path = directory.join(name);
            make_private_subdir(&path).map(|()| path)
        };
        let (objects, temporary, partial) =
            (subdir("objects")?, subdir("temporary")?, subdir("partial")?);
        for entry in fs::read_dir(&temporary)? {
            fs::remove_file(entry?.path())?;
        }
        let used = list::total_bytes(&objects)? + list::total_bytes(&partial)?;
        let shared = Arc::new(Shared {
            objects,
            temporary,
            partial,
            limits,
            used: AtomicU64::new(used),
            reserved: AtomicU64::new(0),
            pins: Pins::default(),
            partials: Partials::default(),
            publishing: Mutex::default(),
            names: NameSync::default(),
        });
        let quota = limits.quota;
        Ok(Self {
            shared,
            quota,
            reserve_limit: u64::MAX,
        })
    }

    /// Same store, for contents that may fill only `quota` bytes of it, and of which each reserves at most
    /// `reserve_limit` bytes: what is only announced must not keep others out. Beyond that, bytes are counted as they
    /// arrive.
    pub fn with_limits(&self, quota: Option<u64>, reserve_limit: u64) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            quota,
            reserve_limit,
        }
    }

    /// Writer for a content that arrives. Fails where it can't fit now; room for what is announced is reserved.
    pub async fn writer(&self, expected: Expected) -> Result<ContentWriter, ContentError> {
        ContentWriter::begin(self, expected).await
    }

    /// Fails where `bytes` more would not fit.
    pub async fn ensure_room(&self, bytes: u64) -> Result<(), ContentError> {
        let store = self.clone();
        let reserved = spawn_blocking(move || store.reserve(bytes).map(drop)).await;
        reserved.map_err(io::Error::other)?
    }

    fn reserve(&self, bytes: u64) -> Result<Room, ContentError> {
        let mut room = Room::reserve(Arc::clone(&self.shared), self.quota, bytes)?;
        room.shrink(self.reserve_limit);
        Ok(room)
    }

    /// Stores bytes that are in memory.
    pub async fn put_bytes(&self, bytes: Vec<u8>) -> Result<StoredContent, ContentError> {
        let size = u64::try_from(bytes.len()).ok();
        let mut writer = self.writer(Expected { sha256: None, size }).await?;
        writer.write(&bytes).await?;
        writer.finish().await
    }

    /// Pin of a content that is here; `None` where it is not.
    pub fn pin(&self, hash: &ContentHash) -> io::Result<Option<Pin>> {
        // Pinned first, so that no removal comes between.
        let pin = Pin::new(Arc::clone(&self.shared), hash.clone());
        Ok(self.size_of(hash)?.is_some().then_some(pin))
    }

    /// Size of a content; `None` where it is not here.
    pub fn size_of(&self, hash: &ContentHash) -> io::Result<Option<u64>> {
        self.shared.size_of(hash)
    }

    /// Whether a content is here.
    pub fn contains(&self, hash: &ContentHash) -> io::Result<bool> {
        Ok(self.size_of(hash)?.is_some())
    }

    /// Opens a content for reading, and records its use. The file stays readable when the content is removed.
    pub fn open_content(&self, hash: &ContentHash) -> io::Result<File> {
        let file = File::open(self.shared.object(hash))?;
        record_use(&file, hash);
        Ok(file)
    }

    /// Path of a content, for a program that reads it. It may be removed, unless it is pinned.
    pub fn path_of(&self, hash: &ContentHash) -> PathBuf {
        self.shared.object(hash)
    }

    /// Removes a content. Returns whether it is gone: a pinned one stays.
    pub fn remove(&self, hash: &ContentHash) -> io::Result<bool> {
        let store = &self.shared;
        let removed = store.pins.unless_pinned(hash, || store.unlink(hash));
        Ok(removed.transpose()?.is_some())
    }

    /// Bytes of all contents and of uploads under way.
    pub fn used_bytes(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// Limits of the store.
    pub fn limits(&self) -> StoreLimits {
        self.shared.limits
    }

    /// Records that a content is used, so that a clean-up takes it later. Returns whether it is here.
    pub fn record_use(&self, hash: &ContentHash) -> io::Result<bool> {
        match self.open_content(hash) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All contents, in no order.
    pub fn list(&self) -> io::Result<Vec<StoredEntry>> {
        list::contents(&self.shared.objects)
    }
}

/// Records the use of a content. The time only orders a clean-up; a disk that is full must not stop a reader.
fn record_use(file: &File, hash: &ContentHash) {
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!(%error, %hash, "last use of a content not recorded");
    }
}

impl Shared {
    fn object(&self, hash: &ContentHash) -> PathBuf {
        self.objects.join(hash.as_str())
    }

    fn size_of(&self, hash: &ContentHash) -> io::Result<Option<u64>> {
        match fs::symlink_metadata(self.object(hash)) {
            Ok(meta) => Ok(meta.is_file().then_some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn unlink(&self, hash: &ContentHash) -> io::Result<()> {
        if let Some(size) = self.size_of(hash)? {
            fs::remove_file(self.object(hash))?;
            self.release(size);
        }
        Ok(())
    }
}
