//! Execs of a sandbox by id: those that run, and the ended ones whose records are kept. Pure.

use super::exec::RunningExec;
use crate::api::ExecId;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// Most ended execs whose records are kept.
const MAX_ENDED_EXECS: usize = 1000;

/// Execs by what is known of them.
pub(super) struct Table<E = Arc<RunningExec>> {
    running: HashMap<ExecId, E>,
    /// Ended ones whose records are kept, the oldest first.
    ended: VecDeque<ExecId>,
    /// Ended ones whose logs are kept, with their sizes, the oldest first.
    logs: VecDeque<(ExecId, u64)>,
    log_bytes: u64,
    /// Most bytes of the logs of ended ones, the newest apart.
    max_log_bytes: u64,
    /// Ended ones without records: none of them is ever started again.
    forgotten: HashSet<ExecId>,
}

/// Ended execs of which something is to be removed.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Outdated {
    /// Their logs.
    pub(super) logs: Vec<ExecId>,
    /// All of their records.
    pub(super) records: Vec<ExecId>,
}

impl<E: Clone> Table<E> {
    pub(super) fn new(max_log_bytes: u64) -> Self {
        Self {
            running: HashMap::new(),
            ended: VecDeque::new(),
            logs: VecDeque::new(),
            log_bytes: 0,
            max_log_bytes,
            forgotten: HashSet::new(),
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

    /// Whether an exec has ended whose records were removed.
    pub(super) fn is_forgotten(&self, id: ExecId) -> bool {
        self.forgotten.contains(&id)
    }

    pub(super) fn insert(&mut self, id: ExecId, exec: E) {
        self.running.insert(id, exec);
    }

    /// Records that an exec has ended, with a log of this size. Returns what makes room.
    pub(super) fn end(&mut self, id: ExecId, log_bytes: u64) -> Outdated {
        self.running.remove(&id);
        self.ended.push_back(id);
        self.logs.push_back((id, log_bytes));
        self.log_bytes += log_bytes;
        let mut outdated = Outdated::default();
        while self.log_bytes > self.max_log_bytes
            && self.logs.len() > 1
            && let Some((oldest, bytes)) = self.logs.pop_front()
        {
            self.log_bytes -= bytes;
            outdated.logs.push(oldest);
        }
        while self.ended.len() > MAX_ENDED_EXECS
            && let Some(oldest) = self.ended.pop_front()
        {
            if self.logs.front().is_some_and(|(id, _)| *id == oldest)
                && let Some((_, bytes)) = self.logs.pop_front()
            {
                self.log_bytes -= bytes;
            }
            self.forgotten.insert(oldest);
            outdated.records.push(oldest);
        }
        outdated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_logs_and_records_make_room() {
        let ids: Vec<_> = (0..=MAX_ENDED_EXECS).map(|_| ExecId::new()).collect();
        let mut table = Table::<()>::new(100);
        for id in &ids {
            table.insert(*id, ());
        }
        let logs = |logs: &[ExecId]| Outdated {
            logs: logs.to_vec(),
            records: Vec::new(),
        };
        assert_eq!(table.end(ids[0], 60), logs(&[]));
        assert_eq!(table.end(ids[1], 50), logs(&[ids[0]]));
        assert_eq!(table.end(ids[2], 1000), logs(&[ids[1]]), "the newest stays");
        assert_eq!(table.end(ids[3], 1), logs(&[ids[2]]));
        for id in &ids[4..MAX_ENDED_EXECS] {
            assert_eq!(table.end(*id, 0), logs(&[]));
        }
        assert_eq!(table.running(), 1);
        let outdated = table.end(ids[MAX_ENDED_EXECS], 0);
        assert_eq!(outdated.records, [ids[0]]);
        assert!(table.is_forgotten(ids[0]) && !table.is_forgotten(ids[1]));
    }
}
