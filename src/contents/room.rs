//! Room in a store: what is counted of its quota and of the disk.

use super::{ContentError, Shared};
use crate::disk_space::DiskSpace;
use std::sync::{Arc, atomic::Ordering};

/// Bytes that were counted before they arrive, so that what is announced also fits; freed when dropped, except those
/// that were [used](Room::use_bytes).
pub(super) struct Room {
    store: Arc<Shared>,
    quota: Option<u64>,
    left: u64,
}

impl Room {
    /// Counts `bytes`, unless they don't fit into `quota` or onto the disk.
    pub(super) fn reserve(
        store: Arc<Shared>,
        quota: Option<u64>,
        bytes: u64,
    ) -> Result<Self, ContentError> {
        let others = store.reserved.load(Ordering::Relaxed);
        store.check_disk(bytes, others)?;
        store.charge(bytes, quota)?;
        store.reserved.fetch_add(bytes, Ordering::Relaxed);
        let left = bytes;
        Ok(Self { store, quota, left })
    }

    /// Frees what goes beyond `limit`.
    pub(super) fn shrink(&mut self, limit: u64) {
        let excess = self.left.saturating_sub(limit);
        self.left -= excess;
        self.store.reserved.fetch_sub(excess, Ordering::Relaxed);
        self.store.release(excess);
    }

    /// Uses `bytes`, which stay counted: of those that were reserved, and more where they don't suffice.
    pub(super) fn use_bytes(&mut self, bytes: u64) -> Result<(), ContentError> {
        self.store.check_disk(bytes, 0)?;
        let more = bytes.saturating_sub(self.left);
        self.store.charge(more, self.quota)?;
        let reserved = bytes - more;
        self.left -= reserved;
        self.store.reserved.fetch_sub(reserved, Ordering::Relaxed);
        Ok(())
    }

    /// Reserves bytes again that were used, but could not be written.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.left += bytes;
        self.store.reserved.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.store.reserved.fetch_sub(self.left, Ordering::Relaxed);
        self.store.release(self.left);
    }
}

impl Shared {
    /// Counts `bytes` more, unless they don't fit.
    fn charge(&self, bytes: u64, quota: Option<u64>) -> Result<(), ContentError> {
        let quota = quota.unwrap_or(u64::MAX);
        let (order, read) = (Ordering::Relaxed, Ordering::Relaxed);
        let fits = |used: u64| {
            let sum = used.saturating_add(bytes);
            (bytes == 0 || sum <= quota).then_some(sum)
        };
        let charged = self.used.fetch_update(order, read, fits);
        charged.map_err(|used| ContentError::QuotaExceeded { quota, used })?;
        Ok(())
    }

    /// Fails where `bytes`, besides those of `others`, would eat into the reserve of the disk.
    pub(super) fn check_disk(&self, bytes: u64, others: u64) -> Result<(), ContentError> {
        if bytes == 0 {
            return Ok(());
        }
        let space = DiskSpace::at(&self.objects).map_err(ContentError::Io)?;
        let reserve = self.limits.min_free;
        match space.shortage_with(reserve, others.saturating_add(bytes)) {
            Some(shortage) => Err(ContentError::DiskFull { shortage }),
            None => Ok(()),
        }
    }

    /// Counts `bytes` no more.
    pub(super) fn release(&self, bytes: u64) {
        // Contents that an operator removed by hand are not counted twice.
        let (order, read) = (Ordering::Relaxed, Ordering::Relaxed);
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(order, read, less);
    }
}
