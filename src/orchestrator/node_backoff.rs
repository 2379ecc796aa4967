//! Nodes that did not take a job just now, and are left alone for a while.
//!
//! A machine that died counts as heard for some seconds yet, and has all its slots free: without
//! this it would be offered every job again and again.

use super::reason::Reason;
use crate::{api::NodeId, backoff};
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// So much longer users are told of it: a job that waits is offered again at the end of each pause.
const REASON_GRACE: Duration = Duration::from_secs(3);

struct Refused {
    refusals: u32,
    until: Instant,
    /// What is wrong with it; nothing where it is only busy.
    reason: Option<Reason>,
}

/// The nodes that are left alone now.
#[derive(Default)]
pub(super) struct NodeBackoff(Mutex<HashMap<NodeId, Refused>>);

impl NodeBackoff {
    fn map(&self) -> MutexGuard<'_, HashMap<NodeId, Refused>> {
        self.0.lock()
    }

    /// The node did not take a job, because of `reason` where it isn't only busy. Each time that it is asked again in vain it is left alone for
    /// longer; jobs that failed together count once.
    pub(super) fn record_refusal(&self, node: NodeId, reason: Option<Reason>) {
        let now = Instant::now();
        let mut map = self.map();
        let refusals = match map.get(&node) {
            Some(entry) if entry.until > now => return,
            Some(entry) => entry.refusals.saturating_add(1),
            None => 0,
        };
        map.insert(
            node,
            Refused {
                refusals,
                until: now + backoff::nth_delay(INITIAL_BACKOFF, MAX_BACKOFF, refusals),
                reason,
            },
        );
    }

    /// The node took a job, or has just said that it is ready.
    pub(super) fn clear(&self, node: NodeId) {
        self.map().remove(&node);
    }

    /// Whether the node is to be left alone.
    pub(super) fn is_backing_off(&self, node: NodeId) -> bool {
        let now = Instant::now();
        self.map().get(&node).is_some_and(|entry| entry.until > now)
    }

    /// Why a node that was asked just now did not take a job.
    pub(super) fn reason(&self, node: NodeId) -> Option<Reason> {
        let map = self.map();
        let entry = map.get(&node)?;
        // Once may be chance: a node that is just restarting.
        let is_told = entry.refusals > 0 && entry.until + REASON_GRACE > Instant::now();
        entry.reason.clone().filter(|_| is_told)
    }

    /// When the first of those that are left alone now may be asked again.
    pub(super) fn next_retry_at(&self) -> Option<Instant> {
        let now = Instant::now();
        self.map()
            .values()
            .map(|entry| entry.until)
            .filter(|until| *until > now)
            .min()
    }
}
