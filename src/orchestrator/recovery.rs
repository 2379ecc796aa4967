//! What a restart does with jobs that were under way: it follows them again.
//!
//! Our own end doesn't end a job. Its node goes on, or has kept the result; so every job that
//! the store says is running is attached to, never started a second time; where it was being offered to
//! another node, that one is asked whether it has taken it.

use super::{Orchestrator, dispatch};
use crate::store::StoreError;
use std::sync::Arc;

/// Takes up every running job.
pub(super) async fn resume(orchestrator: &Arc<Orchestrator>) -> Result<(), StoreError> {
    let jobs = orchestrator.store.job_running().await?;
    if !jobs.is_empty() {
        tracing::info!(
            count = jobs.len(),
            "jobs that were under way are followed again"
        );
    }
    for job in jobs {
        let follower = orchestrator.followers.enter(job.id);
        dispatch::start(orchestrator, job, follower, dispatch::Entry::Attach);
    }
    // What a node has beyond that is of a time that we know nothing of.
    for node in orchestrator.store.node_list().await? {
        orchestrator.leftovers.owe(node.id);
    }
    Ok(())
}
