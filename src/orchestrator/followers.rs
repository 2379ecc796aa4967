//! Who follows which running job: so that a cancel finds its way, and so does another node that is to
//! have it, its own being silent.
//!
//! A follower enters before its job is claimed in the store. So whoever asks to cancel
//! either finds the job still queued, or finds the follower here.

use crate::{
    api::{JobId, NodeId},
    store::RunningJob,
};
use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{oneshot, watch};

/// A running job that another node may have.
#[derive(Clone, Debug)]
pub struct Sought {
    /// Which job.
    pub job: JobId,
    /// What it asks of a node, as it is stored.
    pub placement: String,
    /// The node that has it.
    pub except: NodeId,
    /// Those that were asked before, in vain.
    pub tried: Vec<NodeId>,
}

/// The node that a job is to be offered to. Whoever chose it waits until this is dropped.
pub(super) struct Chosen {
    pub(super) node: NodeId,
    _told: oneshot::Sender<()>,
}

struct Entry {
    cancel: watch::Sender<bool>,
    sought: Option<(Sought, oneshot::Sender<Chosen>)>,
}

type Map = HashMap<JobId, Entry>;

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

    /// A follower of `job` enters, in the place of an earlier one.
    pub(super) fn enter(&self, job: JobId) -> Follower {
        let (sender, cancel) = watch::channel(false);
        let entry = Entry {
            cancel: sender,
            sought: None,
        };
        self.map().insert(job, entry);
        Follower {
            job,
            cancel,
            followers: self.clone(),
        }
    }

    /// Tells the follower of a job to have it ended; false where it has none.
    pub(super) fn cancel(&self, job: JobId) -> bool {
        let map = self.map();
        let follower = map.get(&job);
        follower.is_some_and(|follower| {
            follower.cancel.send_replace(true);
            true
        })
    }

    /// The jobs that another node may have now, the oldest first.
    pub(super) fn sought(&self) -> Vec<Sought> {
        let map = self.map();
        let sought = map.values().filter_map(|entry| entry.sought.as_ref());
        // A seeker that is closed has given up: the node is there again.
        let sought = sought.filter(|(_, seeker)| !seeker.is_closed());
        let mut sought: Vec<_> = sought.map(|(sought, _)| sought.clone()).collect();
        sought.sort_by_key(|sought| sought.job);
        sought
    }

    /// Has a job that is sought offered to `node`; done when that is written down, or is not to be.
    pub(super) async fn offer(&self, job: JobId, node: NodeId) {
        let sought = self
            .map()
            .get_mut(&job)
            .and_then(|entry| entry.sought.take());
        let Some((_, seeker)) = sought else {
            return;
        };
        let (_told, done) = oneshot::channel();
        // The other end is only ever dropped; by one that seeks no more, at once.
        let _ = seeker.send(Chosen { node, _told });
        let _ = done.await;
    }
}

impl Follower {
    /// Hears of a cancel.
    pub(super) fn cancel(&self) -> watch::Receiver<bool> {
        self.cancel.clone()
    }

    /// Whether the job is to be ended.
    pub(super) fn is_canceled(&self) -> bool {
        *self.cancel.borrow()
    }

    /// Has another node sought for `job` from now on, for as long as the answer is waited for.
    pub(super) fn seek(
        &self,
        job: &RunningJob,
        tried: &[NodeId],
    ) -> impl Future<Output = Chosen> + use<> {
        let sought = Sought {
            job: job.id,
            placement: job.placement.clone(),
            except: job.node_id,
            tried: tried.to_vec(),
        };
        let (seeker, chosen) = oneshot::channel();
        if let Some(entry) = self.followers.map().get_mut(&self.job) {
            entry.sought = Some((sought, seeker));
        }
        async {
            match chosen.await {
                Ok(chosen) => chosen,
                // Somebody else has entered in our place, and nobody looks for us any more.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut map = self.followers.map();
        // A later attempt may have entered meanwhile.
        if map
            .get(&self.job)
            .is_some_and(|entry| entry.cancel.subscribe().same_channel(&self.cancel))
        {
            map.remove(&self.job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::dispatch::tests::running;

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

    #[tokio::test]
    async fn who_gave_up_is_not_sought_and_holds_up_nobody() {
        let (followers, job) = (Followers::default(), running());
        let (follower, node) = (followers.enter(job.id), NodeId::new());
        drop(follower.seek(&job, &[]));
        assert!(followers.sought().is_empty());
        followers.offer(job.id, node).await;
        let seeking = follower.seek(&job, &[]);
        assert_eq!(followers.sought().len(), 1);
        let (chosen, ()) =
            tokio::join!(async { seeking.await.node }, followers.offer(job.id, node));
        assert_eq!(chosen, node);
        assert!(followers.sought().is_empty(), "it is offered once");
    }
}
