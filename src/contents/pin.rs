//! Pins, which keep contents from being removed.

use super::Shared;
use crate::api::jobs::files::ContentHash;
use parking_lot::Mutex;
use std::{collections::HashMap, fmt, sync::Arc};

/// Number of pins by content.
#[derive(Default)]
pub(super) struct Pins(Mutex<HashMap<ContentHash, usize>>);

impl Pins {
    /// Runs `remove` unless the content is pinned; it can't be pinned meanwhile.
    pub(super) fn unless_pinned<T>(
        &self,
        hash: &ContentHash,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        let pins = self.0.lock();
        (!pins.contains_key(hash)).then(remove)
    }
}

/// Pin of a content: it is not removed before all of its pins are dropped.
pub struct Pin {
    store: Arc<Shared>,
    hash: ContentHash,
}

impl Pin {
    pub(super) fn new(store: Arc<Shared>, hash: ContentHash) -> Self {
        *store.pins.0.lock().entry(hash.clone()).or_default() += 1;
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
        let mut pins = self.store.pins.0.lock();
        if let Some(count) = pins.get_mut(&self.hash) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.hash);
            }
        }
    }
}
