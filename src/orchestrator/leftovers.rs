//! What nodes have that nobody waits for: attempts that are over, and results that are stored.
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
//! A node that can't be reached stays owed, and is tried again when it is heard.

use super::{Orchestrator, node_client::NodeClient, readiness::HEARD_WITHIN};
use crate::{
    api::{JobId, NodeId, TaskId, jobs::JobState, time::Time},
    errors,
    http::{
        client::CallError,
        server::{Shutdown, ended},
    },
    pause::Pauses,
    store::{Node, RunningJob, Standing, StoreError},
};
use futures_util::future::join_all;
use http::StatusCode;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// Pauses before nodes are looked through again that were not found clean.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How long a look may take, since the others wait for it: one that has much is gone on with at the next.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// The nodes that are to be looked through.
#[derive(Default)]
pub(super) struct Leftovers {
    owed: Mutex<HashMap<NodeId, Owed>>,
    wake: Notify,
}

/// What is owed to one node.
#[derive(Clone, Default)]
struct Owed {
    /// How often it was asked for.
    asked: u64,
    /// Attempts that are over, whether the node has heard of them or not.
    over: Vec<(JobId, u32)>,
}

impl Leftovers {
    fn owed(&self) -> MutexGuard<'_, HashMap<NodeId, Owed>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may be left at this node.
    pub(super) fn owe(&self, node: NodeId) {
        self.owed().entry(node).or_default().asked += 1;
        self.wake.notify_one();
    }

    /// This attempt is over, and its node may have it or hear of it yet.
    pub(super) fn owe_end(&self, of: &RunningJob) {
        let mut owed = self.owed();
        let node = owed.entry(of.node_id).or_default();
        node.over.push((of.id, of.attempt));
        // Under one lock: a look that ends in between would take it for done.
        node.asked += 1;
        drop(owed);
        self.wake.notify_one();
    }

    /// A node was heard, which had not been `since`.
    pub(super) fn heard(&self, node: NodeId, since: Duration) {
        if since > HEARD_WITHIN {
            self.owe(node);
        } else if self.owed().contains_key(&node) {
            self.wake.notify_one();
        }
    }

    /// A node was found clean, of which this had been asked.
    fn settle(&self, node: NodeId, done: &Owed) {
        let mut owed = self.owed();
        let Some(now) = owed.get_mut(&node) else {
            return;
        };
        if now.asked == done.asked {
            owed.remove(&node);
        } else {
            now.over.drain(..done.over.len());
        }
    }
}

/// Runs until `shutdown`.
pub(super) async fn run(orchestrator: Arc<Orchestrator>, shutdown: Shutdown) {
    tokio::select! {
        () = look_through(&orchestrator) => {}
        () = ended(shutdown) => {}
    }
}

async fn look_through(orchestrator: &Orchestrator) {
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let is_done = match pass(orchestrator).await {
            Ok(is_done) => is_done,
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(error, "nodes can't be looked through now");
                false
            }
        };
        let pause = async {
            if is_done {
                pauses.reset();
                std::future::pending().await
            } else {
                tokio::time::sleep(pauses.take()).await;
            }
        };
        tokio::select! {
            // A wake-up during the pass is kept.
            () = orchestrator.leftovers.wake.notified() => {}
            () = pause => {}
        }
    }
}

/// Looks through all nodes that are owed it and there; whether all of those are clean.
async fn pass(orchestrator: &Orchestrator) -> Result<bool, StoreError> {
    let owed = orchestrator.leftovers.owed().clone();
    let looks = owed.into_iter().map(|(id, owed)| async move {
        let Some(node) = orchestrator.store.node_get(id).await? else {
            orchestrator.leftovers.settle(id, &owed);
            return Ok(true);
        };
        if Time::now().since(orchestrator.liveness.heard(&node).at) > HEARD_WITHIN {
            return Ok(true);
        }
        let cleared =
            tokio::time::timeout(LOOK_LIMIT, clear(orchestrator, &node, &owed.over)).await;
        let is_clean = cleared.unwrap_or(Ok(false))?;
        if is_clean {
            orchestrator.leftovers.settle(id, &owed);
        }
        Ok(is_clean)
    });
    let looked: Result<Vec<bool>, StoreError> = join_all(looks).await.into_iter().collect();
    Ok(looked?.into_iter().all(|is_clean| is_clean))
}

/// Has a node end and forget what is over, and what else nobody waits for; whether nothing of that is left.
async fn clear(
    orchestrator: &Orchestrator,
    node: &Node,
    over: &[(JobId, u32)],
) -> Result<bool, StoreError> {
    let Some(client) = orchestrator.node_client(node) else {
        return Ok(true);
    };
    // In this order: what a node had before we looked into the store was given to it before.
    let jobs = match client.list().await {
        Ok(jobs) => jobs,
        // A worker that keeps no list, or writes it in a way of its own, can only be told what is over.
        Err(error @ CallError::Malformed { .. }) => no_list(node, &error),
        Err(error) if error.is_unsupported() && client.is_there().await => no_list(node, &error),
        Err(error) => {
            tracing::debug!(node = node.slug, %error, "a node can't be looked through");
            return Ok(false);
        }
    };
    let ids = jobs.iter().map(|job| job.job_id).collect();
    let standings = orchestrator.store.job_standings(ids).await?;
    let (mut is_clean, mut left) = (true, over.to_vec());
    let mut unknown = 0;
    for job in &jobs {
        match awaited(standings.get(&job.job_id), node.id, job.attempt) {
            Awaited::Yes => {}
            Awaited::Unknown => unknown += 1,
            // It goes when nobody reads it any more.
            Awaited::ToBeRead(task) if orchestrator.live.moment(task).is_some() => is_clean = false,
            Awaited::ToBeRead(_) | Awaited::No => left.push((job.job_id, job.attempt)),
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
        is_clean &= bury(&client, job, attempt).await;
    }
    Ok(is_clean)
}

fn no_list(node: &Node, error: &CallError) -> Vec<JobState> {
    tracing::debug!(node = node.slug, %error, "a node tells no list of its jobs");
    Vec::new()
}

/// Has a node end and forget an attempt, and refuse it where it comes later; whether that is done.
async fn bury(client: &NodeClient<'_>, job: JobId, attempt: u32) -> bool {
    let Err(kept) = client.forget(job, attempt).await else {
        return true;
    };
    match kept.status() {
        _ if kept.is_unsupported() => {
            let is_there = client.is_there().await;
            if is_there && let Err(error) = client.cancel(job, attempt).await {
                // It may run yet, and was asked once to end it; whether it does can't be known.
                tracing::debug!(%job, attempt, %error, "a node can't be told to end an attempt");
            }
            is_there
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
enum Awaited {
    Yes,
    No,
    /// This database never gave it out.
    Unknown,
    /// Its result is stored; somebody may still read what it has printed.
    ToBeRead(TaskId),
}

fn awaited(standing: Option<&Standing>, node: NodeId, attempt: u32) -> Awaited {
    let Some(standing) = standing.filter(|standing| attempt <= standing.last_attempt) else {
        return Awaited::Unknown;
    };
    let is_current = standing.current == (attempt, Some(node));
    let is_offered = standing.offered == Some((attempt, node));
    match (is_current || is_offered, standing.is_running) {
        (false, _) => Awaited::No,
        (true, true) => Awaited::Yes,
        (true, false) => Awaited::ToBeRead(standing.task),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::dispatch::tests::running;

    #[test]
    fn only_what_counts_or_may_be_read_is_awaited() {
        let [here, there] = [(); 2].map(|()| NodeId::new());
        let standing = |is_running, current, offered| Standing {
            task: TaskId::new(),
            is_running,
            current,
            offered,
            last_attempt: 2,
        };
        let awaits = |standing: &Standing| {
            let at = |node| [1, 2].map(|attempt| awaited(Some(standing), node, attempt));
            [at(here), at(there)]
        };
        let (yes, no) = (Awaited::Yes, Awaited::No);
        let runs = standing(true, (2, Some(here)), None);
        assert_eq!(awaits(&runs), [[no, yes], [no, no]]);
        let offered = standing(true, (1, Some(here)), Some((2, there)));
        assert_eq!(awaits(&offered), [[yes, no], [no, yes]]);
        let ended = standing(false, (1, Some(here)), None);
        let read = Awaited::ToBeRead(ended.task);
        assert_eq!(awaits(&ended), [[read, no], [no, no]]);
        let queued_again = standing(false, (1, None), None);
        assert_eq!(awaits(&queued_again), [[no, no], [no, no]]);
        assert_eq!(awaited(None, here, 1), Awaited::Unknown);
        assert_eq!(awaited(Some(&runs), here, 3), Awaited::Unknown);
    }

    #[test]
    fn a_node_is_owed_until_a_look_that_began_after_it_was_asked_for() {
        let (leftovers, node) = (Leftovers::default(), NodeId::new());
        leftovers.heard(node, Duration::from_secs(1));
        assert!(leftovers.owed().is_empty(), "it was never away");
        leftovers.heard(node, Duration::from_mins(1));
        let job = RunningJob {
            node_id: node,
            ..running()
        };
        leftovers.owe_end(&job);
        let first = leftovers.owed()[&node].clone();
        let next = RunningJob { attempt: 2, ..job };
        leftovers.owe_end(&next);
        leftovers.settle(node, &first);
        let second = leftovers.owed()[&node].clone();
        assert_eq!(second.over, [(next.id, 2)]);
        leftovers.settle(node, &second);
        assert!(leftovers.owed().is_empty());
    }
}
