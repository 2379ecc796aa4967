//! Limits of log readers, in total and per user.
//!
//! A reader costs a connection here and one to the node, and some memory. Followers beyond a limit are
//! refused. Readers of a whole log wait for a permit, since a read is short.

use crate::{
    api::{
        UserId,
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    http::listener_policy::connection_limit,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Followers at the same time, where the connections suffice.
const MAX_FOLLOWERS: usize = 512;
/// Same for one user.
const MAX_FOLLOWERS_PER_USER: usize = 128;
/// Whole logs that are read at the same time, each with some megabytes of memory.
const MAX_COLLECTED_LOGS: usize = 16;
/// Same for one user.
const MAX_COLLECTED_LOGS_PER_USER: usize = 4;
/// Longest wait for a permit.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds after which a refused reader may try again.
const RETRY_SECONDS: u64 = 5;

/// Current log readers.
pub(in crate::orchestrator) struct LogLimits {
    followers: Arc<Mutex<HashMap<UserId, usize>>>,
    followers_limit: usize,
    own_followers_limit: usize,
    reads: Arc<Semaphore>,
    own_reads: Mutex<HashMap<UserId, Weak<Semaphore>>>,
}

impl Default for LogLimits {
    fn default() -> Self {
        let connections = connection_limit();
        Self {
            followers: Arc::default(),
            followers_limit: (connections / 2).clamp(1, MAX_FOLLOWERS),
            own_followers_limit: (connections / 8).clamp(1, MAX_FOLLOWERS_PER_USER),
            reads: Arc::new(Semaphore::new(MAX_COLLECTED_LOGS)),
            own_reads: Mutex::default(),
        }
    }
}

/// Permit of one follower, counted until it is dropped.
pub(super) struct FollowPermit {
    user: UserId,
    followers: Arc<Mutex<HashMap<UserId, usize>>>,
}

/// Permit to read one whole log.
pub(super) struct ReadPermit {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl LogLimits {
    /// Admits another follower. Fails above the limits.
    pub(super) fn acquire_follow(&self, user: UserId) -> Result<FollowPermit, Problem> {
        let mut followers = self.followers.lock();
        let own = followers.get(&user).copied().unwrap_or(0);
        if own >= self.own_followers_limit {
            let text = format!(
                "you already follow {own} logs; close some, or read one as a document (without follow)"
            );
            return Err(Problem::new(ProblemKind::TooManyRequests, text).retry_after(RETRY_SECONDS));
        }
        if followers.values().sum::<usize>() >= self.followers_limit {
            let text =
                "too many logs are followed at present; try again later, or read without follow";
            return Err(Problem::new(ProblemKind::Unavailable, text).retry_after(RETRY_SECONDS));
        }
        followers.insert(user, own + 1);
        Ok(FollowPermit {
            user,
            followers: Arc::clone(&self.followers),
        })
    }

    /// Waits for a permit to read a whole log: first among the user's own requests, so that one user's many
    /// requests don't hold up those of others.
    pub(super) async fn acquire_read(&self, user: UserId) -> Result<ReadPermit, ApiError> {
        let (own, all) = (self.own_reads(user), Arc::clone(&self.reads));
        let permit = async {
            let own = own.acquire_owned().await?;
            let all = all.acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>(ReadPermit {
                _own: own,
                _all: all,
            })
        };
        match timeout(PERMIT_TIMEOUT, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(closed)) => Err(ApiError::internal(closed)),
            Err(_) => {
                let text = "too many logs are being read at present; try again, fewer at a time";
                Err(Problem::new(ProblemKind::Unavailable, text)
                    .retry_after(RETRY_SECONDS)
                    .into())
            }
        }
    }

    fn own_reads(&self, user: UserId) -> Arc<Semaphore> {
        let mut users = self.own_reads.lock();
        if let Some(reads) = users.get(&user).and_then(Weak::upgrade) {
            return reads;
        }
        if users.len() >= users.capacity() {
            users.retain(|_, reads| reads.strong_count() > 0);
        }
        let reads = Arc::new(Semaphore::new(MAX_COLLECTED_LOGS_PER_USER));
        users.insert(user, Arc::downgrade(&reads));
        reads
    }
}

impl Drop for FollowPermit {
    fn drop(&mut self) {
        let mut followers = self.followers.lock();
        if let Some(count) = followers.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                followers.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_are_limited_per_user_and_overall() {
        let readers = LogLimits {
            followers_limit: 5,
            own_followers_limit: 2,
            ..LogLimits::default()
        };
        let [ann, bob, eve] = [(); 3].map(|()| UserId::new());
        let kind = |user| {
            readers
                .acquire_follow(user)
                .err()
                .map(|problem| problem.kind)
        };
        let mut kept: Vec<_> = [ann, ann, bob, bob]
            .map(|user| readers.acquire_follow(user).unwrap())
            .into();
        assert_eq!(kind(ann), Some(ProblemKind::TooManyRequests));
        kept.push(readers.acquire_follow(eve).unwrap());
        assert_eq!(kind(eve), Some(ProblemKind::Unavailable));
        drop(kept.swap_remove(0));
        assert_eq!(kind(bob), Some(ProblemKind::TooManyRequests));
        assert_eq!(kind(eve), None);
        kept.clear();
        assert!(readers.followers.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_leaves_read_permits_to_others() {
        let readers = LogLimits::default();
        let (ann, bob) = (UserId::new(), UserId::new());
        let mut kept = Vec::new();
        for _ in 0..MAX_COLLECTED_LOGS_PER_USER {
            kept.push(readers.acquire_read(ann).await.unwrap());
        }
        assert_eq!(
            readers.acquire_read(ann).await.err().unwrap().kind(),
            ProblemKind::Unavailable
        );
        kept.push(readers.acquire_read(bob).await.unwrap());
        drop(kept.swap_remove(0));
        readers.acquire_read(ann).await.unwrap();
    }
}
