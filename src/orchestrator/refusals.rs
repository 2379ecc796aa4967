//! Jobs that nodes refused: whether another one may still come, and what becomes of a job where none does.
//!
//! A refused job waits in the queue for any other node that fits. Whether there is one is asked when it is
//! refused, and again and again while it waits, since nodes leave: a job whose image has a misspelt name
//! must not wait forever for a machine that was taken away long ago.

use super::{AppState, scheduler, summary, task_log, task_watch::TaskState};
use crate::{
    api::{nodes::AckStatus, tasks::TaskStatus, time::Time},
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{Node, Placement, StoreError},
};
use std::{sync::Arc, time::Duration};

/// A node that was not heard for this long is not waited for.
const RETURN_TIMEOUT: Duration = Duration::from_mins(10);
/// Between two looks for jobs that no node is left for.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);

/// Whether any of these nodes, be it full, drained or away for a short while, could run a job that asks this.
pub(super) fn has_candidate(
    state: &AppState,
    mut nodes: Vec<Node>,
    placement: &Placement,
    now: Time,
) -> bool {
    nodes.retain(|node| is_expected_back(node, state.nodes.liveness.last_contact(node).at, now));
    scheduler::any_node_fits(nodes, state.nodes.slots, placement)
}

/// Whether a node runs sandboxes, or may do so again soon.
fn is_expected_back(node: &Node, heard_at: Time, now: Time) -> bool {
    let capability = &node.capability;
    now.since(heard_at) <= RETURN_TIMEOUT
        && node.ack_status != Some(AckStatus::Failed)
        && (capability.max_concurrency() > 0
            || capability.is_full_with_other_jobs()
            || capability.node.stopping_since.is_some())
}

/// Runs until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    let look = async {
        loop {
            tokio::time::sleep(SCAN_INTERVAL).await;
            if let Err(error) = pass(&state).await {
                let error = errors::chain(&error);
                tracing::warn!(error, "cannot look for jobs that every node refused");
            }
        }
    };
    tokio::select! {
        () = look => {}
        () = shutdown_requested(shutdown) => {}
    }
}

/// Fails every queued job that was refused and has no node left.
async fn pass(state: &AppState) -> Result<(), StoreError> {
    state.store.lane_sweep().await?;
    let waiting = state.store.lane_list_refused();
    if waiting.is_empty() {
        return Ok(());
    }
    let (nodes, now) = (state.store.node_list().await?, Time::now());
    for lane in waiting {
        if has_candidate(state, nodes.clone(), &lane.placement, now) {
            continue;
        }
        for job in state.store.lane_refusals(lane).await? {
            let summary = summary::refused_by_all(&job.refusals);
            if state.store.job_fail_refused(job.id, summary, now).await? {
                state.metrics.record_transition(TaskStatus::Failed);
                let watch = state.jobs.watches.for_task(job.task);
                watch.publish(TaskState::new(TaskStatus::Failed, job.attempt));
                task_log::span(job.task, job.attempt)
                    .in_scope(|| task_log::transitioned(TaskStatus::Failed, None));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::readiness::tests::node;

    #[test]
    fn node_that_cannot_run_is_not_awaited() {
        let now = Time::from_millis(1_000_000_000);
        let left = |node: &Node, silent| is_expected_back(node, now.minus(silent), now);
        let (short, long) = (Duration::from_mins(9), Duration::from_mins(11));
        let good = node("a", 1, 1);
        assert!(left(&good, short) && !left(&good, long));
        let draining = Node {
            draining: true,
            ..good.clone()
        };
        assert!(left(&draining, short));
        assert!(!left(&node("a", 0, 0), short), "it runs no sandboxes");
        let failed = Node {
            ack_status: Some(AckStatus::Failed),
            ..good
        };
        assert!(!left(&failed, short));
    }
}
