//! Devices that are held for a job that needs several of them. Pure.
//!
//! While small jobs come and go, several devices of a node are hardly ever free at the same time. So the first job of a
//! lane that has waited for [`HOLD_AFTER`] gets a hold: its node, the one with the fewest devices left to become free,
//! gives no devices to other jobs. Once they suffice, the job is assigned before all others, and the hold ends. Jobs
//! without devices aren't affected.
//!
//! There is one hold at a time. It goes to the user whose last hold is the longest ago, and of equal ones to the job
//! that has waited longest. Between two holds the fair order of the users decides.
//!
//! A hold ends without an assignment after [`FIRST_HOLD`], since a job that runs for weeks must not keep the other
//! devices of its node idle. Its node then is held for no job for as long. The next hold for the lane takes twice as long, at
//! most [`LONGEST_HOLD`]: so a job gets devices whose jobs take hours, and at least half of the time they are in use.

use super::{fair_share::FairShare, free_slots::FreeSlots};
use crate::{
    api::{NodeId, UserId, jobs::resources::GpuRequest, time::Time},
    store::{Lane, LaneRead, Placement, QueuedJob},
};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// Wait after which devices are held for a job.
pub(super) const HOLD_AFTER: Duration = Duration::from_mins(10);

/// Time for which devices are held for a lane the first time.
const FIRST_HOLD: Duration = Duration::from_hours(1);
/// Longest time for which devices are held.
const LONGEST_HOLD: Duration = Duration::from_hours(24);

/// Lane with its first job.
pub(super) type LaneHead = (Lane, QueuedJob);

/// The hold, and those that were.
#[derive(Debug, Default)]
pub(super) struct Holds {
    hold: Option<Hold>,
    /// Holds of the users that ended.
    turns: FairShare,
    /// Time for which devices are held next for a lane whose last hold ended without an assignment.
    next_length: HashMap<Lane, Duration>,
    /// Nodes after such a hold, with the time until which they are held for no job.
    released: HashMap<NodeId, Time>,
}

/// Devices of a node that are held for the first job of a lane.
#[derive(Debug)]
struct Hold {
    lane: Lane,
    node: NodeId,
    since: Time,
}

/// Reads of the first jobs of the lanes that may need a hold.
pub(super) fn reads(lanes: &[Lane]) -> Vec<LaneRead> {
    let wide = lanes.iter().filter(|lane| is_wide(&lane.placement));
    let reads = wide.map(|lane| LaneRead {
        lane: lane.clone(),
        after: None,
        limit: 1,
    });
    reads.collect()
}

/// Whether small jobs can keep a job with this placement waiting: any free device does for a job that needs one.
fn is_wide(placement: &Placement) -> bool {
    let gpus = placement.gpus();
    gpus.is_some_and(|gpus| *gpus != GpuRequest::Count(1))
}

impl Holds {
    /// Job that the held devices now suffice for.
    pub(super) fn due(&self, heads: &[LaneHead], slots: &mut FreeSlots) -> Option<LaneHead> {
        let held = &self.hold.as_ref()?.lane;
        let head = heads.iter().find(|(lane, _)| lane == held)?;
        slots.has_room(&held.placement).then(|| head.clone())
    }

    /// Ends the hold, whose job was assigned.
    pub(super) fn end(&mut self, user: UserId) {
        if let Some(hold) = self.hold.take() {
            self.next_length.remove(&hold.lane);
        }
        self.turns.record_turn(user);
    }

    /// Ends a hold without an assignment, where it has lasted too long. Returns one that goes on.
    fn expire(&mut self, hold: Hold, now: Time) -> Option<Hold> {
        let length = self.next_length.get(&hold.lane).copied();
        let length = length.unwrap_or(FIRST_HOLD);
        if now.since(hold.since) < length {
            return Some(hold);
        }
        self.released.insert(hold.node, now.plus(length));
        self.turns.record_turn(hold.lane.user);
        self.next_length
            .insert(hold.lane, LONGEST_HOLD.min(length * 2));
        None
    }

    /// Keeps the hold, or begins one for a job that has waited too long, and takes the devices from the other jobs of
    /// this decision.
    pub(super) fn apply(&mut self, heads: &[LaneHead], slots: &mut FreeSlots, now: Time) {
        self.released.retain(|_, until| *until > now);
        let waiting: HashSet<&Lane> = heads.iter().map(|(lane, _)| lane).collect();
        self.next_length.retain(|lane, _| waiting.contains(lane));
        let hold = self.hold.take().filter(|hold| waiting.contains(&hold.lane));
        if let Some(hold) = hold.and_then(|hold| self.expire(hold, now))
            && let Some(node) = slots.hold(&hold.lane.placement, 0, &self.released)
        {
            self.hold = Some(Hold { node, ..hold });
            return;
        }
        let has_waited = |(_, job): &&LaneHead| now.since(job.eligible_at) >= HOLD_AFTER;
        let mut waiting: Vec<&LaneHead> = heads.iter().filter(has_waited).collect();
        waiting.sort_by_key(|(lane, job)| {
            let turn = self.turns.last_turn(lane.user);
            (turn, job.eligible_at, job.id)
        });
        self.hold = waiting.into_iter().find_map(|(lane, _)| {
            if slots.has_room(&lane.placement) {
                return None;
            }
            let node = slots.hold(&lane.placement, 1, &self.released)?;
            let lane = lane.clone();
            let since = now;
            Some(Hold { lane, node, since })
        });
    }
}

#[cfg(test)]
mod tests;
