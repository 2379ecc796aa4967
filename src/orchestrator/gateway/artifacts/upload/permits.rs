//! Permits for uploads that arrive: so many at the same time, and fewer of one user, so that slow uploads of one don't
//! keep others out.

use crate::api::{
    UserId,
    problem::{Problem, ProblemKind},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::timeout,
};

/// Uploads of this process that arrive at the same time. Each has two blocks of 1 MiB in memory.
static UPLOADS: Semaphore = Semaphore::const_new(MAX_UPLOADS);
const MAX_UPLOADS: usize = 16;
/// Uploads by user, of those who send any.
static BY_USER: Mutex<BTreeMap<UserId, Arc<Semaphore>>> = Mutex::new(BTreeMap::new());
const MAX_UPLOADS_PER_USER: usize = 4;
/// Time to wait for a permit.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds after which a client that got no permit tries again.
const RETRY_SECONDS: u64 = 2;

/// Permit for an upload.
pub(super) struct UploadPermit {
    _all: SemaphorePermit<'static>,
    _own: OwnedSemaphorePermit,
    /// Dropped last, after the permit that it counts.
    _share: UserShare,
}

impl UploadPermit {
    /// Waits a moment for fewer uploads. Fails with 503 where there are as many as before.
    pub(super) async fn acquire(user: UserId) -> Result<Self, Problem> {
        let share = UserShare::of(user);
        // Of the user first, so that those who wait for their own uploads take no permit from others.
        let own = timeout(PERMIT_TIMEOUT, Arc::clone(&share.0).acquire_owned()).await;
        let own = own.ok().and_then(Result::ok);
        let own = own.ok_or_else(|| too_many(MAX_UPLOADS_PER_USER, "of your uploads"))?;
        let all = timeout(PERMIT_TIMEOUT, UPLOADS.acquire()).await;
        let all = all.ok().and_then(Result::ok);
        let all = all.ok_or_else(|| too_many(MAX_UPLOADS, "uploads"))?;
        Ok(Self {
            _all: all,
            _own: own,
            _share: share,
        })
    }
}

fn too_many(limit: usize, of: &str) -> Problem {
    let detail = format!("{limit} {of} arrive at the moment; try again");
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_SECONDS)
}

/// Permits of one user, which go from the table with the last upload.
struct UserShare(Arc<Semaphore>, UserId);

impl UserShare {
    fn of(user: UserId) -> Self {
        let mut table = BY_USER.lock();
        let new = || Arc::new(Semaphore::new(MAX_UPLOADS_PER_USER));
        Self(Arc::clone(table.entry(user).or_insert_with(new)), user)
    }
}

impl Drop for UserShare {
    fn drop(&mut self) {
        let mut table = BY_USER.lock();
        // This one, and that of the table.
        if Arc::strong_count(&self.0) == 2 {
            table.remove(&self.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn uploads_of_one_user_leave_permits() {
        let (greedy, other) = (UserId::new(), UserId::new());
        let mut permits = Vec::new();
        for _ in 0..MAX_UPLOADS_PER_USER {
            permits.push(UploadPermit::acquire(greedy).await.unwrap());
        }
        let refused = UploadPermit::acquire(greedy).await.err().unwrap();
        assert!(refused.detail.contains("4 of your uploads"), "{refused:?}");
        UploadPermit::acquire(other).await.unwrap();
        permits.pop();
        UploadPermit::acquire(greedy).await.unwrap();
        drop(permits);
        let table = BY_USER.lock();
        assert!(!table.contains_key(&greedy) && !table.contains_key(&other));
    }
}
