//! What a restart does with jobs that were under way: it follows them again.
//!
//! Our own end doesn't end a job. Its node goes on, or has kept the result; so every job that
//! the store says is running is attached to, never started a second time; where it was being offered to
//! another node, that one is asked whether it has taken it.

use super::{Orchestrator, control_plane, dispatch};
use crate::store::{Node, StoreError};
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
    let nodes = orchestrator.store.node_list().await?;
    for node in &nodes {
        orchestrator.leftovers.owe(node.id);
    }
    expire_acks(orchestrator, &nodes).await
}

/// A node whose token is not the present one has to fetch and acknowledge again before it is given jobs.
/// Tokens change only while we are away, with the file that holds our key for them.
async fn expire_acks(orchestrator: &Orchestrator, nodes: &[Node]) -> Result<(), StoreError> {
    let expired = nodes.iter().filter(|node| {
        node.ack_status.is_some() && !control_plane::has_present_key(orchestrator, node)
    });
    let mut ids = Vec::new();
    for node in expired {
        tracing::warn!(
            node = node.slug,
            "our key for Worker API tokens has changed; restart this node to have it fetch its new token"
        );
        ids.push(node.id);
    }
    if ids.is_empty() {
        return Ok(());
    }
    orchestrator.store.node_acks_expire(ids).await
}
