//! The decision which job gets which slot. Pure: it takes data, asks for more, and returns data.
//!
//! Each slot goes to the user with the fewest running jobs; of equal ones, to the user whose last turn is the
//! longest ago, and at the beginning to the one that has waited longest. The job is the first of this user, by
//! priority and then by age, that fits a node with a free slot and free devices. Of those nodes it gets one that
//! allows its image and its time limit, if any ([`preference`](super::preference)); of these the least loaded; of
//! equal ones, one that ran the image before, since it need not pull it.
//!
//! So a user without a running job waits for one turn of each other user at most, however long their
//! queues are, and a job that fits no node delays no other job, not even of the same user.
//!
//! A [`Round`] knows the heads of lanes and reads on where it needs to:
//!
//! ```text
//! first_reads ──▶ [store] ──▶ Round::new ──▶ step ──▶ ReadJobs(lanes) ──▶ [store] ──▶ add_jobs ────┐
//!                                             ▲ │ └──▶ ReadDetails(jobs) ▶ [store] ─▶ add_details ─┤
//!                                             └─┼──────────────────────────────────────────────────┘
//!                                               └──▶ Done ──▶ into_assigned
//! ```
//!
//! The reads see the queue at several moments. A job that has left the queue meanwhile is refused when it is
//! claimed, one that has moved to another lane is assigned once, and one that came late is found by the next
//! decision, since it wakes the scheduler.

use super::{
    RescheduleRequest,
    fair_share::{FairShare, ImageNodes},
    free_slots::FreeSlots,
    preference::Preference,
};
use crate::{
    api::{JobId, NodeId, UserId, time::Time},
    store::{JobDetails, Lane, LaneHeads, LaneRead, QueuedJob},
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
};

/// Maximum number of jobs that are read of a lane at a time.
pub(super) const LANE_READ_LIMIT: u32 = 256;

/// Maximum number of jobs whose details are read at a time: each is a parse of a task, and some are not needed.
const DETAILS_READ_LIMIT: usize = 64;

/// Order of the users, the least first: running jobs, last turn, beginning of the wait.
type UserOrder = (u32, u64, Time, UserId);

/// Request of a [`Round`].
#[derive(Debug)]
pub(super) enum Step {
    /// Read further jobs of these lanes and add them.
    ReadJobs(Vec<LaneRead>),
    /// Read the details of these jobs and add them.
    ReadDetails(Vec<JobId>),
    /// Nothing: every slot is assigned, or no job fits one.
    Done,
}

/// Assigns nodes to jobs whose node is silent, the oldest first. A node that was asked in vain is asked again
/// only where no other fits. These jobs had their turn, so no user is charged for one.
pub(super) fn assign_reschedules(
    requests: &[RescheduleRequest],
    slots: &mut FreeSlots,
) -> Vec<(JobId, NodeId)> {
    let mut assigned = Vec::new();
    for request in requests {
        if !slots.has_room(&request.placement) {
            continue;
        }
        let holder = [request.except];
        let asked = [&holder[..], &request.tried].concat();
        let any = Preference::default();
        let mut take = |except: &[NodeId]| slots.take(&request.placement, &any, except);
        if let Some(node) = take(&asked).or_else(|| take(&holder)) {
            assigned.push((request.job, node));
        }
    }
    assigned
}

/// Reads of the heads of all lanes that could have a slot, each of at most `limit` jobs.
pub(super) fn first_reads(lanes: &[Lane], slots: &mut FreeSlots, limit: u32) -> Vec<LaneRead> {
    let mut has_room = |lane: &&Lane| slots.has_room(&lane.placement);
    let lanes: Vec<Lane> = lanes
        .iter()
        .filter(|lane| has_room(lane))
        .cloned()
        .collect();
    let limit = read_size(lanes.len(), slots, limit);
    let reads = lanes.into_iter().map(|lane| LaneRead {
        lane,
        after: None,
        limit,
    });
    reads.collect()
}

/// Number of jobs to read of each lane: its share of the free slots, and one more.
fn read_size(lanes: usize, slots: &FreeSlots, limit: u32) -> u32 {
    let lanes = u32::try_from(lanes).unwrap_or(u32::MAX).max(1);
    (slots.left().div_ceil(lanes) + 1).min(limit)
}

/// Lane of the queue with the jobs that were read of it.
#[derive(Debug)]
struct LaneQueue {
    lane: Lane,
    /// Jobs that were read and not assigned, without the head.
    jobs: VecDeque<QueuedJob>,
    /// Last job that was read.
    last: Option<QueuedJob>,
    /// Whether the store may have more jobs of this lane.
    has_more: bool,
}

/// Lanes of a user.
#[derive(Debug, Default)]
struct UserLanes {
    /// First job of each lane, and the index of the lane.
    heads: BinaryHeap<Reverse<(QueuedJob, usize)>>,
    /// Lanes to read on before the next turn, since any of them may have the first job.
    unread: Vec<usize>,
}

/// One round of decisions for the queue.
pub(super) struct Round<'a> {
    slots: FreeSlots,
    shares: &'a mut FairShare,
    images: &'a mut ImageNodes,
    lanes: Vec<LaneQueue>,
    users: HashMap<UserId, UserLanes>,
    turns: BinaryHeap<Reverse<UserOrder>>,
    /// Lanes of the last [`Step::ReadJobs`].
    reading: Vec<usize>,
    /// Details that were read and not used; `None` where the job is gone.
    details_read: HashMap<JobId, Option<JobDetails>>,
    taken: HashSet<JobId>,
    assigned: Vec<(JobId, NodeId)>,
    /// Number of jobs that the last read asked of each lane.
    read_size: u32,
    limit: u32,
}

impl<'a> Round<'a> {
    /// Round over the answer to [`first_reads`]; later reads have at most `limit` jobs of a lane, too.
    pub(super) fn new(
        reads: Vec<LaneRead>,
        heads: LaneHeads,
        slots: FreeSlots,
        (shares, images): (&'a mut FairShare, &'a mut ImageNodes),
        limit: u32,
    ) -> Self {
        let read_size = reads.first().map_or(0, |read| read.limit);
        let lanes = reads.into_iter().map(|read| LaneQueue {
            lane: read.lane,
            jobs: VecDeque::new(),
            last: None,
            has_more: true,
        });
        let lanes: Vec<_> = lanes.collect();
        let mut round = Self {
            slots,
            shares,
            images,
            reading: (0..lanes.len()).collect(),
            lanes,
            users: HashMap::new(),
            turns: BinaryHeap::new(),
            details_read: HashMap::new(),
            taken: HashSet::new(),
            assigned: Vec::new(),
            read_size,
            limit,
        };
        round.add_jobs(heads.jobs);
        let turns = round.users.iter().filter_map(|(user, lanes)| {
            let Reverse((first, _)) = lanes.heads.peek()?;
            let running = heads.running.get(user).copied().unwrap_or(0);
            let last = round.shares.last_turn(*user);
            Some(Reverse((running, last, first.eligible_at, *user)))
        });
        round.turns = turns.collect();
        round
    }

    /// Assigns jobs until data is missing.
    pub(super) fn step(&mut self) -> Step {
        while let Some(Reverse((running, _, _, user))) = self.turns.peek().copied() {
            if self.slots.left() == 0 {
                break;
            }
            if self.must_read(user) {
                return Step::ReadJobs(self.next_reads());
            }
            let Some((job, n)) = self.head(user) else {
                self.turns.pop();
                continue;
            };
            if !self.slots.has_room(&self.lanes[n].lane.placement) {
                // Slots only get fewer, so the whole lane is dropped.
                self.pop_head(user);
                continue;
            }
            if self.taken.contains(&job.id) {
                // It was read from two lanes.
                self.pop_head(user);
                self.advance(n);
                continue;
            }
            let Some(details) = self.details_read.remove(&job.id) else {
                return Step::ReadDetails(self.next_details());
            };
            self.pop_head(user);
            self.advance(n);
            if self.assign(job.id, n, details) {
                self.turns.pop();
                let turn = self.shares.record_turn(user);
                // Turns differ, so the time is never compared.
                self.turns
                    .push(Reverse((running + 1, turn, job.eligible_at, user)));
            }
        }
        Step::Done
    }

    /// Adds the jobs of the last [`Step::ReadJobs`], one list for each read.
    pub(super) fn add_jobs(&mut self, jobs: Vec<Vec<QueuedJob>>) {
        for (n, jobs) in std::mem::take(&mut self.reading).into_iter().zip(jobs) {
            let queue = &mut self.lanes[n];
            queue.has_more = jobs.len() >= self.read_size as usize;
            queue.last = jobs.last().copied().or(queue.last);
            queue.jobs = jobs.into();
            self.advance(n);
        }
    }

    /// Adds a job that was assigned before the round, and is in the queue still.
    pub(super) fn add_assigned(&mut self, job: JobId, node: NodeId) {
        self.taken.insert(job);
        self.assigned.push((job, node));
    }

    /// Adds details of jobs; `None` where a job is gone.
    pub(super) fn add_details(
        &mut self,
        details: impl IntoIterator<Item = (JobId, Option<JobDetails>)>,
    ) {
        self.details_read.extend(details);
    }

    /// Jobs with their nodes, in the order in which they were assigned.
    pub(super) fn into_assigned(self) -> Vec<(JobId, NodeId)> {
        self.assigned
    }

    /// Whether a lane of the user is to be read on. A lane without room is dropped: slots only get fewer.
    fn must_read(&mut self, user: UserId) -> bool {
        let mut has_room = |n: &usize| self.slots.has_room(&self.lanes[*n].lane.placement);
        self.users.get_mut(&user).is_some_and(|user| {
            user.unread.retain(&mut has_room);
            !user.unread.is_empty()
        })
    }

    /// Reads of all lanes that are to be read on, of all users.
    fn next_reads(&mut self) -> Vec<LaneRead> {
        let mut has_room = |n: &usize| self.slots.has_room(&self.lanes[*n].lane.placement);
        let unread = self.users.values_mut().map(|user| &mut user.unread);
        let unread = unread.flat_map(std::mem::take);
        self.reading = unread.filter(&mut has_room).collect();
        self.read_size = read_size(self.reading.len(), &self.slots, self.limit);
        let reads = self.reading.iter().map(|n| LaneRead {
            lane: self.lanes[*n].lane.clone(),
            after: self.lanes[*n].last,
            limit: self.read_size,
        });
        reads.collect()
    }

    /// Jobs that are probably the next to be assigned, without their details: the first of each user in the order of
    /// their turns, then the second of each, and so on. The first of all is the next one for certain.
    fn next_details(&mut self) -> Vec<JobId> {
        let limit = DETAILS_READ_LIMIT.min(self.slots.left() as usize);
        let mut turns: Vec<_> = self.turns.iter().map(|Reverse(turn)| *turn).collect();
        turns.sort_unstable();
        let mut next = Vec::new();
        for (order, (.., user)) in turns.into_iter().take(limit).enumerate() {
            let jobs = self.next_of(user).into_iter().take(limit).enumerate();
            next.extend(jobs.map(|(depth, job)| (depth, order, job.id)));
        }
        next.sort_unstable();
        next.truncate(limit);
        let jobs = next.into_iter().map(|(.., job)| job);
        jobs.filter(|job| !self.details_read.contains_key(job))
            .collect()
    }

    /// Jobs of a user that were read and may have a slot, in their order.
    fn next_of(&mut self, user: UserId) -> Vec<QueuedJob> {
        let heads = self.users.get(&user).map(|user| &user.heads);
        let mut jobs = Vec::new();
        for Reverse((head, n)) in heads.into_iter().flatten() {
            let LaneQueue {
                lane, jobs: behind, ..
            } = &self.lanes[*n];
            if self.slots.has_room(&lane.placement) {
                jobs.push(*head);
                jobs.extend(behind);
            }
        }
        jobs.sort_unstable();
        jobs.retain(|job| !self.taken.contains(&job.id));
        jobs
    }

    /// Makes the next job of a lane its head, or notes that the lane is to be read on.
    fn advance(&mut self, n: usize) {
        let queue = &mut self.lanes[n];
        let user = self.users.entry(queue.lane.user).or_default();
        match queue.jobs.pop_front() {
            Some(job) => user.heads.push(Reverse((job, n))),
            None if queue.has_more => user.unread.push(n),
            None => {}
        }
    }

    /// First job of a user, and the index of its lane.
    fn head(&self, user: UserId) -> Option<(QueuedJob, usize)> {
        let heads = &self.users.get(&user)?.heads;
        heads.peek().map(|Reverse(head)| *head)
    }

    fn pop_head(&mut self, user: UserId) {
        if let Some(user) = self.users.get_mut(&user) {
            user.heads.pop();
        }
    }

    /// Assigns a job of this lane and with these details to a node; false where the job is gone.
    fn assign(&mut self, job: JobId, n: usize, details: Option<JobDetails>) -> bool {
        let placement = &self.lanes[n].lane.placement;
        let node = details.and_then(|details| {
            let preference = Preference::new(&details, self.images.get(&details.image));
            let node = self.slots.take(placement, &preference, &[])?;
            self.images.record(details.image, node);
            Some(node)
        });
        if let Some(node) = node {
            self.taken.insert(job);
            self.assigned.push((job, node));
        }
        node.is_some()
    }
}

#[cfg(test)]
mod tests;
