//! Removal of contents that nothing refers to: of deleted artifacts and tasks, of tasks that ended, and of requests that
//! failed or were cut between their content and its row.
//!
//! The database notes each content that loses a reference, so a removal reads no directory. All contents are compared
//! with the database at the start and every hour, which finds those of a process that was killed.

use super::AppState;
use crate::{
    api::jobs::files::ContentHash,
    contents::Sweep,
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::StoreError,
};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
};

/// Interval between removals, where nothing asks for one.
const INTERVAL: Duration = Duration::from_secs(10);
/// Interval between comparisons of all contents with the database.
const FULL_INTERVAL: Duration = Duration::from_hours(1);
/// Time after its last part for which an upload can be resumed.
const UPLOAD_TTL: Duration = Duration::from_hours(24);
/// Time to wait for a removal that a caller needs.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of contents that are looked up at a time.
const BATCH_LIMIT: u32 = 500;

/// Contents that may have to go, and the wake-up of the task that removes them.
#[derive(Default)]
pub(super) struct ContentsGc {
    suspects: Mutex<BTreeSet<ContentHash>>,
    wake: Notify,
    /// Number of removals that ended.
    rounds: watch::Sender<u64>,
}

impl ContentsGc {
    /// Has a content removed soon, unless something refers to it by then.
    pub(super) fn suspect(&self, hash: ContentHash) {
        self.suspects.lock().insert(hash);
        self.wake.notify_one();
    }

    /// Has contents removed now that lost a reference.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Same as [`wake`](Self::wake), and waits until a removal has ended.
    pub(super) async fn remove_now(&self) {
        let mut rounds = self.rounds.subscribe();
        self.wake.notify_one();
        // One that takes longer goes on; the caller looks at what it freed so far.
        let _ = tokio::time::timeout(REMOVAL_TIMEOUT, rounds.changed()).await;
    }

    /// Takes contents back that could not be removed yet, to be looked at again next time.
    fn put_back(&self, hashes: impl IntoIterator<Item = ContentHash>) {
        self.suspects.lock().extend(hashes);
    }
}

/// Error of a removal, which is repeated.
#[derive(Debug, thiserror::Error)]
enum GcError {
    #[error("the references can't be read")]
    Store(#[from] StoreError),
    #[error("the directory of contents can't be read or written")]
    Io(#[from] io::Error),
}

/// Removes contents until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = remove_repeatedly(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

async fn remove_repeatedly(state: &AppState) {
    let mut last_full: Option<Instant> = None;
    loop {
        let is_full = last_full.is_none_or(|last| last.elapsed() >= FULL_INTERVAL);
        match remove_unreferenced(state, is_full).await {
            Ok(()) if is_full => last_full = Some(Instant::now()),
            Ok(()) => {}
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(error, "unused contents can't be removed; retrying");
            }
        }
        state.contents_gc.rounds.send_modify(|count| *count += 1);
        // Either is a reason to look again.
        let _ = tokio::time::timeout(INTERVAL, state.contents_gc.wake.notified()).await;
    }
}

/// One removal: of all contents, or of those that lost a reference.
async fn remove_unreferenced(state: &AppState, is_full: bool) -> Result<(), GcError> {
    // Before the look for references, so that one stored meanwhile spares its content.
    let sweep = Arc::new(state.contents.sweep());
    let suspects = std::mem::take(&mut *state.contents_gc.suspects.lock());
    match remove_batches(state, &sweep, suspects.iter().cloned().collect()).await {
        Ok(kept) => state.contents_gc.put_back(kept),
        Err(error) => {
            state.contents_gc.put_back(suspects);
            return Err(error);
        }
    }
    if is_full {
        let listing = Arc::clone(&sweep);
        let all = blocking(move || listing.list()).await?;
        let all = all.into_iter().map(|entry| entry.sha256).collect();
        remove_batches(state, &sweep, all).await?;
        let contents = state.contents.clone();
        let stale = blocking(move || contents.remove_stale_uploads(UPLOAD_TTL)).await?;
        if stale > 0 {
            tracing::info!(stale, "uploads that were not resumed removed");
        }
    }
    loop {
        let released = state.store.contents_released(BATCH_LIMIT).await?;
        let count = released.len();
        let Removal { removed, kept } = remove_batch(state, &sweep, &released).await?;
        let referenced: Vec<_> = released
            .into_iter()
            .filter(|hash| !kept.contains(hash) && !removed.contains(hash))
            .collect();
        if !removed.is_empty() || !referenced.is_empty() {
            state.store.contents_settled(removed, referenced).await?;
        }
        // Those in use at the moment are looked at again next time.
        if count < BATCH_LIMIT as usize || !kept.is_empty() {
            return Ok(());
        }
    }
}

/// Same as [`remove_batch`], for any number of contents.
async fn remove_batches(
    state: &AppState,
    sweep: &Arc<Sweep>,
    hashes: Vec<ContentHash>,
) -> Result<BTreeSet<ContentHash>, GcError> {
    let mut kept = BTreeSet::new();
    for batch in hashes.chunks(BATCH_LIMIT as usize) {
        kept.append(&mut remove_batch(state, sweep, batch).await?.kept);
    }
    Ok(kept)
}

/// Contents to which nothing refers.
#[derive(Default)]
struct Removal {
    /// Those that are gone.
    removed: BTreeSet<ContentHash>,
    /// Those that are in use.
    kept: BTreeSet<ContentHash>,
}

/// Removes those of some contents that nothing refers to.
async fn remove_batch(
    state: &AppState,
    sweep: &Arc<Sweep>,
    batch: &[ContentHash],
) -> Result<Removal, GcError> {
    if batch.is_empty() {
        return Ok(Removal::default());
    }
    let mut unreferenced = state.store.contents_unreferenced(batch.to_vec()).await?;
    let sweep = Arc::clone(sweep);
    let removal = blocking(move || {
        let mut removal = Removal::default();
        while let Some(hash) = unreferenced.pop_first() {
            if sweep.remove(&hash)? {
                removal.removed.insert(hash);
            } else {
                removal.kept.insert(hash);
            }
        }
        Ok(removal)
    });
    let removal = removal.await?;
    let removed = removal.removed.len();
    if removed > 0 {
        tracing::debug!(removed, "unused contents removed");
    }
    Ok(removal)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}
