//! Who follows which running job: so that a cancel finds its way, and so does another node that is to
//! have it, its own being silent.
//!
//! A handle enters before its job is claimed in the store. So whoever asks to cancel
//! either finds the job still queued, or finds the handle here.

use crate::{
    api::{JobId, NodeId},
    store::{Placement, RunningJob},
};
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, future::Future, sync::Arc};
use tokio::sync::{oneshot, watch};

/// A running job that another node may have.
#[derive(Clone, Debug)]
pub struct RescheduleRequest {
    /// Which job.
    pub job: JobId,
    /// Requirements of the job on its node.
    pub placement: Placement,
    /// The node that has it.
    pub except: NodeId,
    /// Those that were asked before, in vain.
    pub tried: Vec<NodeId>,
}

/// The node that a job is to be offered to. Whoever chose it waits until this is dropped.
pub(super) struct Assignment {
    pub(super) node: NodeId,
    _ack: oneshot::Sender<()>,
}

struct ActiveJob {
    cancel: watch::Sender<bool>,
    reschedule: Option<(RescheduleRequest, oneshot::Sender<Assignment>)>,
}

type JobMap = HashMap<JobId, ActiveJob>;

/// The jobs that are followed now.
#[derive(Clone, Default)]
pub(super) struct ActiveJobs(Arc<Mutex<JobMap>>);

/// One who follows; leaves when dropped.
pub(super) struct JobHandle {
    job: JobId,
    cancel: watch::Receiver<bool>,
    followers: ActiveJobs,
}

impl ActiveJobs {
    fn map(&self) -> MutexGuard<'_, JobMap> {
        self.0.lock()
    }

    /// A handle of `job` enters, in the place of an earlier one.
    pub(super) fn register(&self, job: JobId) -> JobHandle {
        let (sender, cancel) = watch::channel(false);
        let entry = ActiveJob {
            cancel: sender,
            reschedule: None,
        };
        self.map().insert(job, entry);
        JobHandle {
            job,
            cancel,
            followers: self.clone(),
        }
    }

    /// Tells the handle of a job to have it ended; false where it has none.
    pub(super) fn cancel(&self, job: JobId) -> bool {
        let map = self.map();
        let handle = map.get(&job);
        handle.is_some_and(|handle| {
            handle.cancel.send_replace(true);
            true
        })
    }

    /// The jobs that another node may have now, the oldest first.
    pub(super) fn reschedule_requests(&self) -> Vec<RescheduleRequest> {
        let map = self.map();
        let sought = map.values().filter_map(|entry| entry.reschedule.as_ref());
        // A seeker that is closed has given up: the node is there again.
        let sought = sought.filter(|(_, seeker)| !seeker.is_closed());
        let mut sought: Vec<_> = sought.map(|(sought, _)| sought.clone()).collect();
        sought.sort_by_key(|sought| sought.job);
        sought
    }

    /// Has a job that is sought offered to `node`; done when that is written down, or is not to be.
    pub(super) async fn resolve_request(&self, job: JobId, node: NodeId) {
        let sought = self
            .map()
            .get_mut(&job)
            .and_then(|entry| entry.reschedule.take());
        let Some((_, seeker)) = sought else {
            return;
        };
        let (_ack, done) = oneshot::channel();
        // The other end is only ever dropped; by one that seeks no more, at once.
        let _ = seeker.send(Assignment { node, _ack });
        let _ = done.await;
    }
}

impl JobHandle {
    /// Hears of a cancel.
    pub(super) fn cancellation(&self) -> watch::Receiver<bool> {
        self.cancel.clone()
    }

    /// Whether the job is to be ended.
    pub(super) fn is_cancel_requested(&self) -> bool {
        *self.cancel.borrow()
    }

    /// Has another node sought for `job` from now on, for as long as the answer is waited for.
    pub(super) fn request_reschedule(
        &self,
        job: &RunningJob,
        tried: &[NodeId],
    ) -> impl Future<Output = Assignment> + use<> {
        let sought = RescheduleRequest {
            job: job.id,
            placement: job.placement.clone(),
            except: job.node_id,
            tried: tried.to_vec(),
        };
        let (seeker, chosen) = oneshot::channel();
        if let Some(entry) = self.followers.map().get_mut(&self.job) {
            entry.reschedule = Some((sought, seeker));
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

impl Drop for JobHandle {
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
    fn ended_attempt_keeps_next_attempts_handle() {
        let (followers, job) = (ActiveJobs::default(), JobId::new());
        let first = followers.register(job);
        let second = followers.register(job);
        drop(first);
        followers.cancel(job);
        assert!(*second.cancellation().borrow());
        drop(second);
        assert!(followers.map().is_empty());
    }

    #[tokio::test]
    async fn abandoned_reschedule_request_blocks_nobody() {
        let (followers, job) = (ActiveJobs::default(), running());
        let (handle, node) = (followers.register(job.id), NodeId::new());
        drop(handle.request_reschedule(&job, &[]));
        assert!(followers.reschedule_requests().is_empty());
        followers.resolve_request(job.id, node).await;
        let seeking = handle.request_reschedule(&job, &[]);
        assert_eq!(followers.reschedule_requests().len(), 1);
        let (chosen, ()) = tokio::join!(
            async { seeking.await.node },
            followers.resolve_request(job.id, node)
        );
        assert_eq!(chosen, node);
        assert!(
            followers.reschedule_requests().is_empty(),
            "it is offered once"
        );
    }
}
