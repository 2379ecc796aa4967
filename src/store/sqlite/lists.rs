//! Readers for lists: connections of their own, and only a few lists of one user at a time.
//!
//! A list may take a thousand times the work of a session check. So lists never use a connection of the other
//! reads, and the lists of one user wait for each other, in the order in which they were asked for, while
//! other users find a free connection.

use super::{READ_TIMEOUT, StoreError, readers::ReaderPool};
use crate::api::UserId;
use parking_lot::Mutex;
use rusqlite::Connection;
use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Maximum number of lists that are read at the same time.
const LIST_READERS: usize = 4;
/// Maximum number of those for one user.
pub(super) const MAX_LISTS_PER_USER: usize = 2;

/// Permits of the users who read lists or wait to.
type Permits = HashMap<UserId, Arc<Semaphore>>;

#[derive(Clone)]
pub(super) struct ListReaders {
    readers: ReaderPool,
    permits: Arc<Mutex<Permits>>,
}

impl ListReaders {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            readers: ReaderPool::open(path, LIST_READERS, Some(READ_TIMEOUT))?,
            permits: Arc::default(),
        })
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        by: UserId,
        f: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _permit = timeout(READ_TIMEOUT, self.acquire(by))
            .await
            .map_err(|_| StoreError::ListsBusy)??;
        self.readers.read(f).await
    }

    async fn acquire(&self, by: UserId) -> Result<OwnedSemaphorePermit, StoreError> {
        let permits = {
            let mut all = self.permits.lock();
            // Semaphores without a holder and a waiter go.
            all.retain(|user, permits| *user == by || Arc::strong_count(permits) > 1);
            let permits = all.entry(by);
            Arc::clone(permits.or_insert_with(|| Arc::new(Semaphore::new(MAX_LISTS_PER_USER))))
        };
        let permit = permits.acquire_owned().await;
        permit.map_err(|_| StoreError::Closed)
    }

    pub(super) async fn close(&self, limit: Duration) {
        self.readers.close(limit).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn lists_delay_only_same_user() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("db");
        Connection::open(&path).unwrap();
        let lists = ListReaders::open(&path).unwrap();
        let (greedy, other) = (UserId::new(), UserId::new());
        let held = [
            lists.acquire(greedy).await.unwrap(),
            lists.acquire(greedy).await.unwrap(),
        ];
        let waiting = AtomicUsize::new(0);
        let more = join_all((0..100).map(|_| async {
            lists.read(greedy, |_| Ok(())).await.unwrap();
            waiting.fetch_add(1, Ordering::SeqCst);
        }));
        let other = async {
            lists.read(other, |_| Ok(())).await.unwrap();
            assert_eq!(waiting.load(Ordering::SeqCst), 0);
            drop(held);
        };
        tokio::join!(more, other);
        assert_eq!(waiting.load(Ordering::SeqCst), 100);
        drop(lists.acquire(UserId::new()).await.unwrap());
        assert_eq!(
            lists.permits.lock().len(),
            1,
            "unused semaphores are removed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn list_without_permit_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("db");
        Connection::open(&path).unwrap();
        let (lists, user) = (ListReaders::open(&path).unwrap(), UserId::new());
        let _held = [
            lists.acquire(user).await.unwrap(),
            lists.acquire(user).await.unwrap(),
        ];
        let refused = lists.read(user, |_| Ok(())).await;
        assert!(matches!(refused, Err(StoreError::ListsBusy)));
    }
}
