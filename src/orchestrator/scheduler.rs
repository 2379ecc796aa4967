//! Which job goes to which node now.
//!
//! [`assign`] is the decision, pure; [`run`] is the loop that wakes, looks, decides and
//! carries out. Nothing polls: the loop sleeps until something could have changed (a task
//! came, a slot got free, a node spoke) or until the next job's backoff ends.

use super::{Orchestrator, dispatch};
use crate::{
    api::{JobId, NodeId, time::Time},
    errors,
    http::server::{Shutdown, ended},
    store::{QueuedJob, StoreError},
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};

/// Jobs that one look takes in.
const LOOK: u32 = 1000;
/// How long to wait when the store fails.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// A node that may be given jobs.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: NodeId,
    pub(super) labels: Vec<String>,
    pub(super) running: u32,
    pub(super) slots: u32,
}

/// Gives each job, oldest first, to the least loaded node that bears its labels and has a free slot.
pub(super) fn assign(queued: &[QueuedJob], nodes: &mut [Candidate]) -> Vec<(JobId, NodeId)> {
    let mut assigned = Vec::new();
    for job in queued {
        let fits = |node: &&mut Candidate| {
            node.running < node.slots && job.labels.iter().all(|label| node.labels.contains(label))
        };
        // The share of taken slots, compared without division.
        let load = |a: &&mut Candidate, b: &&mut Candidate| {
            (u64::from(a.running) * u64::from(b.slots))
                .cmp(&(u64::from(b.running) * u64::from(a.slots)))
        };
        if let Some(node) = nodes.iter_mut().filter(fits).min_by(load) {
            node.running += 1;
            assigned.push((job.id, node.id));
        }
    }
    assigned
}

/// Runs until `shutdown`.
pub(super) async fn run(orchestrator: Arc<Orchestrator>, shutdown: Shutdown) {
    loop {
        let next_look = match pass(&orchestrator).await {
            Ok(next_at) => next_at.map(|at| at.since(Time::now())),
            Err(error) => {
                tracing::error!(
                    error = errors::chain(&error),
                    "the scheduler can't read or write the store"
                );
                Some(STORE_PAUSE)
            }
        };
        let pause = async {
            match next_look {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A wake-up during the pass is kept, so none is lost.
            () = orchestrator.wake.notified() => {}
            () = pause => {}
            () = ended(shutdown.clone()) => return,
        }
    }
}

/// Starts all that can be started, and says when to look again by itself.
async fn pass(orchestrator: &Arc<Orchestrator>) -> Result<Option<Time>, StoreError> {
    if orchestrator.store.trouble().is_some() {
        // What may not be written to its end isn't begun; the end of the trouble wakes us.
        return Ok(None);
    }
    let now = Time::now();
    let nodes = orchestrator.store.node_list().await?;
    let mut candidates: Vec<Candidate> = nodes
        .iter()
        .filter(|node| orchestrator.may_be_given_jobs(node, now))
        .map(|node| Candidate {
            id: node.id,
            labels: node.capability.node.labels.clone().unwrap_or_default(),
            running: node.running_jobs,
            slots: node.capability.max_concurrency(),
        })
        .collect();
    let mut after = None;
    // Page by page, so that jobs which no node can take hold up nobody behind them.
    while candidates.iter().any(|node| node.running < node.slots) {
        let queued = orchestrator.store.job_queued(now, after, LOOK).await?;
        let assigned = assign(&queued, &mut candidates);
        start_all(orchestrator, assigned, now).await?;
        after = queued.last().map(|job| job.id);
        if queued.len() < LOOK as usize {
            break;
        }
    }
    let backoff_ends = orchestrator.store.job_next_at(now).await?;
    let avoidance_ends = orchestrator.avoided.next_end(now);
    Ok([backoff_ends, avoidance_ends].into_iter().flatten().min())
}

/// Claims together, so that they share one commit, and starts whatever was claimed.
async fn start_all(
    orchestrator: &Arc<Orchestrator>,
    assigned: Vec<(JobId, NodeId)>,
    now: Time,
) -> Result<(), StoreError> {
    let claims = assigned.into_iter().map(|(job, node)| async move {
        let follower = orchestrator.followers.enter(job);
        let claimed = orchestrator.store.job_claim(job, node, now).await?;
        if let Some(job) = claimed {
            let waited = Time::now().since(job.eligible_at);
            orchestrator.metrics.dispatched(waited);
            dispatch::start(orchestrator, job, follower, dispatch::Entry::Run);
        }
        Ok(())
    });
    // One that fails leaves the others alone.
    join_all(claims).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn label() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[ab]", 0..2)
    }

    proptest! {
        #[test]
        fn no_slot_is_given_twice_no_label_is_ignored_and_nothing_waits_that_could_run(
            jobs in proptest::collection::vec(label(), 0..12),
            nodes in proptest::collection::vec((label(), 0u32..4, 0u32..4), 0..5),
        ) {
            let queued: Vec<_> = jobs.into_iter().map(|labels| QueuedJob { id: JobId::new(), labels }).collect();
            let nodes: Vec<_> = nodes
                .into_iter()
                .map(|(labels, running, slots)| Candidate { id: NodeId::new(), labels, running, slots })
                .collect();
            let assigned: HashMap<_, _> = assign(&queued, &mut nodes.clone()).into_iter().collect();
            for node in &nodes {
                let given = assigned.values().filter(|id| **id == node.id).count() as u32;
                prop_assert!(given == 0 || node.running + given <= node.slots);
            }
            let fits = |job: &QueuedJob, node: &Candidate| job.labels.iter().all(|label| node.labels.contains(label));
            for job in &queued {
                match assigned.get(&job.id) {
                    Some(id) => prop_assert!(fits(job, nodes.iter().find(|node| node.id == *id).unwrap())),
                    None => for node in nodes.iter().filter(|node| fits(job, node)) {
                        let given = assigned.values().filter(|id| **id == node.id).count() as u32;
                        prop_assert!(node.running + given >= node.slots);
                    },
                }
            }
        }
    }

    #[test]
    fn the_emptier_node_comes_first() {
        let node = |running, slots| Candidate {
            id: NodeId::new(),
            labels: vec![],
            running,
            slots,
        };
        let (busy, free) = (node(1, 2), node(1, 8));
        let job = QueuedJob {
            id: JobId::new(),
            labels: vec![],
        };
        assert_eq!(
            assign(std::slice::from_ref(&job), &mut [busy, free.clone()]),
            [(job.id, free.id)]
        );
    }
}
