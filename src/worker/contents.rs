//! Contents that this node has: a cache in front of the orchestrator's, by hash.
//!
//! The orchestrator sends a content once, and later jobs find it here. Those of jobs that wait for their placement are
//! pinned. What is used least recently goes first, when the cache is larger than `--content-cache`, and when the disk
//! is short of space. A content that has just arrived stays for a while: its job follows. Another one that arrives
//! doesn't take its place: two files of a job that don't fit together would evict each other.

use crate::{
    api::{
        jobs::{
            SandboxSpec,
            files::{Content, ContentHash},
        },
        problem::{Problem, ProblemKind},
        size::ByteSize,
    },
    contents::{ContentError, ContentStore, Expected, Pin, StoreLimits, StoredEntry},
    disk_space::{DiskSpace, Resource},
    http::body::BodyChunks,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::task::spawn_blocking;

/// Time for which a content stays after its last use, unless the disk is short.
const MIN_AGE: Duration = Duration::from_mins(10);

/// Time for which no other content that arrives takes the place of one whose job has not come yet. The job may never
/// come: it may be canceled or refused meanwhile.
const MAX_AWAITED_TIME: Duration = Duration::from_mins(10);

/// Cache of contents; cheap to clone.
#[derive(Clone)]
pub(super) struct ContentCache(Arc<Shared>);

struct Shared {
    store: ContentStore,
    path: PathBuf,
    /// Bytes that are kept.
    limit: u64,
    min_free: u64,
    /// Held during a clean-up, so that two don't remove more than is necessary.
    cleaning: Mutex<()>,
    /// Contents whose jobs have not come yet, with the time of their arrival.
    awaited: Mutex<HashMap<ContentHash, Instant>>,
}

impl ContentCache {
    /// Opens the cache below the worker's home.
    pub(super) fn open(home: &Path, limit: u64, min_free: u64) -> io::Result<Self> {
        let path = home.join("contents");
        let limits = StoreLimits {
            quota: None,
            min_free,
        };
        Ok(Self(Arc::new(Shared {
            store: ContentStore::open(&path, limits)?,
            path,
            limit,
            min_free,
            cleaning: Mutex::default(),
            awaited: Mutex::default(),
        })))
    }

    /// Pins all contents of a job. Fails with 409 where some are missing, and names them.
    pub(super) async fn pin_all(&self, spec: &SandboxSpec) -> Result<Vec<Pin>, Problem> {
        let hashes: Vec<_> = contents(spec)
            .map(|content| content.sha256.clone())
            .collect();
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let pinned = hashes.clone();
        let pinned = self.on_disk(move |cache| cache.pin(pinned)).await;
        let (pins, absent) = pinned.map_err(|error| unreadable(&error))?;
        if absent.is_empty() {
            let mut awaited = self.0.awaited.lock();
            for hash in &hashes {
                awaited.remove(hash);
            }
            return Ok(pins);
        }
        Err(missing(absent))
    }

    /// Pins one content: its path, and the open file. Fails with 409 where it is missing, and names it.
    pub(super) async fn pin_file(
        &self,
        sha256: ContentHash,
    ) -> Result<(Pin, PathBuf, File), Problem> {
        let hash = sha256.clone();
        let pinned = self.on_disk(move |cache| {
            let store = &cache.0.store;
            let Some(pin) = store.pin(&hash)? else {
                return Ok(None);
            };
            Ok(Some((
                pin,
                store.path_of(&hash),
                store.open_content(&hash)?,
            )))
        });
        let pinned = pinned.await.map_err(|error| unreadable(&error))?;
        if pinned.is_some() {
            self.0.awaited.lock().remove(&sha256);
        }
        pinned.ok_or_else(|| missing(vec![sha256]))
    }

    /// Receives a content. Ends with 400 where it is not what its hash says, with 507 where there is no room
    /// at present, and with 413 where there never is.
    pub(super) async fn receive(
        &self,
        sha256: ContentHash,
        mut body: BodyChunks,
    ) -> Result<(), Problem> {
        let size = body.announced_size();
        let known = sha256.clone();
        let is_known = self
            .on_disk(move |cache| cache.0.store.record_use(&known))
            .await;
        if is_known.map_err(|error| unreadable(&error))? {
            return Ok(());
        }
        self.check_size(size.unwrap_or(0)).await?;
        self.make_room(size.unwrap_or(0)).await;
        let expected = Expected {
            sha256: Some(sha256.clone()),
            size,
        };
        let mut writer = self.0.store.writer(expected).await.map_err(problem)?;
        while let Some(chunk) = body.next().await? {
            writer.write(&chunk).await.map_err(problem)?;
        }
        // Its pin is held until it is awaited.
        let _stored = writer.finish().await.map_err(problem)?;
        self.expect_job_of(sha256);
        Ok(())
    }

    /// Fails with 413 where a content would not fit onto an empty disk.
    async fn check_size(&self, size: u64) -> Result<(), Problem> {
        let most = self.on_disk(|Self(cache)| {
            let total = DiskSpace::at(&cache.path)?.bytes.total;
            Ok(total.saturating_sub(cache.min_free))
        });
        let most = most.await.map_err(|error| unreadable(&error))?;
        if size <= most {
            return Ok(());
        }
        let detail = format!(
            "a file of the job has {}, and the disk of this node holds at most {}; use a node with a larger disk",
            ByteSize(size),
            ByteSize(most)
        );
        Err(Problem::new(ProblemKind::PayloadTooLarge, detail))
    }

    /// Size of a content; `None` where it is not here.
    pub(super) async fn size_of(&self, sha256: ContentHash) -> Result<Option<u64>, Problem> {
        let size = self
            .on_disk(move |cache| cache.0.store.size_of(&sha256))
            .await;
        size.map_err(|error| unreadable(&error))
    }

    /// Opens a content. May block.
    pub(super) fn open_content(&self, content: &Content) -> io::Result<File> {
        let file = self.0.store.open_content(&content.sha256)?;
        let size = file.metadata()?.len();
        if size == content.size_bytes {
            return Ok(file);
        }
        Err(io::Error::other(format!(
            "it has {size} bytes here, and {} where the job comes from",
            content.size_bytes
        )))
    }

    /// Removes contents beyond the limit of the cache, and more where the disk is short or would be with `coming` bytes.
    /// For bytes that would not fit even beside an empty cache nothing goes.
    pub(super) async fn make_room(&self, coming: u64) {
        let done = self.on_disk(move |cache| cache.clean(coming)).await;
        if let Err(error) = done {
            tracing::warn!(%error, "contents not removed; retrying");
        }
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let cache = self.clone();
        let done = spawn_blocking(move || operation(&cache)).await;
        done.map_err(io::Error::from).flatten()
    }

    fn pin(&self, hashes: Vec<ContentHash>) -> io::Result<(Vec<Pin>, Vec<ContentHash>)> {
        let (mut pins, mut missing) = (Vec::new(), Vec::new());
        for hash in hashes {
            match self.0.store.pin(&hash)? {
                Some(pin) => pins.push(pin),
                None if missing.contains(&hash) => {}
                None => missing.push(hash),
            }
        }
        Ok((pins, missing))
    }

    fn clean(&self, coming: u64) -> io::Result<()> {
        let shared = &*self.0;
        let _cleaning = shared.cleaning.lock();
        let is_too_large = || shared.store.used_bytes().saturating_add(coming) > shared.limit;
        let shortage = |coming: u64| {
            let space = DiskSpace::at(&shared.path).ok()?;
            space.shortage_with(shared.min_free, coming)
        };
        if !is_too_large() && shortage(coming).is_none() {
            return Ok(());
        }
        let mut entries = shared.store.list()?;
        let all = entries.iter().map(|entry| entry.size_bytes).sum();
        let is_hopeless = shortage(coming).is_some_and(|shortage| {
            shortage.of == Resource::Bytes && shortage.free.saturating_add(all) < shortage.reserve
        });
        let coming = if is_hopeless { 0 } else { coming };
        let is_too_large = || shared.store.used_bytes().saturating_add(coming) > shared.limit;
        let is_short = || shortage(coming).is_some();
        entries.sort_by_key(|entry| entry.last_used);
        for entry in entries {
            if coming > 0 && self.is_awaited(&entry.sha256) {
                continue;
            }
            let may_go = is_short() || (is_too_large() && is_old(&entry));
            if may_go && shared.store.remove(&entry.sha256)? {
                tracing::debug!(sha256 = %entry.sha256, bytes = entry.size_bytes, "content removed from the cache");
            }
        }
        Ok(())
    }

    fn expect_job_of(&self, sha256: ContentHash) {
        let mut awaited = self.0.awaited.lock();
        awaited.retain(|_, arrived| arrived.elapsed() < MAX_AWAITED_TIME);
        awaited.insert(sha256, Instant::now());
    }

    fn is_awaited(&self, hash: &ContentHash) -> bool {
        let awaited = self.0.awaited.lock();
        let arrived = awaited.get(hash);
        arrived.is_some_and(|arrived| arrived.elapsed() < MAX_AWAITED_TIME)
    }
}

fn is_old(entry: &StoredEntry) -> bool {
    let age = SystemTime::now().duration_since(entry.last_used);
    age.is_ok_and(|age| age >= MIN_AGE)
}

/// Contents that a job needs.
fn contents(spec: &SandboxSpec) -> impl Iterator<Item = &Content> {
    let files = spec.files.iter().map(|file| &file.content);
    files.chain(&spec.stdin)
}

fn missing(hashes: Vec<ContentHash>) -> Problem {
    let detail = "contents are missing here; send them with PUT /v1/worker/contents/{sha256}, and then this again";
    let mut problem = Problem::new(ProblemKind::ContentMissing, detail);
    problem.extras.missing = hashes;
    problem
}

fn problem(error: ContentError) -> Problem {
    let kind = match &error {
        ContentError::QuotaExceeded { .. } | ContentError::DiskFull { .. } => {
            ProblemKind::InsufficientStorage
        }
        ContentError::WrongHash { .. } | ContentError::WrongSize { .. } => {
            ProblemKind::InvalidRequest
        }
        ContentError::Busy | ContentError::WrongOffset { .. } => ProblemKind::Conflict,
        ContentError::Io(cause) => return unreadable(cause),
    };
    Problem::new(kind, error.to_string())
}

fn unreadable(error: &io::Error) -> Problem {
    tracing::error!(%error, "contents can't be read or written");
    Problem::new(
        ProblemKind::Unavailable,
        "the contents of this node can't be read or written; see its log",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(hash: &str) -> SandboxSpec {
        let content = serde_json::json!({"sha256": hash, "size_bytes": 3});
        let spec = serde_json::json!({"image": "i", "command": ["c"], "stdin": content});
        serde_json::from_value(spec).unwrap()
    }

    #[tokio::test]
    async fn content_makes_no_room_before_its_job() {
        for is_of_job in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let cache = ContentCache::open(home.path(), 3, 0).unwrap();
            let stored = cache.0.store.put_bytes("one".into()).await.unwrap();
            let sha256 = stored.content.sha256.clone();
            drop(stored);
            cache.expect_job_of(sha256.clone());
            let path = home.path().join("contents/objects").join(sha256.as_str());
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - 2 * MIN_AGE).unwrap();
            cache.make_room(1).await;
            assert!(cache.0.store.contains(&sha256).unwrap());
            if is_of_job {
                drop(cache.pin_all(&spec(sha256.as_str())).await.unwrap());
            } else {
                drop(cache.pin_file(sha256.clone()).await.unwrap());
                // That was a use of it.
                file.set_modified(SystemTime::now() - 2 * MIN_AGE).unwrap();
            }
            cache.make_room(1).await;
            assert!(!cache.0.store.contains(&sha256).unwrap());
        }
    }

    #[tokio::test]
    async fn content_larger_than_disk_is_too_large() {
        let home = tempfile::tempdir().unwrap();
        let cache = ContentCache::open(home.path(), 3, 1 << 20).unwrap();
        let total = DiskSpace::at(home.path()).unwrap().bytes.total;
        cache.check_size(total - (1 << 20)).await.unwrap();
        let refused = cache.check_size(total).await.unwrap_err();
        assert_eq!(refused.kind, ProblemKind::PayloadTooLarge);
    }

    #[tokio::test]
    async fn pinned_and_recent_contents_stay() {
        let home = tempfile::tempdir().unwrap();
        let cache = ContentCache::open(home.path(), 3, 0).unwrap();
        let mut hashes = Vec::new();
        for text in ["one", "two", "six"] {
            let stored = cache.0.store.put_bytes(text.into()).await.unwrap();
            hashes.push(stored.content.sha256.clone());
        }
        cache.make_room(0).await;
        assert_eq!(cache.0.store.used_bytes(), 9, "all are recent");
        let before = SystemTime::now() - 2 * MIN_AGE;
        for entry in &hashes {
            let path = home.path().join("contents/objects").join(entry.as_str());
            File::options()
                .append(true)
                .open(path)
                .unwrap()
                .set_modified(before)
                .unwrap();
        }
        let pins = cache.pin_all(&spec(hashes[0].as_str())).await.unwrap();
        cache.make_room(0).await;
        assert_eq!(cache.0.store.used_bytes(), 3);
        assert!(cache.0.store.contains(&hashes[0]).unwrap());
        drop(pins);
        let refused = cache.pin_all(&spec(hashes[1].as_str())).await.unwrap_err();
        assert_eq!(
            (refused.kind, &refused.extras.missing[..]),
            (ProblemKind::ContentMissing, &hashes[1..2])
        );
        cache.make_room(1 << 60).await;
        assert_eq!(
            cache.0.store.used_bytes(),
            3,
            "what can't fit drives nothing out"
        );
        let short = ContentCache::open(home.path(), 3, 1 << 60).unwrap();
        short.make_room(0).await;
        assert_eq!(
            short.0.store.used_bytes(),
            0,
            "a disk that is short frees all"
        );
    }
}
