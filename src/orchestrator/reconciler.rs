//! What nodes have that nobody waits for: attempts that are superseded, and results that are stored.
//!
//! A node that was away may run an attempt whose place another one has taken, or keep a result that we
//! could not have it forget. So it is looked through: at our own start, when it registers, when it is heard
//! again after it was offline, and whenever something was left there. What nobody waits for is canceled, and
//! forgotten. The attempt stands in each of these calls, so that a newer one of the same job is safe.
//!
//! An attempt that was given up may not have come there yet: a request that was sent into a network that
//! is down is delivered when it is up again. The node is told to forget that one, too, and refuses it then.
//!
//! Only what this database gave out is ended and forgotten, also of tasks that were deleted since. A job that
//! it doesn't know, and an attempt beyond the last one that it gave out, were started by another orchestrator
//! or after the backup that this database was restored from: they go on, and their results stay at the node
//! for as long as it keeps them.
//!
//! Nor are such jobs taken up from there, also not one that is queued here, as after a restore of a backup from
//! before it was given out. A number of an attempt fences only within one history: the restored database
//! may give the same number to another node before the first is heard, and no list of a node tells the two
//! apart. And a list is the word of a node alone: one that knew a job once could take it out of the queue with
//! it, past labels, drains and refusals. Where such a job is given to the node that has it, under the number
//! that it has there, the node answers with what it has; elsewhere the command runs again.
//!
//! A node that can't be reached stays dirty, and is tried again when it is heard.

use super::{AppState, node_client::NodeClient, readiness::OFFLINE_AFTER};
use crate::{
    api::{JobId, NodeId, TaskId, jobs::JobState, time::Time},
    backoff::Backoff,
    errors,
    http::{
        client::CallError,
        server::{Shutdown, shutdown_requested},
    },
    store::{JobOwnership, Node, RunningJob, StoreError},
};
use futures_util::future::join_all;
use http::StatusCode;
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Backoff before nodes are looked through again that were not found clean.
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// How long a look may take, since the others wait for it: one that has much is gone on with at the next.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// The nodes that are to be looked through.
#[derive(Default)]
pub(super) struct NodeReconciler {
    dirty: Mutex<HashMap<NodeId, DirtyNode>>,
    wake: Notify,
}

/// What is dirty to one node.
#[derive(Clone, Default)]
struct DirtyNode {
    /// How often it was generation for.
    generation: u64,
    /// Attempts that are superseded, whether the node has heard of them or not.
    superseded: Vec<(JobId, u32)>,
}

impl NodeReconciler {
    fn dirty(&self) -> MutexGuard<'_, HashMap<NodeId, DirtyNode>> {
        self.dirty.lock()
    }

    /// Something may be left at this node.
    pub(super) fn mark_dirty(&self, node: NodeId) {
        self.dirty().entry(node).or_default().generation += 1;
        self.wake.notify_one();
    }

    /// This attempt is superseded, and its node may have it or hear of it yet.
    pub(super) fn mark_superseded(&self, of: &RunningJob) {
        let mut dirty = self.dirty();
        let node = dirty.entry(of.node_id).or_default();
        node.superseded.push((of.id, of.attempt));
        // Under one lock: a look that ends in between would take it for done.
        node.generation += 1;
        drop(dirty);
        self.wake.notify_one();
    }

    /// A node was heard, which had not been `since`.
    pub(super) fn record_contact(&self, node: NodeId, since: Duration) {
        if since > OFFLINE_AFTER {
            self.mark_dirty(node);
        } else if self.dirty().contains_key(&node) {
            self.wake.notify_one();
        }
    }

    /// A node was found clean, of which this had been generation.
    fn mark_clean(&self, node: NodeId, done: &DirtyNode) {
        let mut dirty = self.dirty();
        let Some(now) = dirty.get_mut(&node) else {
            return;
        };
        if now.generation == done.generation {
            dirty.remove(&node);
        } else {
            now.superseded.drain(..done.superseded.len());
        }
    }
}

/// Runs until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = reconcile(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

async fn reconcile(state: &AppState) {
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    loop {
        let is_done = match pass(state).await {
            Ok(is_done) => is_done,
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(error, "nodes can't be looked through now");
                false
            }
        };
        let pause = async {
            if is_done {
                backoff.reset();
                std::future::pending().await
            } else {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        };
        tokio::select! {
            // A wake-up during the pass is kept.
            () = state.nodes.reconciler.wake.notified() => {}
            () = pause => {}
        }
    }
}

/// Looks through all nodes that are dirty it and there; whether all of those are clean.
async fn pass(state: &AppState) -> Result<bool, StoreError> {
    let dirty = state.nodes.reconciler.dirty().clone();
    let looks = dirty.into_iter().map(|(id, dirty)| async move {
        let Some(node) = state.store.node_get(id).await? else {
            state.nodes.reconciler.mark_clean(id, &dirty);
            return Ok(true);
        };
        if Time::now().since(state.nodes.liveness.last_contact(&node).at) > OFFLINE_AFTER {
            return Ok(true);
        }
        let cleared = tokio::time::timeout(
            NODE_TIMEOUT,
            reconcile_node(state, &node, &dirty.superseded),
        )
        .await;
        let is_clean = cleared.unwrap_or(Ok(false))?;
        if is_clean {
            state.nodes.reconciler.mark_clean(id, &dirty);
        }
        Ok(is_clean)
    });
    let looked: Result<Vec<bool>, StoreError> = join_all(looks).await.into_iter().collect();
    Ok(looked?.into_iter().all(|is_clean| is_clean))
}

/// Has a node end and forget what is superseded, and what else nobody waits for; whether nothing of that is left.
async fn reconcile_node(
    state: &AppState,
    node: &Node,
    superseded: &[(JobId, u32)],
) -> Result<bool, StoreError> {
    let Some(client) = state.node_client(node) else {
        return Ok(true);
    };
    // In this order: what a node had before we looked into the store was given to it before.
    let jobs = match client.list().await {
        Ok(jobs) => jobs,
        // A worker that keeps no list, or writes it in a way of its own, can only be told what is superseded.
        Err(error @ CallError::Malformed { .. }) => without_list(node, &error),
        Err(error) if error.is_unsupported() && client.is_alive().await => {
            without_list(node, &error)
        }
        Err(error) => {
            tracing::debug!(node = node.slug, %error, "a node can't be looked through");
            return Ok(false);
        }
    };
    let ids = jobs.iter().map(|job| job.job_id).collect();
    let standings = state.store.job_ownership(ids).await?;
    let (mut is_clean, mut left) = (true, superseded.to_vec());
    let mut unknown = 0;
    for job in &jobs {
        match disposition(standings.get(&job.job_id), node.id, job.attempt) {
            Disposition::Keep => {}
            Disposition::Foreign => unknown += 1,
            // It goes when nobody reads it any more.
            Disposition::KeepForReaders(task) if state.jobs.watches.current(task).is_some() => {
                is_clean = false
            }
            Disposition::KeepForReaders(_) | Disposition::Remove => {
                left.push((job.job_id, job.attempt))
            }
        }
    }
    if unknown > 0 {
        tracing::info!(
            node = node.slug,
            jobs = unknown,
            "node holds jobs that this database never started; left alone"
        );
    }
    for (job, attempt) in left {
        is_clean &= remove_attempt(&client, job, attempt).await;
    }
    Ok(is_clean)
}

fn without_list(node: &Node, error: &CallError) -> Vec<JobState> {
    tracing::debug!(node = node.slug, %error, "a node tells no list of its jobs");
    Vec::new()
}

/// Has a node end and forget an attempt, and refuse it where it comes later; whether that is done.
async fn remove_attempt(client: &NodeClient<'_>, job: JobId, attempt: u32) -> bool {
    let Err(kept) = client.forget(job, attempt).await else {
        return true;
    };
    match kept.status() {
        _ if kept.is_unsupported() => {
            let is_alive = client.is_alive().await;
            if is_alive && let Err(error) = client.cancel(job, attempt).await {
                // It may run yet, and was generation once to end it; whether it does can't be known.
                tracing::debug!(%job, attempt, %error, "a node can't be told to end an attempt");
            }
            is_alive
        }
        Some(StatusCode::NOT_FOUND) => true,
        Some(StatusCode::CONFLICT) => {
            tracing::info!(%job, attempt, "an attempt that nobody waits for is ended");
            // It still runs; or it is another one's turn at that node, which refuses this one by itself.
            let canceled = client.cancel(job, attempt).await;
            canceled.is_err_and(|error| error.status() == Some(StatusCode::CONFLICT))
        }
        _ => false,
    }
}

/// Whether somebody waits for an attempt at a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Disposition {
    Keep,
    Remove,
    /// This database never gave it out.
    Foreign,
    /// Its result is stored; somebody may still read what it has printed.
    KeepForReaders(TaskId),
}

fn disposition(standing: Option<&JobOwnership>, node: NodeId, attempt: u32) -> Disposition {
    let Some(standing) = standing.filter(|standing| attempt <= standing.last_attempt) else {
        return Disposition::Foreign;
    };
    let is_current = standing.current == (attempt, Some(node));
    let is_offered = standing.offered == Some((attempt, node));
    match (is_current || is_offered, standing.is_running) {
        (false, _) => Disposition::Remove,
        (true, true) => Disposition::Keep,
        (true, false) => Disposition::KeepForReaders(standing.task),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::dispatch::tests::running;

    #[test]
    fn only_relevant_files_are_awaited() {
        let [here, there] = [(); 2].map(|()| NodeId::new());
        let standing = |is_running, current, offered| JobOwnership {
            task: TaskId::new(),
            is_running,
            current,
            offered,
            last_attempt: 2,
        };
        let awaits = |standing: &JobOwnership| {
            let at = |node| [1, 2].map(|attempt| disposition(Some(standing), node, attempt));
            [at(here), at(there)]
        };
        let (yes, no) = (Disposition::Keep, Disposition::Remove);
        let runs = standing(true, (2, Some(here)), None);
        assert_eq!(awaits(&runs), [[no, yes], [no, no]]);
        let offered = standing(true, (1, Some(here)), Some((2, there)));
        assert_eq!(awaits(&offered), [[yes, no], [no, yes]]);
        let ended = standing(false, (1, Some(here)), None);
        let read = Disposition::KeepForReaders(ended.task);
        assert_eq!(awaits(&ended), [[read, no], [no, no]]);
        let queued_again = standing(false, (1, None), None);
        assert_eq!(awaits(&queued_again), [[no, no], [no, no]]);
        assert_eq!(disposition(None, here, 1), Disposition::Foreign);
        assert_eq!(disposition(Some(&runs), here, 3), Disposition::Foreign);
    }

    #[test]
    fn node_stays_dirty_until_later_reconcile() {
        let (leftovers, node) = (NodeReconciler::default(), NodeId::new());
        leftovers.record_contact(node, Duration::from_secs(1));
        assert!(leftovers.dirty().is_empty(), "it was never away");
        leftovers.record_contact(node, Duration::from_mins(1));
        let job = RunningJob {
            node_id: node,
            ..running()
        };
        leftovers.mark_superseded(&job);
        let first = leftovers.dirty()[&node].clone();
        let next = RunningJob { attempt: 2, ..job };
        leftovers.mark_superseded(&next);
        leftovers.mark_clean(node, &first);
        let second = leftovers.dirty()[&node].clone();
        assert_eq!(second.superseded, [(next.id, 2)]);
        leftovers.mark_clean(node, &second);
        assert!(leftovers.dirty().is_empty());
    }
}
