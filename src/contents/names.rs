//! Syncs of the directory of names: one serves all contents that got their names before it began.

use parking_lot::Mutex;
use std::{
    fs::File,
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Names that were given, and how many of them are on the disk.
#[derive(Default)]
pub(super) struct NameSync {
    given: AtomicU64,
    synced: Mutex<u64>,
}

impl NameSync {
    /// Returns once a name is on the disk that was given in `directory` before.
    pub(super) fn sync(&self, directory: &Path) -> io::Result<()> {
        let own = self.given.fetch_add(1, Ordering::SeqCst) + 1;
        let mut synced = self.synced.lock();
        if *synced >= own {
            return Ok(());
        }
        let given = self.given.load(Ordering::SeqCst);
        File::open(directory)?.sync_all()?;
        *synced = given;
        Ok(())
    }
}
