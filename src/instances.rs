//! Instances: processes that call under one identity, such as a node's.
//!
//! A data directory that was copied to a second machine makes two processes of one identity. Each process
//! sends a random id. A new id is a restart; an id that calls again after its successor (A, B, A) shows that
//! both are alive, and rivals. They are until only one of them has called for [`RIVAL_TIMEOUT`].

use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};
use tokio::time::Instant;

/// Time after which a rival that does not call is gone: three intervals of reports.
pub(crate) const RIVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of processes of one identity that are remembered.
const MAX_REMEMBERED_PROCESSES: usize = 16;

/// Status of the process that calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InstanceStatus {
    /// The only process of its identity.
    Sole,
    /// One of several; new where this call has shown it.
    Duplicate { is_new: bool },
}

/// Processes by identity.
pub(crate) struct Instances<K>(Mutex<HashMap<K, Processes>>);

impl<K> Default for Instances<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Processes of one identity.
struct Processes {
    current: String,
    /// Its predecessors, the last one last.
    before: VecDeque<String>,
    /// Time of the last call of each rival; empty while there is only one process.
    rivals: HashMap<String, Instant>,
}

impl<K: Eq + Hash> Instances<K> {
    fn map(&self) -> MutexGuard<'_, HashMap<K, Processes>> {
        self.0.lock()
    }

    /// Records a call of a process.
    pub(crate) fn record_call(&self, identity: K, process: &str, now: Instant) -> InstanceStatus {
        let mut map = self.map();
        let processes = map.entry(identity).or_insert_with(|| Processes {
            current: process.to_owned(),
            before: VecDeque::new(),
            rivals: HashMap::new(),
        });
        processes.record_call(process, now)
    }

    /// Whether this process has never called, and would become the current one.
    pub(crate) fn is_unknown(&self, identity: &K, process: &str) -> bool {
        let map = self.map();
        let is_known = |processes: &Processes| {
            let is_rival = !processes.rivals.is_empty();
            is_rival
                || processes.current == process
                || processes.before.iter().any(|id| id == process)
        };
        !map.get(identity).is_some_and(is_known)
    }

    /// Whether several processes have this identity now.
    pub(crate) fn has_duplicate(&self, identity: &K, now: Instant) -> bool {
        let map = self.map();
        let processes = map.get(identity);
        processes.is_some_and(|processes| processes.recent_rivals(now).count() > 1)
    }

    /// Forgets an identity.
    pub(crate) fn forget(&self, identity: &K) {
        self.map().remove(identity);
    }
}

impl Processes {
    /// Rivals that called lately.
    fn recent_rivals(&self, now: Instant) -> impl Iterator<Item = &String> {
        let is_recent = move |at: &Instant| now.saturating_duration_since(*at) < RIVAL_TIMEOUT;
        let rivals = self.rivals.iter();
        rivals
            .filter(move |(_, at)| is_recent(at))
            .map(|(id, _)| id)
    }

    fn record_call(&mut self, process: &str, now: Instant) -> InstanceStatus {
        let is_known = process == self.current;
        if self.rivals.is_empty() {
            if is_known {
                return InstanceStatus::Sole;
            }
            if !self.before.iter().any(|id| id == process) {
                self.replace(process);
                return InstanceStatus::Sole;
            }
            self.rivals.insert(self.current.clone(), now);
            self.rivals.insert(process.to_owned(), now);
            return InstanceStatus::Duplicate { is_new: true };
        }
        if self.rivals.len() < MAX_REMEMBERED_PROCESSES || self.rivals.contains_key(process) {
            self.rivals.insert(process.to_owned(), now);
        }
        if self.recent_rivals(now).any(|id| id != process) {
            return InstanceStatus::Duplicate { is_new: false };
        }
        for rival in std::mem::take(&mut self.rivals).into_keys() {
            self.remember(rival);
        }
        self.replace(process);
        InstanceStatus::Sole
    }

    /// Makes a process the current one.
    fn replace(&mut self, process: &str) {
        let before = std::mem::replace(&mut self.current, process.to_owned());
        self.remember(before);
        self.before.retain(|id| id != process);
    }

    fn remember(&mut self, process: String) {
        self.before.retain(|id| *id != process);
        self.before.push_back(process);
        if self.before.len() > MAX_REMEMBERED_PROCESSES {
            self.before.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: InstanceStatus = InstanceStatus::Sole;
    const FOUND: InstanceStatus = InstanceStatus::Duplicate { is_new: true };
    const STILL: InstanceStatus = InstanceStatus::Duplicate { is_new: false };

    #[test]
    fn only_returning_process_is_duplicate() {
        let (instances, now) = (Instances::default(), Instant::now());
        let call = |process: &str, seconds| {
            instances.record_call("box", process, now + Duration::from_secs(seconds))
        };
        let has_duplicate =
            |seconds| instances.has_duplicate(&"box", now + Duration::from_secs(seconds));
        // Restarts.
        assert_eq!(
            [call("a", 0), call("a", 1), call("b", 2), call("c", 3)],
            [ALONE; 4]
        );
        assert!(!has_duplicate(3));
        let are_new = |all: [&str; 3]| all.map(|process| instances.is_unknown(&"box", process));
        assert_eq!(are_new(["a", "c", "d"]), [false, false, true]);
        assert_eq!(instances.record_call("other", "a", now), ALONE);
        assert_eq!(
            [call("b", 4), call("c", 5), call("b", 34)],
            [FOUND, STILL, STILL]
        );
        assert!(has_duplicate(34));
        assert_eq!(are_new(["b", "c", "d"]), [false; 3]);
        // A restart of a rival is still a rival.
        assert_eq!(call("d", 34), STILL);
        // Only one process calls from here on.
        assert_eq!(call("d", 63), STILL);
        assert!(!has_duplicate(64));
        assert_eq!([call("d", 64), call("d", 65), call("e", 66)], [ALONE; 3]);
        assert_eq!(call("b", 67), FOUND, "the duplicate is back");
        instances.forget(&"box");
        assert_eq!(call("e", 68), ALONE);
    }
}
