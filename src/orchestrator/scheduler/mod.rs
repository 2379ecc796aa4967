//! Which job goes to which node now.
//!
//! ```text
//! woken ──▶ anything due? ──▶ a free slot? ──▶ decision::assign ──▶ claims, one commit ──▶ dispatch
//!             │ no               │ no              reads the queue line by line
//!             ▼                  ▼
//!           asleep until something could have changed
//! ```
//!
//! Beside the queue there are jobs that run at a node which is silent: another node may have them
//! ([`Sought`]), and they come first.
//!
//! [`decision`] decides, pure; [`look`] gives it what it needs; [`run`] is the loop that wakes, looks and
//! carries out. Nothing polls: the loop sleeps until something could have changed (a task came, a slot
//! got free, a node spoke) or until the next job's backoff ends. However many wake it meanwhile, it looks
//! once more, and after a look it rests as long as that look took: a storm costs half a core at most.
//!
//! A look at an empty queue reads no node, one without a free slot reads no queue, and any other reads as
//! much as there are nodes, lines of the queue ([`Queue`](crate::store::Queue)) that one of them could serve
//! and free slots, however long the lines are and however many nobody could serve.

mod decision;
mod places;
mod servable;

pub use decision::Memory;

use super::{Orchestrator, dispatch};
pub use super::{followers::Sought, slots::Slots};
use crate::{
    api::{JobId, NodeId, time::Time},
    errors,
    http::server::{Shutdown, ended},
    store::{Node, Placement, Store, StoreError},
};
use futures_util::future::join_all;
use places::{Candidate, Places};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Between two looks for room on the disk.
const SPACE_PAUSE: Duration = Duration::from_secs(5);
/// How long to wait when the store fails.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What a look came to.
#[derive(Debug, Default)]
pub struct Look {
    /// Which queued jobs are to be given to which nodes.
    pub assigned: Vec<(JobId, NodeId)>,
    /// Which of those that are sought are to be offered to which nodes.
    pub offered: Vec<(JobId, NodeId)>,
    /// When the next backoff ends.
    pub next_at: Option<Time>,
}

/// Decides what the free slots of those nodes that `may_be_given` jobs are given: those that are `sought`,
/// then the queue. Claims nothing yet.
pub async fn look(
    store: &Store,
    memory: &mut Memory,
    sought: Vec<Sought>,
    now: Time,
    slots: Slots,
    may_be_given: impl Fn(&Node) -> bool,
) -> Result<Look, StoreError> {
    let due = store.queue_due(now).await?;
    let mut look = Look {
        next_at: due.next_at,
        ..Look::default()
    };
    if !due.now && sought.is_empty() {
        return Ok(look);
    }
    let nodes = store.node_list().await?;
    let mut kept = std::mem::take(memory);
    let changes = store.line_changes(&mut kept.mark);
    kept.servable.update(changes, &nodes)?;
    let lines = kept.servable.lines();
    let running = nodes.iter().map(|node| node.running_jobs);
    let left = slots
        .in_all
        .saturating_sub(running.fold(0, u32::saturating_add));
    let candidates = nodes.into_iter().filter(may_be_given);
    let candidates = candidates.map(|node| Candidate::new(node, slots));
    let free: Vec<Candidate> = candidates.filter(Candidate::has_room).collect();
    if free.is_empty() || left == 0 {
        *memory = kept;
        return Ok(look);
    }
    let decided = store.queue_look(now, move |queue| {
        let mut places = Places::new(free, left);
        let offered = decision::place(&sought, &mut places)?;
        let assigned = decision::assign(queue, &lines, places, &mut kept)?;
        Ok((offered, assigned, kept))
    });
    (look.offered, look.assigned, *memory) = decided.await?;
    Ok(look)
}

/// Whether any of these nodes, be it away or full now, could be given a job that asks this.
pub(super) fn any_fits(nodes: Vec<Node>, slots: Slots, placement: &Placement) -> bool {
    let candidate = |node| Candidate::new(node, slots);
    nodes
        .into_iter()
        .map(candidate)
        .any(|node| node.fits(placement))
}

/// Runs until `shutdown`.
pub(super) async fn run(orchestrator: Arc<Orchestrator>, shutdown: Shutdown) {
    let mut memory = Memory::default();
    let mut is_low = false;
    loop {
        let began = Instant::now();
        let (next, rested) = match pass(&orchestrator, &mut memory, &mut is_low).await {
            Ok((next, looked)) => (next, looked + looked.duration_since(began)),
            Err(error) => {
                tracing::error!(
                    error = errors::chain(&error),
                    "the scheduler can't read or write the store"
                );
                (Some(began + STORE_PAUSE), began)
            }
        };
        let pause = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A wake-up during the pass is kept, so none is lost.
            () = orchestrator.wake.notified() => {}
            () = pause => {}
            () = ended(shutdown.clone()) => return,
        }
        tokio::time::sleep_until(rested).await;
    }
}

/// Whether the results of queued tasks would have room. Logged when that changes, and not at each look.
fn has_room(orchestrator: &Orchestrator, is_low: &mut bool) -> bool {
    let space = orchestrator.store.start_space();
    match &space {
        Err(low) if !*is_low => tracing::warn!(reason = %low, "no queued task is started"),
        Ok(()) if *is_low => tracing::info!("queued tasks are started again"),
        _ => {}
    }
    *is_low = space.is_err();
    !*is_low
}

/// Starts all that can be started. Says when to look again by itself, and when its own look was over.
async fn pass(
    orchestrator: &Arc<Orchestrator>,
    memory: &mut Memory,
    is_low: &mut bool,
) -> Result<(Option<Instant>, Instant), StoreError> {
    if orchestrator.store.trouble().is_some() {
        // What may not be written to its end isn't begun; the end of the trouble wakes us.
        return Ok((None, Instant::now()));
    }
    if !has_room(orchestrator, is_low) {
        let now = Instant::now();
        return Ok((Some(now + SPACE_PAUSE), now));
    }
    let now = Time::now();
    let may_be_given = |node: &Node| orchestrator.may_be_given_jobs(node, now);
    let sought = orchestrator.followers.sought();
    let look = look(
        &orchestrator.store,
        memory,
        sought,
        now,
        orchestrator.slots,
        may_be_given,
    )
    .await?;
    let looked = Instant::now();
    let offers = look.offered.into_iter();
    let offers = offers.map(|(job, node)| orchestrator.followers.offer(job, node));
    let claims = start_all(orchestrator, look.assigned, now);
    let (_, claimed) = tokio::join!(join_all(offers), claims);
    claimed?;
    let due = look.next_at.map(|at| looked + at.since(now));
    let next = [due, orchestrator.avoided.next_end()];
    Ok((next.into_iter().flatten().min(), looked))
}

/// Claims together, so that they share one commit, and starts whatever was claimed.
async fn start_all(
    orchestrator: &Arc<Orchestrator>,
    assigned: Vec<(JobId, NodeId)>,
    now: Time,
) -> Result<(), StoreError> {
    let claims = assigned.into_iter().map(|(job, node)| async move {
        let follower = orchestrator.followers.enter(job);
        let claimed = orchestrator.store.job_claim(job, node, now).await?;
        if let Some(job) = claimed {
            let waited = Time::now().since(job.eligible_at);
            orchestrator.metrics.dispatched(waited);
            dispatch::start(orchestrator, job, follower, dispatch::Entry::Run);
        } else {
            // It was canceled meanwhile, and its slot is free for another.
            orchestrator.wake.notify_one();
        }
        Ok(())
    });
    // One that fails leaves the others alone.
    join_all(claims).await.into_iter().collect()
}
