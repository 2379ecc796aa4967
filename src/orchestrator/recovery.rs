//! What a restart does with jobs that were under way: it follows them again.
//!
//! Our own end doesn't end a job. Its node goes on, or has kept the result; so every job that
//! the store says is running is attached to, never started a second time; where it was being offered to
//! another node, that one is asked whether it has taken it.

use super::{AppState, dispatch, node_config};
use crate::store::{Node, StoreError};
use std::sync::Arc;

/// Takes up every running job.
pub(super) async fn resume_running_jobs(state: &Arc<AppState>) -> Result<(), StoreError> {
    let jobs = state.store.job_running().await?;
    if !jobs.is_empty() {
        tracing::info!(
            count = jobs.len(),
            "jobs that were under way are followed again"
        );
    }
    for job in jobs {
        let handle = state.jobs.active.register(job.id);
        dispatch::start(state, job, handle, dispatch::Start::Attach);
    }
    // What a node has beyond that is of a time that we know nothing of.
    let nodes = state.store.node_list().await?;
    for node in &nodes {
        state.nodes.reconciler.mark_dirty(node.id);
    }
    expire_acks(state, &nodes).await
}

/// A node whose token is not the present one has to fetch and acknowledge again before it is given jobs.
/// Tokens change only while we are away, with the file that holds our key for them.
async fn expire_acks(state: &AppState, nodes: &[Node]) -> Result<(), StoreError> {
    let expired = nodes
        .iter()
        .filter(|node| node.ack_status.is_some() && !node_config::has_current_key(state, node));
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
    state.store.node_acks_expire(ids).await
}
