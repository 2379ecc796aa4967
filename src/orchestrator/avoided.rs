//! Nodes that did not take a job just now, and are left alone for a while.
//!
//! A machine that died counts as heard for some seconds yet, and has all its slots free: without
//! this it would be offered every job again and again.

use crate::{
    api::{NodeId, time::Time},
    pause,
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

#[derive(Clone, Copy)]
struct Entry {
    refusals: u32,
    until: Time,
}

/// The nodes that are left alone now.
#[derive(Default)]
pub(super) struct Avoided(Mutex<HashMap<NodeId, Entry>>);

impl Avoided {
    fn map(&self) -> MutexGuard<'_, HashMap<NodeId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node did not take a job. Each time that it is asked again in vain it is left alone for
    /// longer; jobs that failed together count once.
    pub(super) fn refused(&self, node: NodeId) {
        let now = Time::now();
        let mut map = self.map();
        let refusals = match map.get(&node) {
            Some(entry) if entry.until > now => return,
            Some(entry) => entry.refusals.saturating_add(1),
            None => 0,
        };
        map.insert(
            node,
            Entry {
                refusals,
                until: now.plus(pause::nth(FIRST, LONGEST, refusals)),
            },
        );
    }

    /// The node took a job, or has just said that it is ready.
    pub(super) fn forgive(&self, node: NodeId) {
        self.map().remove(&node);
    }

    /// Whether the node is to be left alone.
    pub(super) fn has(&self, node: NodeId, now: Time) -> bool {
        self.map().get(&node).is_some_and(|entry| entry.until > now)
    }

    /// When the first of those that are left alone at `now` may be asked again.
    pub(super) fn next_end(&self, now: Time) -> Option<Time> {
        self.map()
            .values()
            .map(|entry| entry.until)
            .filter(|until| *until > now)
            .min()
    }
}
