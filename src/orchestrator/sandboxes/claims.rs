//! Names of snapshots that are being made, so that two nodes don't make one of the same name at the same time: neither
//! reports it before it is made.

use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc};

/// Images of snapshots that are being made.
#[derive(Default)]
pub(in crate::orchestrator) struct SnapshotClaims {
    images: Arc<Mutex<HashSet<String>>>,
}

/// Claim to one image, until it is dropped.
pub(super) struct SnapshotClaim {
    image: String,
    images: Arc<Mutex<HashSet<String>>>,
}

impl SnapshotClaims {
    /// Claims an image; `None` while another call has it.
    pub(super) fn claim(&self, image: &str) -> Option<SnapshotClaim> {
        let is_new = self.images.lock().insert(image.to_owned());
        is_new.then(|| SnapshotClaim {
            image: image.to_owned(),
            images: Arc::clone(&self.images),
        })
    }
}

impl Drop for SnapshotClaim {
    fn drop(&mut self) {
        self.images.lock().remove(&self.image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_claimed_once_at_a_time() {
        let claims = SnapshotClaims::default();
        let first = claims.claim("a");
        assert!(first.is_some());
        assert!(claims.claim("a").is_none());
        // The refused one has not taken the first one's away.
        assert!(claims.claim("a").is_none());
        assert!(claims.claim("b").is_some());
        drop(first);
        assert!(claims.claim("a").is_some());
        assert!(claims.images.lock().is_empty());
    }
}
