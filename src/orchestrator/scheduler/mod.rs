//! Which job goes to which node now.
//!
//! ```text
//! woken ──▶ anything due? ──▶ a free slot? ──▶ decision::assign_queued ──▶ claims, one commit ──▶ dispatch
//!             │ no               │ no              reads the queue lane by lane
//!             ▼                  ▼
//!           asleep until something could have changed
//! ```
//!
//! Beside the queue there are jobs that run at a node which is silent: another node may have them
//! ([`RescheduleRequest`]), and they come first.
//!
//! [`decision`] decides, pure; [`decide`] gives it what it needs; [`run`] is the loop that wakes, looks and
//! carries out. Nothing polls: the loop sleeps until something could have changed (a task came, a slot
//! got free, a node spoke) or until the next job's backoff ends. However many wake it meanwhile, it looks
//! once more, and after a look it rests as long as that look took: a storm costs half a core at most.
//!
//! A look at an empty queue reads no node, one without a free slot reads no queue, and any other reads as
//! much as there are nodes, lanes of the queue ([`Queue`](crate::store::Queue)) that one of them could serve
//! and free slots, however long the lanes are and however many nobody could serve.

mod decision;
mod free_slots;
mod servable;

pub use decision::FairShare;

use super::{AppState, dispatch};
pub use super::{active_jobs::RescheduleRequest, slots::SlotLimits};
use crate::{
    api::{JobId, NodeId, time::Time},
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{Node, Placement, Store, StoreError},
};
use free_slots::{Candidate, FreeSlots};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Between two looks for room on the disk.
const SPACE_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long to wait when the store fails.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What a look came to.
#[derive(Debug, Default)]
pub struct Decision {
    /// Which queued jobs are to be given to which nodes.
    pub assigned: Vec<(JobId, NodeId)>,
    /// Which of those that are sought are to be offered to which nodes.
    pub offered: Vec<(JobId, NodeId)>,
    /// When the next backoff ends.
    pub next_at: Option<Time>,
}

/// Decides what the free slots of those nodes that `is_schedulable` jobs are given: those that are `sought`,
/// then the queue. Claims nothing yet.
pub async fn decide(
    store: &Store,
    shares: &mut FairShare,
    sought: Vec<RescheduleRequest>,
    now: Time,
    slots: SlotLimits,
    is_schedulable: impl Fn(&Node) -> bool,
) -> Result<Decision, StoreError> {
    let due = store.queue_status(now).await?;
    let mut decided = Decision {
        next_at: due.next_at,
        ..Decision::default()
    };
    if !due.has_eligible && sought.is_empty() {
        return Ok(decided);
    }
    let nodes = store.node_list().await?;
    let mut kept = std::mem::take(shares);
    let changes = store.lane_changes(&mut kept.mark);
    kept.servable.update(changes, &nodes)?;
    let lanes = kept.servable.lanes();
    let running = nodes.iter().map(|node| node.running_jobs);
    let left = slots
        .total
        .saturating_sub(running.fold(0, u32::saturating_add));
    let candidates = nodes.into_iter().filter(is_schedulable);
    let candidates = candidates.map(|node| Candidate::new(node, slots));
    let free: Vec<Candidate> = candidates.filter(Candidate::has_free_slot).collect();
    if free.is_empty() || left == 0 {
        *shares = kept;
        return Ok(decided);
    }
    let answer = store.queue_look(now, move |queue| {
        let mut slots = FreeSlots::new(free, left);
        let offered = decision::assign_reschedules(&sought, &mut slots)?;
        let assigned = decision::assign_queued(queue, &lanes, slots, &mut kept)?;
        Ok((offered, assigned, kept))
    });
    (decided.offered, decided.assigned, *shares) = answer.await?;
    Ok(decided)
}

/// Whether any of these nodes, be it away or full now, could be given a job that asks this.
pub(super) fn any_node_fits(nodes: Vec<Node>, slots: SlotLimits, placement: &Placement) -> bool {
    let candidate = |node| Candidate::new(node, slots);
    nodes
        .into_iter()
        .map(candidate)
        .any(|node| node.fits(placement))
}

/// Runs until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    let mut shares = FairShare::default();
    let mut is_low = false;
    loop {
        let began = Instant::now();
        let (next, rested) = match schedule_once(&state, &mut shares, &mut is_low).await {
            Ok((next, looked)) => (next, looked + looked.duration_since(began)),
            Err(error) => {
                tracing::error!(
                    error = errors::chain(&error),
                    "the scheduler can't read or write the store"
                );
                (Some(began + STORE_RETRY_INTERVAL), began)
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
            () = state.jobs.wake.notified() => {}
            () = pause => {}
            () = shutdown_requested(shutdown.clone()) => return,
        }
        tokio::time::sleep_until(rested).await;
    }
}

/// Whether the results of queued tasks would have room. Logged when that changes, and not at each look.
fn has_disk_space(state: &AppState, is_low: &mut bool) -> bool {
    let space = state.store.check_start_space();
    match &space {
        Err(low) if !*is_low => tracing::warn!(reason = %low, "no queued task is started"),
        Ok(()) if *is_low => tracing::info!("queued tasks are started again"),
        _ => {}
    }
    *is_low = space.is_err();
    !*is_low
}

/// Starts all that can be started. Says when to look again by itself, and when its own look was over.
async fn schedule_once(
    state: &Arc<AppState>,
    shares: &mut FairShare,
    is_low: &mut bool,
) -> Result<(Option<Instant>, Instant), StoreError> {
    if state.store.storage_fault().is_some() {
        // What may not be written to its end isn't begun; the end of the trouble wakes us.
        return Ok((None, Instant::now()));
    }
    if !has_disk_space(state, is_low) {
        let now = Instant::now();
        return Ok((Some(now + SPACE_RETRY_INTERVAL), now));
    }
    let now = Time::now();
    let is_schedulable = |node: &Node| state.is_schedulable(node, now);
    let sought = state.jobs.active.reschedule_requests();
    let decided = decide(
        &state.store,
        shares,
        sought,
        now,
        state.nodes.slots,
        is_schedulable,
    )
    .await?;
    let looked = Instant::now();
    let offers = decided.offered.into_iter();
    let offers = offers.map(|(job, node)| state.jobs.active.resolve_request(job, node));
    let claims = claim_and_dispatch(state, decided.assigned, now);
    let (_, claimed) = tokio::join!(join_all(offers), claims);
    claimed?;
    let due = decided.next_at.map(|at| looked + at.since(now));
    let next = [due, state.nodes.backoff.next_retry_at()];
    Ok((next.into_iter().flatten().min(), looked))
}

/// Claims together, so that they share one commit, and starts whatever was claimed.
async fn claim_and_dispatch(
    state: &Arc<AppState>,
    assigned: Vec<(JobId, NodeId)>,
    now: Time,
) -> Result<(), StoreError> {
    let claims = assigned.into_iter().map(|(job, node)| async move {
        let handle = state.jobs.active.register(job);
        let claimed = state.store.job_claim(job, node, now).await?;
        if let Some(job) = claimed {
            let waited = Time::now().since(job.eligible_at);
            state.metrics.record_dispatch(waited);
            dispatch::start(state, job, handle, dispatch::Start::Run);
        } else {
            // It was canceled meanwhile, and its slot is free for another.
            state.jobs.wake.notify_one();
        }
        Ok(())
    });
    // One that fails leaves the others alone.
    join_all(claims).await.into_iter().collect()
}
