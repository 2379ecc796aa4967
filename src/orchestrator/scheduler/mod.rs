//! The scheduler: assigns queued jobs to nodes.
//!
//! ```text
//! woken ──▶ any job eligible? ──▶ any free slot? ──▶ decision ──▶ claims, one commit ──▶ dispatch
//!             │ no                  │ no              reads the heads of lanes
//!             ▼                     ▼
//!           asleep until something could have changed
//! ```
//!
//! A job that needs several graphics processors of one node doesn't wait for ever: after a while those of a node are
//! held for it ([`hold`]).
//!
//! Jobs that run on a silent node may move to another one ([`RescheduleRequest`]); they come before the queue.
//!
//! [`decision`] is pure; [`decide`] reads its data; [`run`] is the loop that carries decisions out. Nothing polls:
//! the loop sleeps until something could have changed (a task was created, a slot became free, a node called)
//! or until the next backoff ends. Any number of wake-ups during a pass cause one more pass, and in a storm the loop
//! rests for as long as its decisions take ([`pace`]).
//!
//! Scheduling cost does not depend on queue length. A decision about an empty queue reads no node, and one
//! without a free slot reads no queue. Any other looks at the nodes, which are in memory, and reads as much as there are
//! lanes that one of them could serve ([`servable`]), and free slots; where a job asks for graphics processors, also as there are running jobs.

mod decision;
mod fair_share;
mod fit;
mod free_slots;
mod hold;
mod pace;
mod preference;
mod servable;

use super::{AppState, dispatch, no_room::NoRoom};
pub use super::{active_jobs::RescheduleRequest, slots::SlotLimits};
use crate::{
    api::{JobId, NodeId, UserId, time::Time},
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{JobDetails, LaneCursor, MAX_CLAIMS, Node, Placement, Store, StoreError},
};
use decision::{LANE_READ_LIMIT, Round, Step, first_reads};
use fair_share::{FairShare, ImageNodes};
use free_slots::{Candidate, FreeSlots};
use futures_util::future::join_all;
use hold::Holds;
use pace::Pace;
use preference::Preference;
use servable::ServableLanes;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Pause before the next check of a disk without space.
const SPACE_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a failure of the store.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// State that one decision leaves for the next.
#[derive(Debug, Default)]
pub struct SchedulerState {
    cursor: LaneCursor,
    servable: ServableLanes,
    shares: FairShare,
    images: ImageNodes,
    holds: Holds,
    no_room: Arc<NoRoom>,
}

/// Result of one decision.
#[derive(Debug, Default)]
pub struct Decision {
    /// Queued jobs, and the nodes that they are assigned to.
    pub assigned: Vec<(JobId, NodeId)>,
    /// Jobs of reschedule requests, and the nodes that they are offered to.
    pub offered: Vec<(JobId, NodeId)>,
    /// End of the next backoff.
    pub next_at: Option<Time>,
}

/// Availability of a node for jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Jobs may be assigned.
    Ready,
    /// No job may be assigned for some seconds, since the node refused one.
    BackingOff,
    /// No job may be assigned.
    Unavailable,
}

/// Decides which jobs get the free slots of the nodes that are ready: those of `requests`, then those of
/// the queue. Claims nothing yet.
pub async fn decide(
    store: &Store,
    state: &mut SchedulerState,
    requests: Vec<RescheduleRequest>,
    now: Time,
    limits: SlotLimits,
    availability: impl Fn(&Node) -> Availability,
) -> Result<Decision, StoreError> {
    let status = store.queue_status(now).await?;
    let mut decided = Decision {
        next_at: status.next_at,
        ..Decision::default()
    };
    if !status.has_eligible && requests.is_empty() {
        return Ok(decided);
    }
    let nodes = store.node_snapshot().await?;
    let changes = store.lane_changes(&mut state.cursor);
    state.servable.update(changes, &nodes);
    let running = nodes.iter().map(|node| node.running_jobs);
    let running = running.fold(0, u32::saturating_add);
    let has_free_slot = |node: &Node| {
        let offered = node.capability.max_concurrency();
        node.running_jobs < limits.usable(offered)
    };
    if !nodes.iter().any(|node| has_free_slot(node)) {
        return Ok(decided);
    }
    let mut is_needed = |is_of_kind: fn(&Placement) -> bool| {
        let mut requested = requests.iter().map(|request| &request.placement);
        requested.any(is_of_kind) || state.servable.any(is_of_kind)
    };
    let needs_gpus = is_needed(|placement| placement.gpus().is_some());
    // Nodes without a free slot count only for jobs with devices or a long time limit, which may wait for one of them.
    let needs_all = needs_gpus || is_needed(|placement| placement.time_limit().is_some());
    let nodes = nodes.iter().map(|node| &**node);
    let nodes = nodes.filter(|node| needs_all || has_free_slot(node));
    let candidates = nodes.filter_map(|node| match availability(node) {
        Availability::Ready => Some(Candidate::new(node, limits)),
        Availability::BackingOff => Some(Candidate::new(node, limits).backing_off()),
        Availability::Unavailable => None,
    });
    let mut candidates: Vec<_> = candidates.collect();
    if !candidates.iter().any(Candidate::has_free_slot) {
        return Ok(decided);
    }
    if needs_gpus {
        candidates = with_gpus(store, candidates).await?;
    }
    let mut slots = FreeSlots::new(candidates, limits.total.saturating_sub(running));
    if slots.left() > 0 {
        decided.offered = decision::assign_reschedules(&requests, &mut slots);
        decided.assigned = assign_queued(store, state, slots, now).await?;
    }
    Ok(decided)
}

/// The same candidates with their devices, which are read only where a job asks for some.
async fn with_gpus(
    store: &Store,
    candidates: Vec<Candidate>,
) -> Result<Vec<Candidate>, StoreError> {
    let running = store.gpu_requests().await?;
    let with_gpus = |node: Candidate| {
        let running = running.get(&node.id).map_or(&[][..], Vec::as_slice);
        node.with_gpus(running)
    };
    Ok(candidates.into_iter().map(with_gpus).collect())
}

/// Assigns queued jobs to the free slots, with the data that the [`Round`] asks for.
async fn assign_queued(
    store: &Store,
    state: &mut SchedulerState,
    mut slots: FreeSlots,
    now: Time,
) -> Result<Vec<(JobId, NodeId)>, StoreError> {
    let held = assign_held(store, state, &mut slots, now).await?;
    let reads = first_reads(&state.servable.lanes(), &mut slots, LANE_READ_LIMIT);
    if reads.is_empty() {
        return Ok(held.into_iter().map(|(_, assigned)| assigned).collect());
    }
    let mut heads = store.lane_heads(reads.clone(), now).await?;
    if let Some((user, _)) = held {
        *heads.running.entry(user).or_default() += 1;
    }
    let history = (&mut state.shares, &mut state.images);
    let mut round = Round::new(reads, heads, slots, history, LANE_READ_LIMIT);
    if let Some((_, (job, node))) = held {
        round.add_assigned(job, node);
    }
    loop {
        match round.step() {
            Step::ReadJobs(reads) => round.add_jobs(store.lane_jobs(reads, now).await?),
            Step::ReadDetails(jobs) => {
                round.add_details(job_details(store, &state.no_room, jobs).await?);
            }
            Step::Done => return Ok(round.into_assigned()),
        }
    }
}

/// Details of jobs, with the nodes that had no room for them lately.
async fn job_details(
    store: &Store,
    no_room: &NoRoom,
    jobs: Vec<JobId>,
) -> Result<Vec<(JobId, Option<JobDetails>)>, StoreError> {
    let mut details = store.job_details(jobs).await?;
    for (job, details) in &mut details {
        if let Some(details) = details {
            details.nodes_without_room = no_room.nodes(*job);
        }
    }
    Ok(details)
}

/// Assigns the job for which devices were held, where they suffice now, and holds those of the next one.
async fn assign_held(
    store: &Store,
    state: &mut SchedulerState,
    slots: &mut FreeSlots,
    now: Time,
) -> Result<Option<(UserId, (JobId, NodeId))>, StoreError> {
    let reads = hold::reads(&state.servable.lanes());
    if reads.is_empty() {
        return Ok(None);
    }
    let jobs = store.lane_jobs(reads.clone(), now).await?;
    let heads = reads.into_iter().zip(jobs);
    let heads = heads.filter_map(|(read, jobs)| Some((read.lane, *jobs.first()?)));
    let mut heads: Vec<hold::LaneHead> = heads.collect();
    let mut assigned = None;
    if let Some((lane, job)) = state.holds.due(&heads, slots) {
        heads.retain(|(head, _)| *head != lane);
        let details = job_details(store, &state.no_room, vec![job.id]).await?;
        if let Some((_, Some(details))) = details.into_iter().next() {
            let images = state.images.get(&details.image);
            let preference = Preference::new(&details, images);
            if let Some(node) = slots.take(&lane.placement, &preference, &[]) {
                state.holds.end(lane.user);
                state.shares.record_turn(lane.user);
                state.images.record(details.image, node);
                assigned = Some((lane.user, (job.id, node)));
            }
        }
    }
    state.holds.apply(&heads, slots, now);
    Ok(assigned)
}

/// Whether any of these nodes, also an unreachable or a full one, fits a placement.
pub(super) fn any_node_fits(nodes: &[Node], limits: SlotLimits, placement: &Placement) -> bool {
    let mut candidates = nodes.iter().map(|node| Candidate::new(node, limits));
    candidates.any(|node| node.fits(placement))
}

/// Runs until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    let mut scheduler = SchedulerState {
        no_room: Arc::clone(&state.jobs.no_room),
        ..SchedulerState::default()
    };
    let (mut is_low, mut pace) = (false, Pace::new(Instant::now()));
    loop {
        let began = Instant::now();
        let (next, rested) = match schedule_once(&state, &mut scheduler, &mut is_low).await {
            Ok((next, decided)) => (next, pace.record(began, decided)),
            Err(error) => {
                tracing::error!(
                    error = errors::chain(&error),
                    "scheduler failed to use the store; retrying"
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
            // A wake-up during the pass is kept.
            () = state.jobs.wake.notified() => {}
            () = pause => {}
            () = shutdown_requested(shutdown.clone()) => return,
        }
        tokio::time::sleep_until(rested).await;
    }
}

/// Whether the disk has space for the results of queued tasks. Only changes are logged.
fn has_disk_space(state: &AppState, is_low: &mut bool) -> bool {
    let space = state.store.check_start_space();
    match &space {
        Err(low) if !*is_low => {
            tracing::warn!(reason = %low, "disk of the database is low on space; queued tasks wait")
        }
        Ok(()) if *is_low => {
            tracing::info!("disk of the database has space again; starting queued tasks")
        }
        _ => {}
    }
    *is_low = space.is_err();
    !*is_low
}

/// Starts every job that can be started; the time of the next pass, and the end of this decision.
async fn schedule_once(
    state: &Arc<AppState>,
    scheduler: &mut SchedulerState,
    is_low: &mut bool,
) -> Result<(Option<Instant>, Instant), StoreError> {
    if state.store.storage_fault().is_some() {
        // No work begins whose end can't be stored. The end of the fault wakes the scheduler.
        return Ok((None, Instant::now()));
    }
    if !has_disk_space(state, is_low) {
        let now = Instant::now();
        return Ok((Some(now + SPACE_RETRY_INTERVAL), now));
    }
    let now = Time::now();
    let availability = |node: &Node| state.availability(node, now);
    let requests = state.jobs.active.reschedule_requests();
    let decided = decide(
        &state.store,
        scheduler,
        requests,
        now,
        state.nodes.slots,
        availability,
    )
    .await?;
    let decided_at = Instant::now();
    let offers = decided.offered.into_iter();
    let offers = offers.map(|(job, node)| state.jobs.active.resolve_request(job, node));
    let claims = claim_and_dispatch(state, decided.assigned, now);
    let (_, claimed) = tokio::join!(join_all(offers), claims);
    claimed?;
    let due = decided.next_at.map(|at| decided_at + at.since(now));
    let next = [due, state.nodes.backoff.next_retry_at()];
    Ok((next.into_iter().flatten().min(), decided_at))
}

/// Claims jobs, many in one commit, and dispatches those of a commit as soon as they are claimed.
async fn claim_and_dispatch(
    state: &Arc<AppState>,
    assigned: Vec<(JobId, NodeId)>,
    now: Time,
) -> Result<(), StoreError> {
    let mut outcome = Ok(());
    for group in assigned.chunks(MAX_CLAIMS) {
        let register = |(job, _): &(JobId, NodeId)| state.jobs.active.register(*job);
        let handles: Vec<_> = group.iter().map(register).collect();
        let claimed = state.store.job_claim(group, now).await;
        for (claimed, handle) in claimed.into_iter().zip(handles) {
            match claimed {
                Ok(Some(job)) => {
                    let waited = Time::now().since(job.eligible_at);
                    state.metrics.record_dispatch(waited);
                    dispatch::start(state, job, handle, dispatch::Start::Run);
                }
                // The job was canceled meanwhile, and its slot is free for another.
                Ok(None) => state.jobs.wake.notify_one(),
                Err(error) => outcome = Err(error),
            }
        }
    }
    outcome
}
