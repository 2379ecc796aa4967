//! Nodes whose report is late: are they alive?
//!
//! Our own nodes report every 10 s. Other implementations do so every minute, or only on change; they count
//! as heard while their Worker API answers `GET /readyz`:
//!
//! | answer | the node |
//! |---|---|
//! | 200 | is heard, and takes jobs |
//! | 503, and 200 to `GET /healthz` | is heard, and takes no jobs until a later answer or a report says otherwise |
//! | anything else, or none | is not heard by that |
//!
//! Answers are kept in memory only: after a restart every late node is asked at once, and a node that
//! reports on time costs no write and no call. `/readyz` needs no token, so on a network that anybody can join,
//! whoever takes over the address of a node can keep it from being offline.

use super::{AppState, readiness::OFFLINE_AFTER};
use crate::{
    api::{NodeId, time::Time},
    errors,
    http::server::{Shutdown, shutdown_requested},
    store::{Node, StoreError},
};
use futures_util::{StreamExt as _, stream};
use http::{Method, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// A node that has not reported for this long is asked.
const REPORT_LATE_AFTER: Duration = Duration::from_secs(15);
/// Between two questions to a node that is heard.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// Between two questions to a node that is offline; when it is back, most say so by themselves.
const OFFLINE_PROBE_INTERVAL: Duration = Duration::from_mins(1);
/// How long an answer may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two looks for nodes that are late.
const SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// Nodes that are asked at the same time.
const CONCURRENCY_LIMIT: usize = 128;

/// What late nodes have answered.
#[derive(Default)]
pub(super) struct Liveness(Mutex<HashMap<NodeId, ProbeRecord>>);

struct ProbeRecord {
    last: Instant,
    /// The last answer that shows the node to be alive.
    answered: Option<(Time, ProbeAnswer)>,
}

/// An answer of a node that is alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ProbeAnswer {
    Ready,
    NotReady,
}

/// When a node was last heard, by whichever way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LastContact {
    pub(super) at: Time,
    /// Whether the node said, when it was asked, that it takes no jobs.
    pub(super) is_unready: bool,
}

impl LastContact {
    /// By its reports alone.
    pub(super) const fn reported(at: Time) -> Self {
        Self {
            at,
            is_unready: false,
        }
    }
}

impl Liveness {
    fn map(&self) -> MutexGuard<'_, HashMap<NodeId, ProbeRecord>> {
        self.0.lock()
    }

    /// When this node was last heard: its last report, or a later answer.
    pub(super) fn last_contact(&self, node: &Node) -> LastContact {
        match self
            .map()
            .get(&node.id)
            .and_then(|asked| asked.answered.as_ref())
        {
            Some((at, answer)) if *at > node.last_seen_at => LastContact {
                at: *at,
                is_unready: *answer == ProbeAnswer::NotReady,
            },
            _ => LastContact::reported(node.last_seen_at),
        }
    }

    /// Whether this late node is to be asked now; it counts as asked then.
    fn claim_probe(&self, node: &Node, now: Time) -> bool {
        let silent = now.since(self.last_contact(node).at);
        let mut map = self.map();
        let asked = map.get(&node.id);
        if !is_due(silent, asked.map(|asked| asked.last.elapsed())) {
            return false;
        }
        let last = Instant::now();
        let entry = map.entry(node.id).or_insert(ProbeRecord {
            last,
            answered: None,
        });
        entry.last = last;
        true
    }

    fn record_answer(&self, node: NodeId, answer: ProbeAnswer) {
        if let Some(asked) = self.map().get_mut(&node) {
            asked.answered = Some((Time::now(), answer));
        }
    }

    /// Forgets those that report again, or are gone.
    fn retain_only(&self, late: &[Node]) {
        let late: HashSet<NodeId> = late.iter().map(|node| node.id).collect();
        self.map().retain(|id, _| late.contains(id));
    }
}

/// Whether a late node, not heard by any way for `silent`, is asked again `asked_ago` after the last time.
fn is_due(silent: Duration, asked_ago: Option<Duration>) -> bool {
    let pause = if silent > OFFLINE_AFTER {
        OFFLINE_PROBE_INTERVAL
    } else {
        PROBE_INTERVAL
    };
    asked_ago.is_none_or(|ago| ago >= pause)
}

/// Whether a node is alive, and takes jobs, by the status of its `/readyz` and whether its `/healthz` is
/// 200: a proxy in between answers 503 to both, for a node that is gone.
const fn classify(ready: StatusCode, is_healthy: bool) -> Option<ProbeAnswer> {
    match ready {
        StatusCode::OK => Some(ProbeAnswer::Ready),
        StatusCode::SERVICE_UNAVAILABLE if is_healthy => Some(ProbeAnswer::NotReady),
        _ => None,
    }
}

/// Runs until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = watch(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

async fn watch(state: &AppState) {
    loop {
        if let Err(error) = pass(state).await {
            let error = errors::chain(&error);
            tracing::warn!(error, "cannot read which nodes are late with a report");
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        tokio::time::sleep(SCAN_INTERVAL).await;
    }
}

/// Asks all late nodes whose turn it is, those that were heard last first.
async fn pass(state: &AppState) -> Result<(), StoreError> {
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
    let (Some(url), Some(client)) = (state.worker_url(node), state.node_client(node)) else {
        return;
    };
    let url = format!("{}/readyz", url.trim_end_matches('/'));
    let call = state.http_client_for(node).call(Method::GET, url);
    let ready = match call.probe(PROBE_TIMEOUT).await {
        Ok(look) => look.status,
        Err(error) => {
            tracing::debug!(node = node.slug, %error, "late node does not answer");
            return;
        }
    };
    let is_healthy = ready == StatusCode::OK || client.is_alive().await;
    let Some(answer) = classify(ready, is_healthy) else {
        return;
    };
    let before = state.nodes.liveness.last_contact(node);
    let silent = Time::now().since(before.at);
    let is_news = silent > OFFLINE_AFTER || before.is_unready;
    state.nodes.liveness.record_answer(node.id, answer);
    state.nodes.reconciler.record_contact(node.id, silent);
    if is_news {
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
        for (silent, asked_ago, due) in [
            (soon, None, true),
            (soon, Some(9), false),
            (soon, Some(10), true),
            (long, None, true),
            (long, Some(10), false),
            (long, Some(60), true),
        ] {
            let ago = asked_ago.map(Duration::from_secs);
            assert_eq!(is_due(silent, ago), due, "{silent:?} {ago:?}");
        }
    }

    #[test]
    fn only_worker_answers_mean_alive() {
        let answer =
            |status: u16, is_healthy| classify(StatusCode::from_u16(status).unwrap(), is_healthy);
        assert_eq!(answer(200, true), Some(ProbeAnswer::Ready));
        assert_eq!(answer(503, true), Some(ProbeAnswer::NotReady));
        assert_eq!(answer(503, false), None, "a proxy says the same");
        for status in [204, 301, 401, 404, 429, 500, 502] {
            assert_eq!(answer(status, true), None, "{status}");
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
            "it was asked just now"
        );
        assert_eq!(
            liveness.last_contact(&node),
            reported,
            "it has not answered"
        );
        liveness.record_answer(node.id, ProbeAnswer::NotReady);
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
