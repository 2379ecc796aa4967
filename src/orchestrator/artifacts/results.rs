//! Share of the store that files take which the tasks of one user leave.
//!
//! They can't be made again, so they are not evicted as uploads are. While the store has much room, they take what they
//! need. In one that is nearly full each user has an equal share, and files beyond it are not stored: else the tasks of
//! one user would keep the files and uploads of all others out. One share more than there are users with artifacts is
//! counted, for the next user.

use super::{AppState, room::RESULTS_PART};
use crate::{
    api::{TaskId, UserId, size::ByteSize},
    errors,
    store::{StoreError, StoreUse},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::OnceCell;

/// Bytes of files, by user, that are fetched and not stored yet.
#[derive(Clone, Default)]
pub(in crate::orchestrator) struct ResultShares(Arc<Mutex<BTreeMap<UserId, u64>>>);

/// Share of a user, for the files of one job. What they take of it is counted until this value is dropped, when they are
/// stored.
pub(in crate::orchestrator) struct ResultShare {
    /// Unknown where the database can't be read; then only the quota of all limits the files.
    user: Option<UserId>,
    shares: ResultShares,
    taken: AtomicU64,
    stored: OnceCell<StoreUse>,
}

impl ResultShare {
    /// Share of a task's user.
    pub(in crate::orchestrator) async fn of(state: &AppState, task: TaskId) -> Self {
        let user = state.store.artifact_owner(task).await;
        Self {
            user: user.unwrap_or_else(|error| unknown(&error)),
            shares: state.jobs.result_shares.clone(),
            taken: AtomicU64::new(0),
            stored: OnceCell::new(),
        }
    }

    /// Takes `size` bytes for a file. Fails with the reason where they go beyond the share.
    pub(in crate::orchestrator) async fn take(
        &self,
        state: &AppState,
        size: u64,
    ) -> Result<(), String> {
        let (Some(user), Some(quota)) = (self.user, state.contents.limits().quota) else {
            return Ok(());
        };
        // Those that have arrived are counted twice, so that none is missed that has not.
        let taken: u64 = self.shares.0.lock().values().sum();
        let used = state.contents.used_bytes().saturating_add(taken);
        let stored = if used.saturating_add(size) > ample(quota) {
            let read = || state.store.artifact_use(user);
            let read = self.stored.get_or_try_init(read).await;
            read.map_or_else(|error| unknown(&error), |stored| Some(*stored))
        } else {
            None
        };
        let mut table = self.shares.0.lock();
        let own = table.entry(user).or_default();
        if let Some(stored) = stored {
            let share = share(quota, stored);
            // A user without others waits for room instead.
            if share < quota && stored.own.saturating_add(*own).saturating_add(size) > share {
                return Err(format!(
                    "the orchestrator has little room, and this user's share of it is {}; delete artifacts (cynode \
                     artifacts rm) or finished tasks (cynode task rm)",
                    ByteSize(share)
                ));
            }
        }
        *own = own.saturating_add(size);
        self.taken.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for ResultShare {
    fn drop(&mut self) {
        let Some(user) = self.user else { return };
        let mut table = self.shares.0.lock();
        if let Some(own) = table.get_mut(&user) {
            *own = own.saturating_sub(self.taken.load(Ordering::Relaxed));
            if *own == 0 {
                table.remove(&user);
            }
        }
    }
}

fn unknown<T>(error: &StoreError) -> Option<T> {
    let error = errors::chain(error);
    tracing::warn!(
        error,
        "share of a user unknown; only the quota limits its files"
    );
    None
}

/// Bytes of the store up to which files go beyond a share: as many as leave uploads as much as only files may take.
fn ample(quota: u64) -> u64 {
    quota - quota / RESULTS_PART * 2
}

/// Bytes of one user's share.
fn share(quota: u64, stored: StoreUse) -> u64 {
    quota / stored.users.min(stored.holders + 1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_counts_next_user() {
        for (holders, users, expected) in [(1, 1, 100), (1, 2, 50), (2, 2, 50), (3, 9, 25)] {
            let stored = StoreUse {
                own: 0,
                holders,
                users,
            };
            assert_eq!(share(100, stored), expected, "{stored:?}");
        }
        assert_eq!(ample(100), 60);
    }
}
