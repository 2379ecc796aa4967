//! Refused jobs: a job that a node can't run waits for another candidate, and fails where there is none.
//!
//! A refused job waits in the queue for any other node that fits. Candidates are counted when the job is refused, and
//! every few seconds while it waits, since nodes leave: a job with a misspelt image must not wait forever for a
//! machine that was taken away. The same holds for jobs that wait for a [snapshot](sandboxes::fail_orphaned) that is gone.

use super::{
    AppState,
    sandboxes::{self, MissingSnapshots},
    scheduler, summary, task_log,
    task_watch::TaskState,
};
use crate::{
    api::{nodes::AckStatus, tasks::TaskStatus, time::Time},
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{Node, Placement, RefusedJob, StoreError},
};
use std::{sync::Arc, time::Duration};

/// Silence after which a node is not a candidate any more.
const RETURN_TIMEOUT: Duration = Duration::from_mins(10);
/// Interval between scans for jobs without a candidate.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Scans for jobs without a candidate until the next one for jobs without their snapshot, which may ask all nodes.
const SCANS_PER_SNAPSHOT_SCAN: u32 = 3;

/// Whether any of these nodes could run a job with this placement: also a node that is full, draining, or offline
/// for a short time.
pub(super) fn has_candidate(
    state: &AppState,
    mut nodes: Vec<Node>,
    placement: &Placement,
    now: Time,
) -> bool {
    nodes.retain(|node| is_expected_back(node, state.nodes.liveness.last_contact(node).at, now));
    scheduler::any_node_fits(&nodes, state.nodes.slots, placement)
}

/// Whether a node runs sandboxes, or may run them again soon.
fn is_expected_back(node: &Node, last_contact: Time, now: Time) -> bool {
    let capability = &node.capability;
    now.since(last_contact) <= RETURN_TIMEOUT
        && node.ack_status != Some(AckStatus::Failed)
        && (capability.max_concurrency() > 0
            || capability.is_full_with_other_jobs()
            || capability.node.stopping_since.is_some())
}

/// Fails refused jobs without a candidate until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    let scan = async {
        let (mut scans, mut missing) = (0_u32, MissingSnapshots::default());
        loop {
            tokio::time::sleep(SCAN_INTERVAL).await;
            scans = scans.wrapping_add(1);
            let mut swept = fail_without_candidate(&state).await;
            if swept.is_ok() && scans.is_multiple_of(SCANS_PER_SNAPSHOT_SCAN) {
                swept = sandboxes::fail_orphaned(&state, &mut missing).await;
            }
            if let Err(error) = swept {
                let error = errors::chain(&error);
                tracing::warn!(
                    error,
                    "jobs that no node can run can't be read from the database; retrying"
                );
            }
        }
    };
    tokio::select! {
        () = scan => {}
        () = shutdown_requested(shutdown) => {}
    }
}

/// Fails every queued job that was refused and has no candidate left.
async fn fail_without_candidate(state: &AppState) -> Result<(), StoreError> {
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
            fail(state, &job, &summary, now).await?;
        }
    }
    Ok(())
}

/// Fails a queued job that no node can run, with this summary; false when it is not queued any more.
pub(super) async fn fail(
    state: &AppState,
    job: &RefusedJob,
    summary: &str,
    now: Time,
) -> Result<bool, StoreError> {
    let failed = state
        .store
        .job_fail_refused(job.id, summary.to_owned(), now);
    if !failed.await? {
        return Ok(false);
    }
    let watch = state.jobs.watches.for_task(job.task);
    watch.publish(TaskState::new(TaskStatus::Failed, job.attempt));
    let span = task_log::span(job.task, job.attempt);
    span.in_scope(|| record(state, job, summary));
    Ok(true)
}

/// Counts and logs the end of a job, within the span of its task. A sandbox that stays is not among the tasks.
fn record(state: &AppState, job: &RefusedJob, summary: &str) {
    if job.is_sandbox {
        state.metrics.record_sandbox_ended();
        tracing::info!(summary, "sandbox ended");
    } else {
        state.metrics.record_transition(TaskStatus::Failed);
        task_log::transitioned(TaskStatus::Failed, None);
    }
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
        assert!(!left(&node("a", 0, 0), short), "the node runs no sandboxes");
        let failed = Node {
            ack_status: Some(AckStatus::Failed),
            ..good
        };
        assert!(!left(&failed, short));
    }
}
