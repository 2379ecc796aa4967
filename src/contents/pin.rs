//! Pins, which keep contents from being removed.

use super::Shared;
use crate::api::jobs::files::ContentHash;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

/// Pins of all contents. Its lock is held for moments only, so that a pin can be dropped anywhere; whoever pins a
/// content that is being removed waits until that is done.
#[derive(Default)]
pub(super) struct Pins {
    table: Mutex<Table>,
    removed: Condvar,
}

#[derive(Default)]
struct Table {
    /// Number of pins by content.
    counts: HashMap<ContentHash, usize>,
    /// Contents that were pinned since the sweep under way began.
    used: Option<HashSet<ContentHash>>,
    /// Contents that are being removed.
    removing: HashSet<ContentHash>,
}

/// Removal of a content that is under way.
struct Removal<'a> {
    pins: &'a Pins,
    hash: &'a ContentHash,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.pins.table.lock().removing.remove(self.hash);
        self.pins.removed.notify_all();
    }
}

impl Pins {
    /// Runs `remove`, which may block, unless the content is pinned; it can't be pinned meanwhile.
    pub(super) fn unless_pinned<T>(
        &self,
        hash: &ContentHash,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        self.remove_unless(hash, |table| table.counts.contains_key(hash), remove)
    }

    /// Same as [`unless_pinned`](Self::unless_pinned), for a content that was not pinned since the sweep began.
    pub(super) fn unless_used<T>(
        &self,
        hash: &ContentHash,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        let is_used = |table: &Table| table.used.as_ref().is_none_or(|used| used.contains(hash));
        self.remove_unless(hash, is_used, remove)
    }

    fn remove_unless<T>(
        &self,
        hash: &ContentHash,
        is_needed: impl FnOnce(&Table) -> bool,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut table = self.settled(hash);
        if is_needed(&table) {
            return None;
        }
        table.removing.insert(hash.clone());
        drop(table);
        let _removal = Removal { pins: self, hash };
        Some(remove())
    }

    /// Table, once the content is not being removed.
    fn settled(&self, hash: &ContentHash) -> MutexGuard<'_, Table> {
        let mut table = self.table.lock();
        self.removed
            .wait_while(&mut table, |table| table.removing.contains(hash));
        table
    }

    pub(super) fn begin_sweep(&self) {
        let mut table = self.table.lock();
        table.used = Some(table.counts.keys().cloned().collect());
    }

    pub(super) fn end_sweep(&self) {
        self.table.lock().used = None;
    }
}

/// Pin of a content: it is not removed before all of its pins are dropped.
pub struct Pin {
    store: Arc<Shared>,
    hash: ContentHash,
}

impl Pin {
    /// Pins a content; may block while it is being removed.
    pub(super) fn new(store: Arc<Shared>, hash: ContentHash) -> Self {
        let mut table = store.pins.settled(&hash);
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
        let counts = &mut self.store.pins.table.lock().counts;
        if let Some(count) = counts.get_mut(&self.hash) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.hash);
            }
        }
    }
}
