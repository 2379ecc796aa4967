//! Backoff of nodes that refused a job: such a node gets no jobs for a while.
//!
//! A machine that died counts as alive for some seconds yet, with all its slots free. Without a backoff it
//! would be given every job again and again.

use super::reason::Reason;
use crate::{api::NodeId, backoff::nth_delay};
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// Time after a backoff for which its reason is still shown: a waiting job is given to the node again at the
/// end of each backoff.
const REASON_GRACE: Duration = Duration::from_secs(3);

struct Refused {
    /// Refusals in a row after the first.
    retries: u32,
    until: Instant,
    /// Reason; `None` where the node is only at capacity.
    reason: Option<Reason>,
}

/// Nodes that refused a job and have not accepted one since.
#[derive(Default)]
pub(super) struct NodeBackoff(Mutex<HashMap<NodeId, Refused>>);

impl NodeBackoff {
    fn map(&self) -> MutexGuard<'_, HashMap<NodeId, Refused>> {
        self.0.lock()
    }

    /// Records that a node refused a job, with a reason where it is not only at capacity. The backoff grows with
    /// each refusal in a row; jobs that were refused together count once.
    pub(super) fn record_refusal(&self, node: NodeId, reason: Option<Reason>) {
        let now = Instant::now();
        let mut map = self.map();
        let retries = match map.get(&node) {
            Some(refused) if refused.until > now => return,
            Some(refused) => refused.retries.saturating_add(1),
            None => 0,
        };
        let refused = Refused {
            retries,
            until: now + nth_delay(INITIAL_BACKOFF, MAX_BACKOFF, retries),
            reason,
        };
        map.insert(node, refused);
    }

    /// Ends the backoff of a node that accepted a job or reported that it is ready.
    pub(super) fn clear(&self, node: NodeId) {
        self.map().remove(&node);
    }

    /// Whether the node gets no jobs now.
    pub(super) fn is_backing_off(&self, node: NodeId) -> bool {
        let now = Instant::now();
        let map = self.map();
        map.get(&node).is_some_and(|refused| refused.until > now)
    }

    /// Reason for which a node refused its latest jobs. A single refusal has none: the node may just be restarting.
    pub(super) fn reason(&self, node: NodeId) -> Option<Reason> {
        let map = self.map();
        let refused = map.get(&node)?;
        let is_shown = refused.retries > 0 && refused.until + REASON_GRACE > Instant::now();
        refused.reason.clone().filter(|_| is_shown)
    }

    /// End of the backoff that ends first.
    pub(super) fn next_retry_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let map = self.map();
        let ends = map.values().map(|refused| refused.until);
        ends.filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn consecutive_refusals_have_reason() {
        let (backoff, node) = (NodeBackoff::default(), NodeId::new());
        backoff.record_refusal(node, Some("no route".into()));
        backoff.record_refusal(node, Some("no route".into()));
        assert!(backoff.is_backing_off(node));
        assert_eq!(backoff.reason(node), None, "both were refused together");
        tokio::time::sleep(INITIAL_BACKOFF).await;
        assert!(!backoff.is_backing_off(node));
        assert_eq!(backoff.next_retry_at(), None);
        backoff.record_refusal(node, Some("no route".into()));
        assert_eq!(backoff.reason(node), Some("no route".into()));
        backoff.clear(node);
        assert_eq!(backoff.reason(node), None);
        assert!(!backoff.is_backing_off(node));
    }
}
