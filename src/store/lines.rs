//! The lines of the queue, in memory.
//!
//! To find all lines in the database costs a step down an index for each of them. A user may stand in a
//! thousand, each with labels of its own that no node bears, and the scheduler looks at every turn. So
//! whatever puts a job into the queue also enters its line here, and who looks asks for what came since:
//!
//! ```text
//! write: job queued, line entered ──▶ commit      look: line_changes(mark) ──▶ lines since, new mark
//!                                                 sweep: lines without a job leave, marks start over
//! ```
//!
//! Guarantee: a line in which a queued job stands is known here, from before that job is committed until
//! after it has left. A line without jobs may be known, until the next [sweep](Store::lines_sweep).

use super::{Line, Store, StoreError, queue::lines};
use crate::api::UserId;
use rusqlite::Connection;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Lines of one user: sets of labels that the queued tasks of a user may ask for, as many as there are nodes
/// by default.
pub const LINES_PER_USER: usize = 1024;

/// How far somebody has heard of lines; nothing yet by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineMark {
    epoch: u64,
    clock: u64,
}

/// What came since a mark.
#[derive(Debug)]
pub struct LineChanges {
    /// Whether these are all lines, and whatever was heard before is void.
    pub is_whole: bool,
    /// Lines that were entered, some of which may have been known.
    pub entered: Vec<Line>,
}

/// The lines that are known; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<State>>);

struct State {
    /// Counts sweeps.
    epoch: u64,
    /// Counts entries.
    clock: u64,
    /// When each line was last entered.
    by_user: HashMap<UserId, HashMap<Arc<str>, u64>>,
    by_age: BTreeMap<u64, Line>,
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

impl Lines {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines of a database that is just opened.
    pub(super) fn open(c: &Connection) -> Result<Self, StoreError> {
        let known = Self::default();
        for line in lines(c)? {
            known.enter(line);
        }
        Ok(known)
    }

    /// A job is being put into this line. Called within the write, so that it is known before the commit.
    pub(super) fn enter(&self, line: Line) {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        let of_user = state.by_user.entry(line.user).or_default();
        if let Some(before) = of_user.insert(Arc::clone(&line.placement), now) {
            state.by_age.remove(&before);
        }
        state.by_age.insert(now, line);
    }

    /// Whether a user may queue a job in this line.
    pub(super) fn has_room(&self, user: UserId, placement: &str) -> bool {
        let state = self.state();
        state
            .by_user
            .get(&user)
            .is_none_or(|lines| lines.len() < LINES_PER_USER || lines.contains_key(placement))
    }

    /// The lines whose placement contains `text`.
    pub(super) fn with(&self, text: &str) -> Vec<Line> {
        let state = self.state();
        let lines = state.by_age.values();
        lines
            .filter(|line| line.placement.contains(text))
            .cloned()
            .collect()
    }

    fn changes(&self, mark: &mut LineMark) -> LineChanges {
        let state = self.state();
        let is_whole = mark.epoch != state.epoch;
        let after = if is_whole { 0 } else { mark.clock };
        let entered = state
            .by_age
            .range(after + 1..)
            .map(|(_, line)| line.clone());
        let entered = entered.collect();
        *mark = LineMark {
            epoch: state.epoch,
            clock: state.clock,
        };
        LineChanges { is_whole, entered }
    }

    /// Forgets the lines that were last entered until `clock` and in which nobody stands.
    fn keep(&self, queued: &HashSet<Line>, clock: u64) {
        let mut state = self.state();
        let State {
            epoch,
            by_user,
            by_age,
            ..
        } = &mut *state;
        let before = by_age.len();
        by_age.retain(|at, line| *at > clock || queued.contains(line));
        if by_age.len() == before {
            return;
        }
        *epoch += 1;
        by_user.clear();
        for (at, line) in by_age {
            let of_user = by_user.entry(line.user).or_default();
            of_user.insert(Arc::clone(&line.placement), *at);
        }
    }
}

impl Store {
    /// Lines that came into being since `mark`, which is moved on.
    pub fn line_changes(&self, mark: &mut LineMark) -> LineChanges {
        self.lines.changes(mark)
    }

    /// Forgets lines in which no job stands any more.
    pub async fn lines_sweep(&self) -> Result<(), StoreError> {
        let clock = {
            let state = self.lines.state();
            if state.by_age.is_empty() {
                return Ok(());
            }
            state.clock
        };
        // Whatever was entered until now is committed before this, or never will be.
        self.write(|_| Ok(())).await?;
        let queued = self.read(|c| Ok(lines(c)?.into_iter().collect())).await?;
        self.lines.keep(&queued, clock);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(user: UserId, placement: &str) -> Line {
        Line {
            user,
            placement: placement.into(),
        }
    }

    #[test]
    fn who_looks_hears_of_each_line_once() {
        let (lines, mut mark, user) = (Lines::default(), LineMark::default(), UserId::new());
        let mut hear = || {
            let changes = lines.changes(&mut mark);
            (changes.is_whole, changes.entered)
        };
        assert_eq!(hear(), (true, vec![]));
        let [a, b] = ["a", "b"].map(|placement| line(user, placement));
        lines.enter(a.clone());
        lines.enter(b.clone());
        lines.enter(a.clone());
        assert_eq!(hear(), (false, vec![b.clone(), a.clone()]));
        assert_eq!(hear(), (false, vec![]));
        // One that was entered during a sweep stays, whether the sweep has seen its job or not.
        let clock = lines.state().clock;
        lines.enter(b.clone());
        lines.keep(&HashSet::new(), clock);
        assert_eq!(hear(), (true, vec![b]));
        lines.keep(&HashSet::new(), clock);
        assert_eq!(hear(), (false, vec![]), "nothing was forgotten");
        lines.enter(a.clone());
        assert_eq!(hear(), (false, vec![a]));
    }

    #[test]
    fn user_stands_in_so_many_lines_only() {
        let (lines, [ann, bob]) = (Lines::default(), [(); 2].map(|()| UserId::new()));
        for n in 0..LINES_PER_USER {
            assert!(lines.has_room(ann, &n.to_string()));
            lines.enter(line(ann, &n.to_string()));
        }
        assert!(!lines.has_room(ann, "more"));
        assert!(lines.has_room(ann, "7"), "it is known");
        assert!(lines.has_room(bob, "more"));
        lines.keep(&HashSet::new(), 1);
        assert!(lines.has_room(ann, "more"));
    }
}
