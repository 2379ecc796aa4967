//! The lanes of the queue, in memory.
//!
//! To find all lanes in the database costs a step down an index for each of them. A user may stand in a
//! thousand, each with labels of its own that no node bears, and the scheduler looks at every turn. So
//! whatever puts a job into the queue also enters its lane here, and who looks asks for what came since:
//!
//! ```text
//! write: job queued, lane entered ──▶ commit      look: lane_changes(mark) ──▶ lanes since, new mark
//!                                                 sweep: lanes without a job leave, marks start over
//! ```
//!
//! Guarantee: a lane in which a queued job stands is known here, from before that job is committed until
//! after it has left. A lane without jobs may be known, until the next [sweep](Store::lane_sweep).

use super::{Lane, Store, StoreError, queue::lanes};
use crate::api::UserId;
use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// Lines of one user: sets of labels that the queued tasks of a user may ask for, as many as there are nodes
/// by default.
pub const MAX_LANES_PER_USER: usize = 1024;

/// How far somebody has heard of lanes; nothing yet by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCursor {
    epoch: u64,
    clock: u64,
}

/// What came since a mark.
#[derive(Debug)]
pub struct LaneChanges {
    /// Whether these are all lanes, and whatever was heard before is void.
    pub is_whole: bool,
    /// Lines that were entered, some of which may have been known.
    pub entered: Vec<Lane>,
}

/// The lanes that are known; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct LaneRegistry(Arc<Mutex<State>>);

struct State {
    /// Counts sweeps.
    epoch: u64,
    /// Counts entries.
    clock: u64,
    /// When each lane was last entered.
    by_user: HashMap<UserId, HashMap<Arc<str>, u64>>,
    by_age: BTreeMap<u64, Lane>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            // After that of a mark that has heard nothing.
            epoch: 1,
            clock: 0,
            by_user: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }
}

impl LaneRegistry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// All lanes of a database that is just opened.
    pub(super) fn open(c: &Connection) -> Result<Self, StoreError> {
        let known = Self::default();
        for lane in lanes(c)? {
            known.enter(lane);
        }
        Ok(known)
    }

    /// A job is being put into this lane. Called within the write, so that it is known before the commit.
    pub(super) fn enter(&self, lane: Lane) {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        let of_user = state.by_user.entry(lane.user).or_default();
        if let Some(before) = of_user.insert(Arc::clone(&lane.placement), now) {
            state.by_age.remove(&before);
        }
        state.by_age.insert(now, lane);
    }

    /// Whether a user may queue a job in this lane.
    pub(super) fn has_room(&self, user: UserId, placement: &str) -> bool {
        let state = self.state();
        state
            .by_user
            .get(&user)
            .is_none_or(|lanes| lanes.len() < MAX_LANES_PER_USER || lanes.contains_key(placement))
    }

    /// The lanes whose placement contains `text`.
    pub(super) fn with(&self, text: &str) -> Vec<Lane> {
        let state = self.state();
        let lanes = state.by_age.values();
        lanes
            .filter(|lane| lane.placement.contains(text))
            .cloned()
            .collect()
    }

    fn changes(&self, mark: &mut LaneCursor) -> LaneChanges {
        let state = self.state();
        let is_whole = mark.epoch != state.epoch;
        let after = if is_whole { 0 } else { mark.clock };
        let entered = state
            .by_age
            .range(after + 1..)
            .map(|(_, lane)| lane.clone());
        let entered = entered.collect();
        *mark = LaneCursor {
            epoch: state.epoch,
            clock: state.clock,
        };
        LaneChanges { is_whole, entered }
    }

    /// Forgets the lanes that were last entered until `clock` and in which nobody stands.
    fn keep(&self, queued: &HashSet<Lane>, clock: u64) {
        let mut state = self.state();
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
            of_user.insert(Arc::clone(&lane.placement), *at);
        }
    }
}

impl Store {
    /// Lines that came into being since `mark`, which is moved on.
    pub fn lane_changes(&self, mark: &mut LaneCursor) -> LaneChanges {
        self.lanes.changes(mark)
    }

    /// Forgets lanes in which no job stands any more.
    pub async fn lane_sweep(&self) -> Result<(), StoreError> {
        let clock = {
            let state = self.lanes.state();
            if state.by_age.is_empty() {
                return Ok(());
            }
            state.clock
        };
        // Whatever was entered until now is committed before this, or never will be.
        self.write(|_| Ok(())).await?;
        let queued = self.read(|c| Ok(lanes(c)?.into_iter().collect())).await?;
        self.lanes.keep(&queued, clock);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(user: UserId, placement: &str) -> Lane {
        Lane {
            user,
            placement: placement.into(),
        }
    }

    #[test]
    fn each_lane_change_is_seen_once() {
        let (lanes, mut mark, user) = (
            LaneRegistry::default(),
            LaneCursor::default(),
            UserId::new(),
        );
        let mut hear = || {
            let changes = lanes.changes(&mut mark);
            (changes.is_whole, changes.entered)
        };
        assert_eq!(hear(), (true, vec![]));
        let [a, b] = ["a", "b"].map(|placement| lane(user, placement));
        lanes.enter(a.clone());
        lanes.enter(b.clone());
        lanes.enter(a.clone());
        assert_eq!(hear(), (false, vec![b.clone(), a.clone()]));
        assert_eq!(hear(), (false, vec![]));
        // One that was entered during a sweep stays, whether the sweep has seen its job or not.
        let clock = lanes.state().clock;
        lanes.enter(b.clone());
        lanes.keep(&HashSet::new(), clock);
        assert_eq!(hear(), (true, vec![b]));
        lanes.keep(&HashSet::new(), clock);
        assert_eq!(hear(), (false, vec![]), "nothing was forgotten");
        lanes.enter(a.clone());
        assert_eq!(hear(), (false, vec![a]));
    }

    #[test]
    fn user_stands_in_so_many_lines_only() {
        let (lanes, [ann, bob]) = (LaneRegistry::default(), [(); 2].map(|()| UserId::new()));
        for n in 0..MAX_LANES_PER_USER {
            assert!(lanes.has_room(ann, &n.to_string()));
            lanes.enter(lane(ann, &n.to_string()));
        }
        assert!(!lanes.has_room(ann, "more"));
        assert!(lanes.has_room(ann, "7"), "it is known");
        assert!(lanes.has_room(bob, "more"));
        lanes.keep(&HashSet::new(), 1);
        assert!(lanes.has_room(ann, "more"));
    }
}
