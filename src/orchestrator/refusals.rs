//! Jobs that nodes refused: whether another one may still come, and what becomes of a job where none does.
//!
//! A refused job waits in the queue for any other node that fits. Whether there is one is asked when it is
//! refused, and again and again while it waits, since nodes leave: a job whose image has a misspelt name
//! must not wait forever for a machine that was taken away long ago.

use super::{Orchestrator, live::Moment, scheduler, summary, task_log};
use crate::{
    api::{nodes::AckStatus, tasks::TaskStatus, time::Time},
    errors,
    http::server::{Shutdown, ended},
    store::{Node, Placement, StoreError},
};
use std::{sync::Arc, time::Duration};

/// A node that was not heard for this long is not waited for.
const RETURN_TIMEOUT: Duration = Duration::from_mins(10);
/// Between two looks for jobs that no node is left for.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Whether any of these nodes, be it full, drained or away for a short while, could run a job that asks this.
pub(super) fn is_any_left(
    orchestrator: &Orchestrator,
    mut nodes: Vec<Node>,
    placement: &Placement,
    now: Time,
) -> bool {
    nodes.retain(|node| may_return(node, orchestrator.liveness.heard(node).at, now));
    scheduler::any_fits(nodes, orchestrator.slots, placement)
}

/// Whether a node runs sandboxes, or may do so again soon.
fn may_return(node: &Node, heard_at: Time, now: Time) -> bool {
    let capability = &node.capability;
    now.since(heard_at) <= RETURN_TIMEOUT
        && node.ack_status != Some(AckStatus::Failed)
        && (capability.max_concurrency() > 0
            || capability.is_full_of_others()
            || capability.node.stopping_since.is_some())
}

/// Runs until `shutdown`.
pub(super) async fn run(orchestrator: Arc<Orchestrator>, shutdown: Shutdown) {
    let look = async {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if let Err(error) = pass(&orchestrator).await {
                let error = errors::chain(&error);
                tracing::warn!(error, "cannot look for jobs that every node refused");
            }
        }
    };
    tokio::select! {
        () = look => {}
        () = ended(shutdown) => {}
    }
}

/// Fails every queued job that was refused and has no node left.
async fn pass(orchestrator: &Orchestrator) -> Result<(), StoreError> {
    orchestrator.store.lines_sweep().await?;
    let waiting = orchestrator.store.lines_refused()?;
    if waiting.is_empty() {
        return Ok(());
    }
    let (nodes, now) = (orchestrator.store.node_list().await?, Time::now());
    for (line, placement) in waiting {
        if is_any_left(orchestrator, nodes.clone(), &placement, now) {
            continue;
        }
        for job in orchestrator.store.line_refusals(line).await? {
            let summary = summary::refused_by_all(&job.refusals);
            if orchestrator
                .store
                .job_fail_refused(job.id, summary, now)
                .await?
            {
                orchestrator.metrics.task_moved(TaskStatus::Failed);
                let live = orchestrator.live.task(job.task);
                live.moves_to(Moment::of(TaskStatus::Failed, job.attempt));
                task_log::moved(job.task, TaskStatus::Failed, job.attempt, None);
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
    fn node_that_cannot_run_anything_is_not_waited_for() {
        let now = Time::from_millis(1_000_000_000);
        let left = |node: &Node, silent| may_return(node, now.minus(silent), now);
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
