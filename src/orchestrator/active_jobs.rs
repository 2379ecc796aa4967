//! Registry of the jobs that this process follows: a cancel reaches the task that follows a job here, and so
//! does a node that the scheduler chose for a job whose own node is silent.
//!
//! A job is registered before it is claimed in the store. So a cancel either finds the job still queued, or finds
//! it here.

use crate::{
    api::{JobId, NodeId},
    store::{Placement, RunningJob},
};
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, future::Future, sync::Arc};
use tokio::sync::{oneshot, watch};

/// Request for another node for a job that runs.
#[derive(Clone, Debug)]
pub struct RescheduleRequest {
    /// Job to reschedule.
    pub job: JobId,
    /// Requirements of the job on its node.
    pub placement: Placement,
    /// Node that has the job.
    pub except: NodeId,
    /// Nodes that were asked before, without success.
    pub tried: Vec<NodeId>,
}

/// Node that the scheduler chose for a job. The scheduler waits until this is dropped, once the offer is stored.
pub(super) struct Assignment {
    pub(super) node: NodeId,
    _ack: oneshot::Sender<()>,
}

/// Request to cancel a job; a later one only adds to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Cancellation {
    /// None was requested.
    None,
    /// The command has its grace to end.
    Graceful,
    /// The command is killed at once.
    Forced,
}

/// Job that is followed.
struct ActiveJob {
    cancel: watch::Sender<Cancellation>,
    reschedule: Option<(RescheduleRequest, oneshot::Sender<Assignment>)>,
}

/// Jobs that are followed now.
#[derive(Clone, Default)]
pub(super) struct ActiveJobs(Arc<Mutex<HashMap<JobId, ActiveJob>>>);

/// Registration of one job, which ends when dropped.
pub(super) struct JobHandle {
    job: JobId,
    cancel: watch::Receiver<Cancellation>,
    jobs: ActiveJobs,
}

impl ActiveJobs {
    fn map(&self) -> MutexGuard<'_, HashMap<JobId, ActiveJob>> {
        self.0.lock()
    }

    /// Registers a job, in place of an earlier registration of it.
    pub(super) fn register(&self, job: JobId) -> JobHandle {
        let (sender, cancel) = watch::channel(Cancellation::None);
        let entry = ActiveJob {
            cancel: sender,
            reschedule: None,
        };
        self.map().insert(job, entry);
        JobHandle {
            job,
            cancel,
            jobs: self.clone(),
        }
    }

    /// Requests the end of a job. Returns false where the job is not followed.
    pub(super) fn cancel(&self, job: JobId, request: Cancellation) -> bool {
        let map = self.map();
        let active = map.get(&job);
        active.is_some_and(|active| {
            active.cancel.send_modify(|now| *now = request.max(*now));
            true
        })
    }

    /// Whether the end of a job was requested.
    pub(super) fn is_canceled(&self, job: JobId) -> bool {
        let map = self.map();
        let active = map.get(&job);
        active.is_some_and(|active| *active.cancel.borrow() > Cancellation::None)
    }

    /// Open requests for another node, oldest job first.
    pub(super) fn reschedule_requests(&self) -> Vec<RescheduleRequest> {
        let map = self.map();
        let requests = map.values().filter_map(|active| active.reschedule.as_ref());
        // A closed sender is of a request that was taken back: the node answers again.
        let open = requests.filter(|(_, sender)| !sender.is_closed());
        let mut open: Vec<_> = open.map(|(request, _)| request.clone()).collect();
        open.sort_by_key(|request| request.job);
        open
    }

    /// Assigns a node to a job that requested one. Returns once the offer is stored, or not wanted any more.
    pub(super) async fn resolve_request(&self, job: JobId, node: NodeId) {
        let request = self
            .map()
            .get_mut(&job)
            .and_then(|active| active.reschedule.take());
        let Some((_, sender)) = request else {
            return;
        };
        let (_ack, acknowledged) = oneshot::channel();
        // The ack is never sent, only dropped: at once where the request was taken back.
        let _ = sender.send(Assignment { node, _ack });
        let _ = acknowledged.await;
    }
}

impl JobHandle {
    /// Receiver of the request of a user to cancel the job.
    pub(super) fn cancellation(&self) -> watch::Receiver<Cancellation> {
        self.cancel.clone()
    }

    /// Whether a user canceled the job.
    pub(super) fn is_cancel_requested(&self) -> bool {
        *self.cancel.borrow() > Cancellation::None
    }

    /// Requests another node for `job`. The request is open until the returned future is dropped.
    pub(super) fn request_reschedule(
        &self,
        job: &RunningJob,
        tried: &[NodeId],
    ) -> impl Future<Output = Assignment> + use<> {
        let request = RescheduleRequest {
            job: job.id,
            placement: job.placement.clone(),
            except: job.node_id,
            tried: tried.to_vec(),
        };
        let (sender, assignment) = oneshot::channel();
        if let Some(active) = self.jobs.map().get_mut(&self.job) {
            active.reschedule = Some((request, sender));
        }
        async {
            match assignment.await {
                Ok(assignment) => assignment,
                // A later registration took the place of this one, so no node comes.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        let mut map = self.jobs.map();
        let active = map.get(&self.job);
        // Not the entry of a later registration.
        let is_own =
            active.is_some_and(|active| active.cancel.subscribe().same_channel(&self.cancel));
        if is_own {
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
        let (jobs, job) = (ActiveJobs::default(), JobId::new());
        let first = jobs.register(job);
        let second = jobs.register(job);
        drop(first);
        jobs.cancel(job, Cancellation::Forced);
        jobs.cancel(job, Cancellation::Graceful);
        assert_eq!(*second.cancellation().borrow(), Cancellation::Forced);
        assert!(jobs.is_canceled(job));
        drop(second);
        assert!(jobs.map().is_empty());
    }

    #[tokio::test]
    async fn abandoned_reschedule_request_does_not_block() {
        let (jobs, job) = (ActiveJobs::default(), running());
        let (handle, node) = (jobs.register(job.id), NodeId::new());
        drop(handle.request_reschedule(&job, &[]));
        assert!(jobs.reschedule_requests().is_empty());
        jobs.resolve_request(job.id, node).await;
        let assignment = handle.request_reschedule(&job, &[]);
        assert_eq!(jobs.reschedule_requests().len(), 1);
        let (assigned, ()) = tokio::join!(
            async { assignment.await.node },
            jobs.resolve_request(job.id, node)
        );
        assert_eq!(assigned, node);
        assert!(
            jobs.reschedule_requests().is_empty(),
            "the request is resolved once"
        );
    }
}
