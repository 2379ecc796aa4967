//! Registry of the lanes of the queue, in memory.
//!
//! Finding all lanes in the database takes a step down an index for each of them. A user may have a
//! thousand, each with labels that no node has, and the scheduler needs the lanes at every turn. So every
//! write that puts a job into the queue also enters its lane here, and a reader asks for the lanes since its
//! last visit:
//!
//! ```text
//! write: job queued, lane entered ──▶ commit      read: lane_changes(cursor) ──▶ lanes since, new cursor
//!                                                 sweep: removes lanes without a job, invalidates cursors
//! ```
//!
//! Guarantee: the lane of a queued job is registered from before its commit until after the job has left. A
//! lane without jobs may be registered until the next [sweep](Store::lane_sweep).

use super::{
    Lane, LaneChanges, LaneCursor, MAX_LANES_PER_USER, Placement, Store, StoreError,
    queue::all_lanes,
};
use crate::api::UserId;
use parking_lot::Mutex;
use rusqlite::Connection;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// The registered lanes; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct LaneRegistry(Arc<Mutex<State>>);

struct State {
    /// Number of sweeps that removed a lane.
    epoch: u64,
    /// Number of entries.
    clock: u64,
    /// Clock at the last entry of each lane.
    by_user: HashMap<UserId, HashMap<Placement, u64>>,
    by_age: BTreeMap<u64, Lane>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            // Later than a new cursor.
            epoch: 1,
            clock: 0,
            by_user: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }
}

impl LaneRegistry {
    /// Registry of all lanes of a database.
    pub(super) fn open(c: &Connection) -> Result<Self, StoreError> {
        let registry = Self::default();
        for lane in all_lanes(c)? {
            registry.enter(lane);
        }
        Ok(registry)
    }

    /// Enters the lane of a job that is being queued. Called within the write, so that the lane is registered
    /// before the commit; entering it twice is harmless.
    pub(super) fn enter(&self, lane: Lane) {
        let mut state = self.0.lock();
        state.clock += 1;
        let now = state.clock;
        let of_user = state.by_user.entry(lane.user).or_default();
        if let Some(before) = of_user.insert(lane.placement.clone(), now) {
            state.by_age.remove(&before);
        }
        state.by_age.insert(now, lane);
    }

    /// Whether the limit of lanes lets a user queue a job with this placement.
    pub(super) fn has_room(&self, user: UserId, placement: &Placement) -> bool {
        let state = self.0.lock();
        let lanes = state.by_user.get(&user);
        lanes.is_none_or(|lanes| lanes.len() < MAX_LANES_PER_USER || lanes.contains_key(placement))
    }

    /// Lanes whose placement matches a condition.
    pub(super) fn filter(&self, is_wanted: impl Fn(&Placement) -> bool) -> Vec<Lane> {
        let state = self.0.lock();
        let lanes = state.by_age.values();
        lanes
            .filter(|lane| is_wanted(&lane.placement))
            .cloned()
            .collect()
    }

    fn changes(&self, cursor: &mut LaneCursor) -> LaneChanges {
        let state = self.0.lock();
        let is_complete = cursor.epoch != state.epoch;
        let after = if is_complete { 0 } else { cursor.clock };
        let entered = state.by_age.range(after + 1..);
        let entered = entered.map(|(_, lane)| lane.clone()).collect();
        *cursor = LaneCursor {
            epoch: state.epoch,
            clock: state.clock,
        };
        LaneChanges {
            is_complete,
            entered,
        }
    }

    /// Clock of the last entry; `None` where no lane is registered.
    fn last_entry(&self) -> Option<u64> {
        let state = self.0.lock();
        (!state.by_age.is_empty()).then_some(state.clock)
    }

    /// Removes the lanes that were entered last at `clock` or before and have no queued job.
    fn retain(&self, queued: &HashSet<Lane>, clock: u64) {
        let mut state = self.0.lock();
        let State {
            epoch,
            by_user,
            by_age,
            ..
        } = &mut *state;
        let before = by_age.len();
        by_age.retain(|at, lane| *at > clock || queued.contains(lane));
        if by_age.len() == before {
            return;
        }
        *epoch += 1;
        by_user.clear();
        for (at, lane) in by_age {
            let of_user = by_user.entry(lane.user).or_default();
            of_user.insert(lane.placement.clone(), *at);
        }
    }
}

impl Store {
    /// Lanes that were entered since `cursor`, which is advanced.
    pub fn lane_changes(&self, cursor: &mut LaneCursor) -> LaneChanges {
        self.lanes.changes(cursor)
    }

    /// Removes lanes that no queued job is in.
    pub async fn lane_sweep(&self) -> Result<(), StoreError> {
        let Some(clock) = self.lanes.last_entry() else {
            return Ok(());
        };
        // Writes that entered a lane until now have ended after this one.
        self.write(|_| Ok(())).await?;
        let queued = self.read(|c| Ok(all_lanes(c)?.into_iter().collect()));
        self.lanes.retain(&queued.await?, clock);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Requirements;

    fn placement_of(label: &str) -> Placement {
        Placement::new(Requirements {
            labels: [label.to_owned()].into(),
            ..Requirements::default()
        })
    }

    fn lane(user: UserId, placement: &str) -> Lane {
        Lane {
            user,
            placement: placement_of(placement),
        }
    }

    #[test]
    fn cursor_returns_each_lane_once() {
        let (lanes, mut cursor, user) = (
            LaneRegistry::default(),
            LaneCursor::default(),
            UserId::new(),
        );
        let mut changes = || {
            let changed = lanes.changes(&mut cursor);
            (changed.is_complete, changed.entered)
        };
        assert_eq!(changes(), (true, vec![]));
        let [a, b] = ["a", "b"].map(|placement| lane(user, placement));
        lanes.enter(a.clone());
        lanes.enter(b.clone());
        lanes.enter(a.clone());
        assert_eq!(changes(), (false, vec![b.clone(), a.clone()]));
        assert_eq!(changes(), (false, vec![]));
        // A lane that is entered during a sweep stays, whether the sweep has seen its job or not.
        let clock = lanes.last_entry().unwrap();
        lanes.enter(b.clone());
        lanes.retain(&HashSet::new(), clock);
        assert_eq!(changes(), (true, vec![b]));
        lanes.retain(&HashSet::new(), clock);
        assert_eq!(changes(), (false, vec![]), "nothing was removed");
        lanes.enter(a.clone());
        assert_eq!(changes(), (false, vec![a]));
    }

    #[test]
    fn lanes_are_limited_per_user() {
        let (lanes, [ann, bob]) = (LaneRegistry::default(), [(); 2].map(|()| UserId::new()));
        for n in 0..MAX_LANES_PER_USER {
            assert!(lanes.has_room(ann, &placement_of(&n.to_string())));
            lanes.enter(lane(ann, &n.to_string()));
        }
        assert!(!lanes.has_room(ann, &placement_of("more")));
        assert!(
            lanes.has_room(ann, &placement_of("7")),
            "registered already"
        );
        assert!(lanes.has_room(bob, &placement_of("more")));
        lanes.retain(&HashSet::new(), 1);
        assert!(lanes.has_room(ann, &placement_of("more")));
    }
}
