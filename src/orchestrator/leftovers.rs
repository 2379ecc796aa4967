//! What nodes have that nobody waits for: attempts that are over, and results that are stored.
//!
//! A node that was away may run an attempt whose place another one has taken, or keep a result that we
//! could not have it forget. So it is looked through: at our own start, when it registers, when it is heard
//! again after it was offline, and whenever something was left there. What nobody waits for is canceled, and
//! forgotten. The attempt stands in each of these calls, so that a newer one of the same job is safe.
//!
//! A node that can't be reached stays owed, and is tried again when it is heard.

use super::{Orchestrator, readiness::HEARD_WITHIN};
use crate::{
    api::{NodeId, TaskId, jobs::JobState, time::Time},
    errors,
    http::{
        client::CallError,
        server::{Shutdown, ended},
    },
    pause::Pauses,
    store::{Node, Standing, StoreError},
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

/// The nodes that are to be looked through, each with how often that was asked for.
#[derive(Default)]
pub(super) struct Leftovers {
    owed: Mutex<HashMap<NodeId, u64>>,
    wake: Notify,
}

impl Leftovers {
    fn owed(&self) -> MutexGuard<'_, HashMap<NodeId, u64>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may be left at this node.
    pub(super) fn owe(&self, node: NodeId) {
        *self.owed().entry(node).or_default() += 1;
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

    /// A node was found clean, which had been asked for so often.
    fn settle(&self, node: NodeId, asked: u64) {
        let mut owed = self.owed();
        if owed.get(&node) == Some(&asked) {
            owed.remove(&node);
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
    let looks = owed.into_iter().map(|(id, asked)| async move {
        let Some(node) = orchestrator.store.node_get(id).await? else {
            orchestrator.leftovers.settle(id, asked);
            return Ok(true);
        };
        if Time::now().since(node.last_seen_at) > HEARD_WITHIN {
            return Ok(true);
        }
        let cleared = tokio::time::timeout(LOOK_LIMIT, clear(orchestrator, &node)).await;
        let is_clean = cleared.unwrap_or(Ok(false))?;
        if is_clean {
            orchestrator.leftovers.settle(id, asked);
        }
        Ok(is_clean)
    });
    let looked: Result<Vec<bool>, StoreError> = join_all(looks).await.into_iter().collect();
    Ok(looked?.into_iter().all(|is_clean| is_clean))
}

/// Has a node end and forget what nobody waits for; whether nothing of that is left.
async fn clear(orchestrator: &Orchestrator, node: &Node) -> Result<bool, StoreError> {
    let Some(client) = orchestrator.node_client(node) else {
        return Ok(true);
    };
    // In this order: what a node had before we looked into the store was given to it before.
    let jobs = match client.list().await {
        Ok(jobs) => jobs,
        Err(error) => {
            tracing::debug!(node = node.slug, %error, "a node can't be looked through");
            return Ok(false);
        }
    };
    let ids = jobs.iter().map(|job| job.job_id).collect();
    let standings = orchestrator.store.job_standings(ids).await?;
    let is_read = |task| orchestrator.live.moment(task).is_some();
    let mut is_clean = true;
    for JobState {
        job_id,
        attempt,
        status,
        ..
    } in jobs
    {
        if is_awaited(standings.get(&job_id), node.id, attempt, is_read) {
            continue;
        }
        let runs = status == JobState::RUNNING;
        let done = if runs {
            tracing::info!(node = node.slug, job = %job_id, attempt, "an attempt that nobody waits for is ended");
            client.cancel(job_id, attempt).await
        } else {
            client.forget(job_id, attempt).await
        };
        is_clean &= !runs && is_settled(&done);
    }
    Ok(is_clean)
}

/// Whether the node has nothing more of that attempt: it did as it was told, or does not know the job.
fn is_settled(done: &Result<(), CallError>) -> bool {
    let status = done.as_ref().err().map(CallError::status);
    status.is_none_or(|status| matches!(status, Some(StatusCode::NOT_FOUND)))
}

/// Whether somebody waits for this attempt at this node, or reads what it has printed.
fn is_awaited(
    standing: Option<&Standing>,
    node: NodeId,
    attempt: u32,
    is_read: impl Fn(TaskId) -> bool,
) -> bool {
    let Some(standing) = standing else {
        return false;
    };
    let is_current = standing.current == (attempt, Some(node));
    let is_offered = standing.offered == Some((attempt, node));
    let has_ended = is_current && !standing.is_running;
    if has_ended {
        return is_read(standing.task);
    }
    is_current || is_offered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_counts_or_is_read_is_awaited() {
        let [here, there] = [(); 2].map(|()| NodeId::new());
        let standing = |is_running, current, offered| Standing {
            task: TaskId::new(),
            is_running,
            current,
            offered,
        };
        let awaited = |standing: &Standing, node, attempt| {
            is_awaited(Some(standing), node, attempt, |_| false)
        };
        let runs = standing(true, (2, Some(here)), None);
        assert!(awaited(&runs, here, 2));
        assert!(!awaited(&runs, here, 1) && !awaited(&runs, there, 2));
        let offered = standing(true, (1, Some(here)), Some((2, there)));
        assert!(awaited(&offered, here, 1) && awaited(&offered, there, 2));
        assert!(!awaited(&offered, there, 1) && !awaited(&offered, here, 2));
        let ended = standing(false, (1, Some(here)), None);
        assert!(!awaited(&ended, here, 1));
        assert!(is_awaited(Some(&ended), here, 1, |task| task == ended.task));
        assert!(!is_awaited(Some(&ended), there, 1, |_| true));
        assert!(
            !awaited(&standing(false, (1, None), None), here, 1),
            "it is queued again"
        );
        assert!(!is_awaited(None, here, 1, |_| true));
    }

    #[test]
    fn a_node_is_owed_until_a_look_that_began_after_it_was_asked_for() {
        let (leftovers, node) = (Leftovers::default(), NodeId::new());
        leftovers.heard(node, Duration::from_secs(1));
        assert!(leftovers.owed().is_empty(), "it was never away");
        leftovers.heard(node, Duration::from_mins(1));
        let asked = leftovers.owed()[&node];
        leftovers.owe(node);
        leftovers.settle(node, asked);
        assert!(leftovers.owed().contains_key(&node));
        leftovers.settle(node, asked + 1);
        assert!(leftovers.owed().is_empty());
    }
}
