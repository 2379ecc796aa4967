//! Turns of artifacts that are fetched: few at a time, and fewer of one node, so that a node that is slow or silent
//! doesn't keep the jobs of others from their end.

use crate::api::NodeId;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Artifacts of all jobs that are fetched at the same time, each with two blocks of a mebibyte.
const MAX_TURNS: usize = 8;
/// Artifacts of one node that are fetched at the same time.
const MAX_TURNS_OF_NODE: usize = 4;
/// Time after which a transfer makes way for one that waits.
pub(super) const LENGTH: Duration = Duration::from_mins(1);

/// Transfers that have their turn.
pub(in crate::orchestrator) struct Turns {
    all: Arc<Semaphore>,
    nodes: Mutex<HashMap<NodeId, Weak<Semaphore>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_TURNS)),
            nodes: Mutex::default(),
        }
    }
}

/// Turn of one transfer, which ends when dropped.
pub(super) struct Turn {
    queues: [Arc<Semaphore>; 2],
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Turns {
    /// Waits for a turn. Those that wait have theirs in the order in which they came.
    pub(super) async fn take(&self, node: NodeId) -> Turn {
        let queues = [self.of_node(node), Arc::clone(&self.all)];
        let mut permits = Vec::new();
        for queue in &queues {
            // Never closed.
            permits.extend(Arc::clone(queue).acquire_owned().await);
        }
        Turn {
            queues,
            _permits: permits,
        }
    }

    fn of_node(&self, node: NodeId) -> Arc<Semaphore> {
        let mut nodes = self.nodes.lock();
        nodes.retain(|_, queue| queue.strong_count() > 0);
        let queue = nodes.entry(node).or_default();
        queue.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Semaphore::new(MAX_TURNS_OF_NODE));
            *queue = Arc::downgrade(&new);
            new
        })
    }
}

impl Turn {
    /// Whether others may wait for a turn.
    pub(super) fn is_wanted(&self) -> bool {
        let mut queues = self.queues.iter();
        queues.any(|queue| queue.available_permits() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn node_leaves_turns_to_others() {
        let (turns, [slow, other]) = (Turns::default(), [(); 2].map(|()| NodeId::new()));
        let mut held = Vec::new();
        for _ in 1..MAX_TURNS_OF_NODE {
            held.push(turns.take(slow).await);
        }
        assert!(!held[0].is_wanted());
        held.push(turns.take(slow).await);
        assert!(held[0].is_wanted());
        let mut waiting = Box::pin(turns.take(slow));
        assert!((&mut waiting).now_or_never().is_none());
        let turn = turns.take(other).now_or_never().unwrap();
        assert!(!turn.is_wanted());
        held.pop();
        assert!((&mut waiting).now_or_never().is_some());
    }
}
