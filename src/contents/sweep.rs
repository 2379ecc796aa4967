//! Removal of contents that nothing refers to.

use super::{ContentStore, Shared, list::StoredEntry};
use crate::api::jobs::files::ContentHash;
use std::{io, sync::Arc};

/// Removal of contents, which spares those that came into use since it began: a reference to one of them may have been
/// stored after the caller looked for references.
pub struct Sweep(Arc<Shared>);

impl ContentStore {
    /// Begins a removal. One at a time; to be begun before the look for references.
    pub fn sweep(&self) -> Sweep {
        self.shared.pins.begin_sweep();
        Sweep(Arc::clone(&self.shared))
    }
}

impl Sweep {
    /// Removes a content that nothing referred to since the sweep began. Returns whether it is gone.
    pub fn remove(&self, hash: &ContentHash) -> io::Result<bool> {
        let removed = self.0.pins.unless_used(hash, || self.0.unlink(hash));
        Ok(removed.transpose()?.is_some())
    }

    /// All contents.
    pub fn list(&self) -> io::Result<Vec<StoredEntry>> {
        super::list::contents(&self.0.objects)
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.pins.end_sweep();
    }
}
