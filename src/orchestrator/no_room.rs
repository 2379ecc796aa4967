//! Nodes that had no room for the files of a job.
//!
//! The room comes back, when other jobs end. So such a job waits in the queue and tries again: another node first, where
//! there is one. The node itself gets other jobs meanwhile.

use super::reason::Reason;
use crate::{
    api::{JobId, NodeId, TaskId},
    store::RunningJob,
};
use parking_lot::Mutex;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// Time for which a node comes last for a job that it had no room for: some tries.
const MEMORY: Duration = Duration::from_mins(1);

#[derive(Debug)]
struct Refused {
    task: TaskId,
    at: Instant,
    reason: Reason,
}

/// Nodes without room, by the job that they had none for.
#[derive(Default, Debug)]
pub(super) struct NoRoom(Mutex<HashMap<(JobId, NodeId), Refused>>);

impl NoRoom {
    /// Records that the node of an attempt had no room for its files.
    pub(super) fn record(&self, job: &RunningJob, reason: Reason) {
        let mut map = self.0.lock();
        map.retain(|_, refused| refused.at.elapsed() < MEMORY);
        let refused = Refused {
            task: job.task_id,
            at: Instant::now(),
            reason,
        };
        map.insert((job.id, job.node_id), refused);
    }

    /// Nodes that had no room for a job lately.
    pub(super) fn nodes(&self, job: JobId) -> Vec<NodeId> {
        let map = self.0.lock();
        let of_job = map
            .iter()
            .filter(|((other, _), refused)| *other == job && refused.at.elapsed() < MEMORY);
        of_job.map(|((_, node), _)| *node).collect()
    }

    /// Node that had no room for a task last, with its reason.
    pub(super) fn last(&self, task: TaskId) -> Option<(NodeId, Reason)> {
        let map = self.0.lock();
        let of_task = map
            .iter()
            .filter(|(_, refused)| refused.task == task && refused.at.elapsed() < MEMORY);
        let ((_, node), refused) = of_task.max_by_key(|(_, refused)| refused.at)?;
        Some((*node, refused.reason.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::dispatch::tests::running;

    #[tokio::test(start_paused = true)]
    async fn refusals_for_room_are_forgotten() {
        let (no_room, job) = (NoRoom::default(), running());
        no_room.record(&job, "full".into());
        assert_eq!(no_room.nodes(job.id), [job.node_id]);
        assert_eq!(no_room.nodes(JobId::new()), []);
        let last = no_room.last(job.task_id);
        assert_eq!(last, Some((job.node_id, "full".into())));
        tokio::time::sleep(MEMORY).await;
        assert_eq!(no_room.nodes(job.id), []);
        assert_eq!(no_room.last(job.task_id), None);
        no_room.record(&running(), "full".into());
        assert_eq!(no_room.0.lock().len(), 1);
    }
}
