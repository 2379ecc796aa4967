//! Recovery at the start: the jobs that were running are followed again.
//!
//! The end of the orchestrator does not end a job: its node goes on, or keeps the result. So every job
//! that is running by the database is attached to, never sent a second time. Where it was being offered to another
//! node, that node is asked about the offer.

use super::{AppState, dispatch, node_config};
use crate::store::{Node, StoreError};
use std::sync::Arc;

/// Follows every running job again, and has every node reconciled.
pub(super) async fn resume_running_jobs(state: &Arc<AppState>) -> Result<(), StoreError> {
    let jobs = state.store.job_running().await?;
    if !jobs.is_empty() {
        tracing::info!(jobs = jobs.len(), "resumed following running jobs");
    }
    for job in jobs {
        let handle = state.jobs.active.register(job.id);
        dispatch::start(state, job, handle, dispatch::Start::Attach);
    }
    // Nodes may have more, from before the restart.
    let nodes = state.store.node_list().await?;
    for node in &nodes {
        state.nodes.reconciler.mark_dirty(node.id);
    }
    expire_acks(state, &nodes).await
}

/// Expires the acknowledgements of nodes with another token than the present one: such a node has to fetch its
/// configuration again before it gets jobs. Tokens change only between two starts, with the key file.
async fn expire_acks(state: &AppState, nodes: &[Node]) -> Result<(), StoreError> {
    let expired = nodes
        .iter()
        .filter(|node| node.ack_status.is_some() && !node_config::has_current_key(state, node));
    let mut ids = Vec::new();
    for node in expired {
        tracing::warn!(
            node = node.slug,
            "key for Worker API tokens has changed; restart this node to have it fetch its new token"
        );
        ids.push(node.id);
    }
    if ids.is_empty() {
        return Ok(());
    }
    state.store.node_acks_expire(ids).await
}
