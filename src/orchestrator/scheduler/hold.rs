//! Devices that are held for a job that needs several of them. Pure.
//!
//! While small jobs come and go, several devices of a node are hardly ever free at the same time. So the first job of a
//! lane that has waited for [`HOLD_AFTER`] gets a hold: its node, the one with the fewest devices left to become free,
//! gives no devices to other jobs. Once they suffice, the job is assigned before all others, and the hold ends. Jobs
//! without devices aren't affected.
//!
//! There is one hold at a time. It goes to the user whose last hold is the longest ago, and of equal ones to the job
//! that has waited longest. Between two holds the fair order of the users decides.

use super::{fair_share::FairShare, free_slots::FreeSlots};
use crate::{
    api::{UserId, jobs::resources::GpuRequest, time::Time},
    store::{Lane, LaneRead, Placement, QueuedJob},
};
use std::time::Duration;

/// Wait after which devices are held for a job.
pub(super) const HOLD_AFTER: Duration = Duration::from_mins(10);

/// Lane with its first job.
pub(super) type LaneHead = (Lane, QueuedJob);

/// The hold, and those that were.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// Lane for whose first job devices are held.
    lane: Option<Lane>,
    /// Holds of the users that ended with an assignment.
    turns: FairShare,
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
        let held = self.lane.as_ref()?;
        let head = heads.iter().find(|(lane, _)| lane == held)?;
        slots.has_room(&held.placement).then(|| head.clone())
    }

    /// Ends the hold, whose job was assigned.
    pub(super) fn end(&mut self, user: UserId) {
        self.lane = None;
        self.turns.record_turn(user);
    }

    /// Keeps the hold, or begins one for a job that has waited too long, and takes the devices from the other jobs of
    /// this decision.
    pub(super) fn apply(&mut self, heads: &[LaneHead], slots: &mut FreeSlots, now: Time) {
        if let Some(lane) = self.lane.take() {
            let is_waiting = heads.iter().any(|(head, _)| *head == lane);
            if is_waiting && slots.hold(&lane.placement, 0) {
                self.lane = Some(lane);
                return;
            }
        }
        let has_waited = |(_, job): &&LaneHead| now.since(job.eligible_at) >= HOLD_AFTER;
        let mut waiting: Vec<&LaneHead> = heads.iter().filter(has_waited).collect();
        waiting.sort_by_key(|(lane, job)| {
            let turn = self.turns.last_turn(lane.user);
            (turn, job.eligible_at, job.id)
        });
        let mut needs_hold = |(lane, _): &&LaneHead| {
            !slots.has_room(&lane.placement) && slots.hold(&lane.placement, 1)
        };
        let chosen = waiting.into_iter().find(|head| needs_hold(head));
        self.lane = chosen.map(|(lane, _)| lane.clone());
    }
}

#[cfg(test)]
mod tests;
