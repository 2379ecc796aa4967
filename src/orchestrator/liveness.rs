//! Liveness of nodes whose report is late, by a probe of their Worker API.
//!
//! A cynode node reports every 10 s. Another implementation may do so every minute, or only on change; it
//! counts as alive while its Worker API answers `GET /readyz`:
//!
//! | answer | node |
//! |---|---|
//! | 200 | alive, takes jobs |
//! | 503, and 200 to `GET /healthz` | alive, takes no jobs until a later answer or report |
//! | any other, or none | nothing is known |
//!
//! Answers are kept in memory only: after a restart every late node is probed at once, and a node that reports on
//! time costs no write and no call. `/readyz` needs no token. So on an untrusted network, a host that takes
//! over the address of a node can keep that node from being offline.

use super::{AppState, node_client::Readiness, readiness::OFFLINE_AFTER};
use crate::{
    api::{NodeId, time::Time},
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{Node, StoreError},
};
use futures_util::{StreamExt as _, stream};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Time without a report after which a node is probed.
const REPORT_LATE_AFTER: Duration = Duration::from_secs(15);
/// Interval between probes of a node that is alive.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval between probes of a node that is offline; most register by themselves when they are back.
const OFFLINE_PROBE_INTERVAL: Duration = Duration::from_mins(1);
/// Interval between scans for late nodes.
const SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// Pause after a scan that could not read the store.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of probes at the same time.
const CONCURRENCY_LIMIT: usize = 128;

/// Answers of late nodes.
#[derive(Default)]
pub(super) struct Liveness(Mutex<HashMap<NodeId, ProbeRecord>>);

struct ProbeRecord {
    probed_at: Instant,
    /// Latest answer that shows the node to be alive.
    answer: Option<(Time, Readiness)>,
}

/// Latest contact with a node, by a report or a probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LastContact {
    pub(super) at: Time,
    /// Whether the node answered a probe that it takes no jobs.
    pub(super) is_unready: bool,
}

impl LastContact {
    /// Contact by a report.
    pub(super) const fn reported(at: Time) -> Self {
        Self {
            at,
            is_unready: false,
        }
    }
}

impl Liveness {
    fn records(&self) -> MutexGuard<'_, HashMap<NodeId, ProbeRecord>> {
        self.0.lock()
    }

    /// Latest contact with this node.
    pub(super) fn last_contact(&self, node: &Node) -> LastContact {
        let records = self.records();
        let record = records.get(&node.id);
        match record.and_then(|record| record.answer.as_ref()) {
            Some((at, answer)) if *at > node.last_seen_at => LastContact {
                at: *at,
                is_unready: *answer == Readiness::NotReady,
            },
            _ => LastContact::reported(node.last_seen_at),
        }
    }

    /// Claims the probe of a late node, where one is due.
    fn claim_probe(&self, node: &Node, now: Time) -> bool {
        let silence = now.since(self.last_contact(node).at);
        let mut records = self.records();
        let record = records.get(&node.id);
        if !is_due(silence, record.map(|record| record.probed_at.elapsed())) {
            return false;
        }
        let probed_at = Instant::now();
        let record = records.entry(node.id).or_insert(ProbeRecord {
            probed_at,
            answer: None,
        });
        record.probed_at = probed_at;
        true
    }

    fn record_answer(&self, node: NodeId, answer: Readiness) {
        if let Some(record) = self.records().get_mut(&node) {
            record.answer = Some((Time::now(), answer));
        }
    }

    /// Removes the records of all nodes that are not late any more.
    fn retain_only(&self, late: &[Node]) {
        let late: HashSet<NodeId> = late.iter().map(|node| node.id).collect();
        self.records().retain(|id, _| late.contains(id));
    }
}

/// Whether a late node, silent for this long, is due for a probe.
fn is_due(silence: Duration, probed_ago: Option<Duration>) -> bool {
    let interval = if silence > OFFLINE_AFTER {
        OFFLINE_PROBE_INTERVAL
    } else {
        PROBE_INTERVAL
    };
    probed_ago.is_none_or(|ago| ago >= interval)
}

/// Probes late nodes until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = watch(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

async fn watch(state: &AppState) {
    loop {
        if let Err(error) = probe_late_nodes(state).await {
            let error = errors::chain(&error);
            tracing::warn!(error, "silent nodes not read from the database; retrying");
            tokio::time::sleep(STORE_RETRY_INTERVAL).await;
        }
        tokio::time::sleep(SCAN_INTERVAL).await;
    }
}

/// Probes all late nodes that are due, those with the latest contact first.
async fn probe_late_nodes(state: &AppState) -> Result<(), StoreError> {
    let now = Time::now();
    let late = state.store.node_list_silent(now.minus(REPORT_LATE_AFTER));
    let late = late.await?;
    state.nodes.liveness.retain_only(&late);
    let due = late
        .iter()
        .filter(|node| state.nodes.liveness.claim_probe(node, now));
    stream::iter(due)
        .for_each_concurrent(CONCURRENCY_LIMIT, |node| probe(state, node))
        .await;
    Ok(())
}

async fn probe(state: &AppState, node: &Node) {
    let Some(client) = state.node_client(node) else {
        return;
    };
    let Some(answer) = client.readiness().await else {
        return;
    };
    let before = state.nodes.liveness.last_contact(node);
    let silence = Time::now().since(before.at);
    let is_change = silence > OFFLINE_AFTER || before.is_unready;
    state.nodes.liveness.record_answer(node.id, answer);
    state.nodes.reconciler.record_contact(node.id, silence);
    if is_change {
        state.jobs.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::readiness::tests::node;

    #[test]
    fn late_nodes_are_probed_at_their_interval() {
        let [soon, long] = [29, 31].map(Duration::from_secs);
        for (silent, probed_ago, due) in [
            (soon, None, true),
            (soon, Some(9), false),
            (soon, Some(10), true),
            (long, None, true),
            (long, Some(10), false),
            (long, Some(60), true),
        ] {
            let ago = probed_ago.map(Duration::from_secs);
            assert_eq!(is_due(silent, ago), due, "{silent:?} {ago:?}");
        }
    }

    #[tokio::test]
    async fn later_of_report_and_answer_counts() {
        let (liveness, mut node) = (Liveness::default(), node("a", 1, 0));
        node.last_seen_at = Time::now().minus(Duration::from_mins(2));
        let reported = LastContact::reported(node.last_seen_at);
        assert_eq!(liveness.last_contact(&node), reported);
        assert!(liveness.claim_probe(&node, Time::now()));
        assert!(
            !liveness.claim_probe(&node, Time::now()),
            "the node was probed just now"
        );
        assert_eq!(
            liveness.last_contact(&node),
            reported,
            "the node has not answered"
        );
        liveness.record_answer(node.id, Readiness::NotReady);
        let answered = liveness.last_contact(&node);
        assert!(answered.at > reported.at);
        assert!(answered.is_unready);
        let again = Node {
            last_seen_at: Time::now().plus(Duration::from_secs(1)),
            ..node.clone()
        };
        assert_eq!(
            liveness.last_contact(&again),
            LastContact::reported(again.last_seen_at)
        );
        liveness.retain_only(&[]);
        assert_eq!(liveness.last_contact(&node), reported);
    }
}
