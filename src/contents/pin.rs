//! Pins, which keep contents from being removed.

use super::Shared;
use crate::api::jobs::files::ContentHash;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

/// Pins of all contents.
#[derive(Default)]
pub(super) struct Pins(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// Number of pins by content.
    counts: HashMap<ContentHash, usize>,
    /// Contents that were pinned since the sweep under way began.
    used: Option<HashSet<ContentHash>>,
}

impl Pins {
    /// Runs `remove` unless the content is pinned; it can't be pinned meanwhile.
    pub(super) fn unless_pinned<T>(
        &self,
        hash: &ContentHash,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        let table = self.0.lock();
        (!table.counts.contains_key(hash)).then(remove)
    }

    /// Same as [`unless_pinned`](Self::unless_pinned), for a content that was not pinned since the sweep began.
    pub(super) fn unless_used<T>(
        &self,
        hash: &ContentHash,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        let table = self.0.lock();
        let is_used = table.used.as_ref().is_none_or(|used| used.contains(hash));
        (!is_used).then(remove)
    }

    pub(super) fn begin_sweep(&self) {
        let mut table = self.0.lock();
        table.used = Some(table.counts.keys().cloned().collect());
    }

    pub(super) fn end_sweep(&self) {
        self.0.lock().used = None;
    }
}

/// Pin of a content: it is not removed before all of its pins are dropped.
pub struct Pin {
    store: Arc<Shared>,
    hash: ContentHash,
}

impl Pin {
    pub(super) fn new(store: Arc<Shared>, hash: ContentHash) -> Self {
        let mut table = store.pins.0.lock();
        *table.counts.entry(hash.clone()).or_default() += 1;
        if let Some(used) = &mut table.used {
            used.insert(hash.clone());
        }
        drop(table);
        Self { store, hash }
    }

    /// Hash of the pinned content.
    pub fn hash(&self) -> &ContentHash {
        &self.hash
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pin").field(&self.hash).finish()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let counts = &mut self.store.pins.0.lock().counts;
        if let Some(count) = counts.get_mut(&self.hash) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.hash);
            }
        }
    }
}
