//! Whose job gets which slot, pure.
//!
//! Slot after slot goes to the user of whom the fewest jobs run, of equal ones to whom the last turn
//! was the longest ago, and at the beginning to whom waits longest. Of that user's jobs it is the first,
//! by priority and then by age, that fits a node with a free slot; of those nodes the least loaded, and
//! of equal ones one that was given this image before, since it need not fetch it.
//!
//! So a user of whom no job runs has the next turn but for one of each other user, however much those
//! queue, and a job that fits no node holds up nobody, not even its own user.

use super::{RescheduleRequest, free_slots::FreeSlots, servable::ServableLanes};
use crate::{
    api::{JobId, NodeId, UserId, time::Time},
    store::{Lane, LaneCursor, Queue, QueuedJob, StoreError},
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};

/// Images of which it is remembered who was given them. All are forgotten when there are more.
const MAX_IMAGES: usize = 256;

/// What earlier decisions leave for later ones: preferences, and what is read again where it is lost, as by a
/// restart.
#[derive(Debug, Default)]
pub struct FairShare {
    /// How far the lanes of the queue are known, and which of them a node could serve.
    pub(super) mark: LaneCursor,
    pub(super) servable: ServableLanes,
    turns: u64,
    /// When each user had their last turn.
    last_turn: HashMap<UserId, u64>,
    /// The nodes that were given jobs in an image.
    images: HashMap<String, HashSet<NodeId>>,
}

impl FairShare {
    /// The user has a turn; its number.
    fn record_turn(&mut self, user: UserId) -> u64 {
        self.turns += 1;
        self.last_turn.insert(user, self.turns);
        self.turns
    }

    fn record_image(&mut self, image: String, node: NodeId) {
        if self.images.len() >= MAX_IMAGES && !self.images.contains_key(&image) {
            self.images.clear();
        }
        self.images.entry(image).or_default().insert(node);
    }
}

/// The first jobs of a user's lanes, the least first, and the lane of each.
type LaneHeads<'a> = BinaryHeap<Reverse<(QueuedJob, &'a Lane)>>;

/// What decides whose turn it is, the least first: jobs that run, the last turn, since when they wait.
type UserOrder = (u32, u64, Time, UserId);

/// Gives jobs whose node is silent another one, the oldest first; one that was asked in vain only where
/// there is no other. They had their turn, so no user's counts.
pub(super) fn assign_reschedules(
    sought: &[RescheduleRequest],
    slots: &mut FreeSlots,
) -> Result<Vec<(JobId, NodeId)>, StoreError> {
    let mut assigned = Vec::new();
    for sought in sought {
        if !slots.has_room(&sought.placement)? {
            continue;
        }
        let holder = [sought.except];
        let asked = [&holder[..], &sought.tried].concat();
        let mut take = |except: &[NodeId]| slots.take(&sought.placement, None, except);
        if let Some(node) = take(&asked).or_else(|| take(&holder)) {
            assigned.push((sought.job, node));
        }
    }
    Ok(assigned)
}

/// Gives each free slot a job of these lanes, as long as there is one that fits.
pub(super) fn assign_queued(
    queue: &dyn Queue,
    lanes: &[Lane],
    mut slots: FreeSlots,
    shares: &mut FairShare,
) -> Result<Vec<(JobId, NodeId)>, StoreError> {
    let mut users = lane_heads(queue, lanes, &mut slots)?;
    let running = queue.running()?;
    let mut turns: BinaryHeap<Reverse<UserOrder>> = users
        .iter()
        .filter_map(|(user, heads)| {
            let running = running.get(user).copied().unwrap_or(0);
            let last = shares.last_turn.get(user).copied().unwrap_or(0);
            heads
                .peek()
                .map(|Reverse((first, _))| Reverse((running, last, first.eligible_at, *user)))
        })
        .collect();
    let mut assigned = Vec::new();
    while let Some(Reverse((running, _, _, user))) = turns.pop() {
        let Some(heads) = users.get_mut(&user) else {
            continue;
        };
        let Some(given) = assign_first(queue, heads, &mut slots, shares)? else {
            continue;
        };
        assigned.push(given);
        let turn = shares.record_turn(user);
        if let Some(Reverse((first, _))) = heads.peek() {
            turns.push(Reverse((running + 1, turn, first.eligible_at, user)));
        }
    }
    Ok(assigned)
}

/// The first of each lane in which somebody could have a slot, by user.
fn lane_heads<'a>(
    queue: &dyn Queue,
    lanes: &'a [Lane],
    slots: &mut FreeSlots,
) -> Result<HashMap<UserId, LaneHeads<'a>>, StoreError> {
    let mut users: HashMap<UserId, LaneHeads<'a>> = HashMap::new();
    for lane in lanes {
        if slots.has_room(&lane.placement)?
            && let Some(first) = queue.next(lane, None)?
        {
            let heads = users.entry(lane.user).or_default();
            heads.push(Reverse((first, lane)));
        }
    }
    Ok(users)
}

/// Gives a slot to the first of these jobs that fits one. What fits none now fits none later, since
/// slots only get fewer: its lane is dropped.
fn assign_first(
    queue: &dyn Queue,
    heads: &mut LaneHeads<'_>,
    slots: &mut FreeSlots,
    shares: &mut FairShare,
) -> Result<Option<(JobId, NodeId)>, StoreError> {
    while let Some(Reverse((job, lane))) = heads.pop() {
        if !slots.has_room(&lane.placement)? {
            continue;
        }
        let image = queue.image(job.id)?;
        if let Some(node) = slots.take(&lane.placement, shares.images.get(&image), &[]) {
            shares.record_image(image, node);
            if let Some(next) = queue.next(lane, Some(&job))? {
                heads.push(Reverse((next, lane)));
            }
            return Ok(Some((job.id, node)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
