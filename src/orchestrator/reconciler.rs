//! Reconciler of nodes: jobs that a node has are compared with the database, and what is over is stopped and
//! removed.
//!
//! A node that was away may still run an attempt that another one has superseded, or keep a result that it could
//! not be asked to remove. So a node is *dirty*, and is reconciled, at the start of the orchestrator, when the
//! node registers, when it answers again after it was offline, and whenever an attempt there is over. A pass
//! is idempotent: it lists the jobs of the node, compares each with the database, and stops and removes the
//! attempts that are over. A node stays dirty until a pass has found nothing to do, and is reconciled again
//! when it answers. Each call names the attempt, so that a newer one of the same job is safe.
//!
//! A superseded attempt may not be in that list yet: a request that was sent into a broken network is
//! delivered when the network is back. So such attempts are kept with the dirty node; the node is asked to
//! forget them, too, and refuses them from then on.
//!
//! A result that is stored may have left its log behind, as when the orchestrator stopped while it was fetched. So the
//! log is kept before the node removes the attempt.
//!
//! Only attempts that this database gave out are stopped and removed, also those of tasks that were deleted
//! since. A job that it doesn't know, and an attempt beyond the last one that it gave out, are of another
//! orchestrator, or from after the backup that this database was restored from: they go on, and their results
//! stay at the node until its retention ends.
//!
//! Such jobs are not adopted, either, not even one that is queued here, as after a restore of a backup from before
//! its claim. An attempt number fences only within one history: the restored database may give the same number
//! to another node first, and no list of a node distinguishes the two. Besides, a node writes its list itself:
//! a node that knew a job once could take it out of the queue, past labels, drains and refusals. Where
//! such a job is claimed for the node that has it, under the number that it has there, the node answers with what it
//! has; elsewhere the command runs again.

use super::{
    AppState,
    logs::archive,
    node_client::{NodeCallError, NodeCallErrorKind, NodeClient},
    readiness::OFFLINE_AFTER,
    task_watch::LogSource,
};
use crate::{
    api::{JobId, NodeId, TaskId, jobs::JobState, time::Time},
    backoff::Backoff,
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{JobOwnership, Node, RunningJob, StoreError},
};
use futures_util::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Backoff between passes while a node that answers is still dirty.
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// Time limit of one node in a pass, since all others wait for it. The next pass continues.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// Nodes that are to be reconciled.
#[derive(Default)]
pub(super) struct NodeReconciler {
    dirty: Mutex<HashMap<NodeId, DirtyNode>>,
    wake: Notify,
}

/// Work at one node.
#[derive(Clone, Default)]
struct DirtyNode {
    /// Number of times that the node was marked.
    generation: u64,
    /// Attempts that are over, whether the node has received them or not.
    superseded: Vec<(JobId, u32)>,
}

impl NodeReconciler {
    fn dirty(&self) -> MutexGuard<'_, HashMap<NodeId, DirtyNode>> {
        self.dirty.lock()
    }

    /// Marks a node that may have attempts which are over.
    pub(super) fn mark_dirty(&self, node: NodeId) {
        self.dirty().entry(node).or_default().generation += 1;
        self.wake.notify_one();
    }

    /// Marks an attempt that is over, and that its node may have or still receive.
    pub(super) fn mark_superseded(&self, job: &RunningJob) {
        let mut dirty = self.dirty();
        let node = dirty.entry(job.node_id).or_default();
        node.superseded.push((job.id, job.attempt));
        // Under the same lock: a pass that ends in between must not count as one that did this.
        node.generation += 1;
        drop(dirty);
        self.wake.notify_one();
    }

    /// Records that a node answers again after such a silence.
    pub(super) fn record_contact(&self, node: NodeId, silence: Duration) {
        if silence > OFFLINE_AFTER {
            self.mark_dirty(node);
        } else if self.dirty().contains_key(&node) {
            self.wake.notify_one();
        }
    }

    /// Marks the work clean that a pass has done. Work that was added since stays.
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

/// Reconciles dirty nodes until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = reconcile(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

async fn reconcile(state: &Arc<AppState>) {
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    loop {
        let is_done = match reconcile_all(state).await {
            Ok(is_done) => is_done,
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(error, "nodes can't be reconciled; retrying");
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

/// One pass over all dirty nodes that answer. Returns whether all of them are clean.
async fn reconcile_all(state: &Arc<AppState>) -> Result<bool, StoreError> {
    let dirty = state.nodes.reconciler.dirty().clone();
    let passes = dirty.into_iter().map(|(id, work)| async move {
        let Some(node) = state.store.node_get(id).await? else {
            state.nodes.reconciler.mark_clean(id, &work);
            return Ok(true);
        };
        if Time::now().since(state.nodes.liveness.last_contact(&node).at) > OFFLINE_AFTER {
            return Ok(true);
        }
        let pass = reconcile_node(state, &node, &work.superseded);
        let pass = tokio::time::timeout(NODE_TIMEOUT, pass).await;
        let is_clean = pass.unwrap_or(Ok(false))?;
        if is_clean {
            state.nodes.reconciler.mark_clean(id, &work);
        }
        Ok(is_clean)
    });
    let passes: Result<Vec<bool>, StoreError> = join_all(passes).await.into_iter().collect();
    Ok(passes?.into_iter().all(|is_clean| is_clean))
}

/// Stops and removes all attempts at a node that are over. Returns whether none is left.
async fn reconcile_node(
    state: &Arc<AppState>,
    node: &Node,
    superseded: &[(JobId, u32)],
) -> Result<bool, StoreError> {
    let Some(client) = state.node_client(node) else {
        return Ok(true);
    };
    // The list comes first: all that the node has then was given to it before the database is read.
    let Some(jobs) = list_jobs(&client, node).await else {
        return Ok(false);
    };
    let ids = jobs.iter().map(|job| job.job_id).collect();
    let ownership = state.store.job_ownership(ids).await?;
    let (mut is_clean, mut over) = (true, superseded.to_vec());
    let mut foreign = 0;
    for job in &jobs {
        match disposition(ownership.get(&job.job_id), node.id, job.attempt) {
            Disposition::Keep => {}
            Disposition::Foreign => foreign += 1,
            // A task without a watch has no reader.
            Disposition::KeepForReaders(task) if state.jobs.watches.current(task).is_some() => {
                is_clean = false;
            }
            Disposition::KeepForReaders(_) if !has_log(state, node, job).await => is_clean = false,
            Disposition::KeepForReaders(_) | Disposition::Remove => {
                over.push((job.job_id, job.attempt));
            }
        }
    }
    if foreign > 0 {
        tracing::info!(
            node = node.slug,
            jobs = foreign,
            "node has jobs that this database never started; left alone"
        );
    }
    for (job, attempt) in over {
        is_clean &= remove_attempt(&client, node, job, attempt).await;
    }
    Ok(is_clean)
}

/// Whether the log of a job whose end is stored is here, or can't be; otherwise it is fetched. One that still runs was
/// given up, and has no log to keep.
async fn has_log(state: &Arc<AppState>, node: &Node, job: &JobState) -> bool {
    let source = LogSource {
        node: node.id,
        job: job.job_id,
        attempt: job.attempt,
    };
    job.status == JobState::RUNNING || archive::catch_up(state, source).await
}

/// Jobs of a node; `None` where it does not answer. A worker without a list, or with one of its own format, has none
/// here: it can only be asked to remove known attempts.
async fn list_jobs(client: &NodeClient<'_>, node: &Node) -> Option<Vec<JobState>> {
    let error = match client.list().await {
        Ok(jobs) => return Some(jobs),
        Err(error) => error,
    };
    let has_no_list = error.kind == NodeCallErrorKind::Malformed || client.lacks_call(&error).await;
    tracing::debug!(node = node.slug, %error, has_no_list, "node sent no list of its jobs");
    has_no_list.then(Vec::new)
}

/// Stops and removes an attempt at a node, which then refuses it if it arrives later. Returns whether that is done.
async fn remove_attempt(client: &NodeClient<'_>, node: &Node, job: JobId, attempt: u32) -> bool {
    let Err(error) = client.forget(job, attempt).await else {
        return true;
    };
    match error.kind {
        kind if kind.is_unsupported() => {
            let is_alive = client.is_alive().await;
            if is_alive {
                // It may run on: a worker without this call can't be asked whether it does.
                let canceled = client.cancel(job, attempt, true).await;
                log_cancel_error(node, job, attempt, canceled);
            }
            is_alive
        }
        NodeCallErrorKind::NotFound => true,
        NodeCallErrorKind::Conflict => {
            tracing::info!(node = node.slug, %job, attempt, "superseded attempt stopped");
            // It still runs; or the node has another attempt, and refuses this one by itself.
            let canceled = client.cancel(job, attempt, true).await;
            canceled.is_err_and(|error| error.kind == NodeCallErrorKind::Conflict)
        }
        _ => false,
    }
}

fn log_cancel_error(node: &Node, job: JobId, attempt: u32, canceled: Result<(), NodeCallError>) {
    if let Err(error) = canceled {
        tracing::debug!(node = node.slug, %job, attempt, %error, "node did not stop an attempt");
    }
}

/// Decision on an attempt at a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Disposition {
    /// The attempt counts or is offered: it goes on.
    Keep,
    /// The attempt is over: it is stopped and removed.
    Remove,
    /// This database never gave it out: it is left alone.
    Foreign,
    /// Its result is stored; it is removed when no reader of its output is left.
    KeepForReaders(TaskId),
}

fn disposition(ownership: Option<&JobOwnership>, node: NodeId, attempt: u32) -> Disposition {
    let Some(ownership) = ownership.filter(|known| attempt <= known.last_attempt) else {
        return Disposition::Foreign;
    };
    let is_current = ownership.current == (attempt, Some(node));
    let is_offered = ownership.offered == Some((attempt, node));
    match (is_current || is_offered, ownership.is_running) {
        (false, _) => Disposition::Remove,
        (true, true) => Disposition::Keep,
        (true, false) => Disposition::KeepForReaders(ownership.task),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::dispatch::tests::running;

    #[test]
    fn only_current_or_readable_attempts_are_kept() {
        let [here, there] = [(); 2].map(|()| NodeId::new());
        let ownership = |is_running, current, offered| JobOwnership {
            task: TaskId::new(),
            is_running,
            current,
            offered,
            last_attempt: 2,
        };
        let dispositions = |ownership: &JobOwnership| {
            let at = |node| [1, 2].map(|attempt| disposition(Some(ownership), node, attempt));
            [at(here), at(there)]
        };
        let (keep, remove) = (Disposition::Keep, Disposition::Remove);
        let runs = ownership(true, (2, Some(here)), None);
        assert_eq!(dispositions(&runs), [[remove, keep], [remove, remove]]);
        let offered = ownership(true, (1, Some(here)), Some((2, there)));
        assert_eq!(dispositions(&offered), [[keep, remove], [remove, keep]]);
        let ended = ownership(false, (1, Some(here)), None);
        let read = Disposition::KeepForReaders(ended.task);
        assert_eq!(dispositions(&ended), [[read, remove], [remove, remove]]);
        let queued_again = ownership(false, (1, None), None);
        assert_eq!(
            dispositions(&queued_again),
            [[remove, remove], [remove, remove]]
        );
        assert_eq!(disposition(None, here, 1), Disposition::Foreign);
        assert_eq!(disposition(Some(&runs), here, 3), Disposition::Foreign);
    }

    #[test]
    fn node_stays_dirty_until_later_reconcile() {
        let (reconciler, node) = (NodeReconciler::default(), NodeId::new());
        reconciler.record_contact(node, Duration::from_secs(1));
        assert!(reconciler.dirty().is_empty(), "the node was never away");
        reconciler.record_contact(node, Duration::from_mins(1));
        let job = RunningJob {
            node_id: node,
            ..running()
        };
        reconciler.mark_superseded(&job);
        let first = reconciler.dirty()[&node].clone();
        let next = RunningJob { attempt: 2, ..job };
        reconciler.mark_superseded(&next);
        reconciler.mark_clean(node, &first);
        let second = reconciler.dirty()[&node].clone();
        assert_eq!(second.superseded, [(next.id, 2)]);
        reconciler.mark_clean(node, &second);
        assert!(reconciler.dirty().is_empty());
    }
}
