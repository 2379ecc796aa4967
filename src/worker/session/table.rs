//! Execs of a sandbox by id: those that run, and the ended ones whose records are kept. Pure.

use super::exec::RunningExec;
use crate::api::ExecId;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Most ended execs whose records are kept.
const MAX_ENDED_EXECS: usize = 1000;

/// Execs by what is known of them.
pub(super) struct Table<E = Arc<RunningExec>> {
    running: HashMap<ExecId, E>,
    /// Ended ones with the size of their records, the oldest first.
    ended: VecDeque<(ExecId, u64)>,
    ended_bytes: u64,
    /// Most bytes of the records of ended ones, the newest apart.
    max_ended_bytes: u64,
}

impl<E: Clone> Table<E> {
    pub(super) fn new(max_ended_bytes: u64) -> Self {
        Self {
            running: HashMap::new(),
            ended: VecDeque::new(),
            ended_bytes: 0,
            max_ended_bytes,
        }
    }

    /// Number of execs that run.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn get(&self, id: ExecId) -> Option<E> {
        self.running.get(&id).cloned()
    }

    pub(super) fn all_running(&self) -> impl Iterator<Item = &E> {
        self.running.values()
    }

    pub(super) fn insert(&mut self, id: ExecId, exec: E) {
        self.running.insert(id, exec);
    }

    /// Records that an exec has ended, with records of this size. Returns those whose records are to be removed.
    pub(super) fn end(&mut self, id: ExecId, bytes: u64) -> Vec<ExecId> {
        self.running.remove(&id);
        self.ended.push_back((id, bytes));
        self.ended_bytes += bytes;
        let mut removed = Vec::new();
        while self.ended.len() > MAX_ENDED_EXECS
            || self.ended_bytes > self.max_ended_bytes && self.ended.len() > 1
        {
            let Some((oldest, bytes)) = self.ended.pop_front() else {
                break;
            };
            self.ended_bytes -= bytes;
            removed.push(oldest);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_records_make_room() {
        let ids: Vec<_> = (0..MAX_ENDED_EXECS + 2).map(|_| ExecId::new()).collect();
        let mut table = Table::<()>::new(100);
        for id in &ids {
            table.insert(*id, ());
        }
        assert!(table.end(ids[0], 60).is_empty());
        assert_eq!(table.end(ids[1], 50), [ids[0]]);
        assert_eq!(table.end(ids[2], 1000), [ids[1]], "the newest stays");
        assert_eq!(table.running(), ids.len() - 3);
        assert_eq!(table.end(ids[3], 0), [ids[2]]);
        let removed: Vec<_> = ids[4..].iter().flat_map(|id| table.end(*id, 0)).collect();
        assert_eq!(removed, []);
        assert_eq!(table.end(ExecId::new(), 0), []);
        assert_eq!(table.end(ExecId::new(), 0), [ids[3]], "too many");
    }
}
