//! Who follows which running attempt, so that a cancel finds its way.
//!
//! A follower enters before its attempt is claimed in the store. So whoever asks to cancel
//! either finds the job still queued, or finds the follower here.

use crate::api::JobId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

type Map = HashMap<JobId, watch::Sender<bool>>;

/// The jobs that are followed now.
#[derive(Clone, Default)]
pub(super) struct Followers(Arc<Mutex<Map>>);

/// One who follows; leaves when dropped.
pub(super) struct Follower {
    job: JobId,
    cancel: watch::Receiver<bool>,
    followers: Followers,
}

impl Followers {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A follower of `job` enters, in the place of an earlier attempt's.
    pub(super) fn enter(&self, job: JobId) -> Follower {
        let (sender, cancel) = watch::channel(false);
        self.map().insert(job, sender);
        Follower {
            job,
            cancel,
            followers: self.clone(),
        }
    }

    /// Tells the follower of a job, if it has one, to have it ended.
    pub(super) fn cancel(&self, job: JobId) {
        if let Some(follower) = self.map().get(&job) {
            follower.send_replace(true);
        }
    }
}

impl Follower {
    /// Hears of a cancel.
    pub(super) fn cancel(&self) -> watch::Receiver<bool> {
        self.cancel.clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut map = self.followers.map();
        // A later attempt may have entered meanwhile.
        if map
            .get(&self.job)
            .is_some_and(|sender| sender.subscribe().same_channel(&self.cancel))
        {
            map.remove(&self.job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_attempts_end_leaves_the_next_ones_follower_alone() {
        let (followers, job) = (Followers::default(), JobId::new());
        let first = followers.enter(job);
        let second = followers.enter(job);
        drop(first);
        followers.cancel(job);
        assert!(*second.cancel().borrow());
        drop(second);
        assert!(followers.map().is_empty());
    }
}
