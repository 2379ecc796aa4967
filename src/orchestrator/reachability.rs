//! Reachability of nodes: whether a call of this orchestrator arrives at the Worker API that a node reported.
//!
//! A node calls the orchestrator by itself, which shows nothing about the other direction: a firewall or a wrong
//! `--advertise-url` would show only when the first job fails. So a node is probed, by a call with its token, when it
//! acknowledges its configuration, when its address changes, and after a start of the orchestrator. A node of cynode must
//! answer its list of jobs. Nodes of other implementations may lack the call, so that another HTTP service at their
//! address may pass; the first job shows it then.
//!
//! | probe | node |
//! |---|---|
//! | not answered yet | takes no jobs; after a start of the orchestrator, it takes jobs as before |
//! | answered | takes jobs; not probed again |
//! | failed | takes no jobs, and its reason says why; probed again, until a call arrives |
//!
//! By the contract a node acknowledges its configuration once its Worker API listens, so that a node that still
//! starts does not count as unreachable. A node that is lost later shows by its silence and by the jobs that
//! it was sent ([`liveness`](super::liveness), [`node_backoff`](super::node_backoff)).
//!
//! One task probes all nodes, [some at a time](CONCURRENCY_LIMIT); each probe has a time limit and keeps nothing of
//! an answer. Results are kept in memory only.

use super::{AppState, node_client::Proof, readiness::OFFLINE_AFTER, reason::Reason};
use crate::{
    api::{
        NodeId,
        nodes::{AckStatus, features},
        time::Time,
    },
    backoff::nth_delay,
    errors,
    http::{
        server::{Shutdown, shutdown_requested},
        tunnel::TUNNEL_URL,
    },
    store::{Node, StoreError},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Backoff between probes of a node that can't be reached.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Interval between scans for nodes that are due.
const SCAN_INTERVAL: Duration = Duration::from_millis(500);
/// Pause after a scan that could not read the store.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of probes at the same time.
const CONCURRENCY_LIMIT: usize = 128;
/// Time for which the call of a node waits for its probe, so that a node that is answered may get jobs.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Results of the probes.
#[derive(Default)]
pub(super) struct Reachability {
    records: Mutex<HashMap<NodeId, ProbeRecord>>,
    /// Wakes the task that probes.
    wake: Notify,
    /// Wakes those that wait for a result.
    settled: Notify,
}

struct ProbeRecord {
    /// URL that is probed.
    url: String,
    outcome: Outcome,
    /// Failures in a row.
    failures: u32,
    /// Time of the next probe; `None` where none is needed.
    due_at: Option<Instant>,
    /// Whether a probe is under way: a node gets one at a time, however often it changes its address.
    is_running: bool,
    /// Number of the probe whose result counts.
    ticket: u64,
}

impl ProbeRecord {
    fn new(url: &str, outcome: Outcome) -> Self {
        Self {
            url: url.to_owned(),
            outcome,
            failures: 0,
            due_at: Some(Instant::now()),
            is_running: false,
            ticket: 0,
        }
    }
}

/// Result of the last probe.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Outcome {
    /// There is none since the start of the orchestrator, and the node took jobs before.
    Assumed,
    /// There is none, and the node has just started or has a new address.
    Pending,
    Reachable,
    Unreachable(Reason),
}

/// Change that a result makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    BecameReachable,
    Recovered,
    BecameUnreachable,
}

impl Reachability {
    fn records(&self) -> MutexGuard<'_, HashMap<NodeId, ProbeRecord>> {
        self.records.lock()
    }

    /// Marks a node that listens at `url` from now on: it takes no jobs before a probe was answered.
    pub(super) fn mark_pending(&self, node: NodeId, url: &str) {
        let mut record = ProbeRecord::new(url, Outcome::Pending);
        let mut records = self.records();
        if let Some(before) = records.get(&node) {
            record.is_running = before.is_running;
            record.ticket = before.ticket + 1;
        }
        records.insert(node, record);
    }

    /// Has the probes that are due made now.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits for the probe of a node that was marked, for a short time: a node that is slow is probed all the same.
    pub(super) async fn wait_probed(&self, node: NodeId) {
        self.wake();
        let is_pending = || {
            let records = self.records();
            let record = records.get(&node);
            record.is_some_and(|record| record.outcome == Outcome::Pending)
        };
        let settled = async {
            loop {
                let changed = self.settled.notified();
                tokio::pin!(changed);
                // Registered before the look, so that no result is missed.
                changed.as_mut().enable();
                if !is_pending() {
                    return;
                }
                changed.await;
            }
        };
        // Without a result in time the reason of the node says that it is being probed.
        let _ = tokio::time::timeout(ANSWER_WAIT, settled).await;
    }

    /// Removes the result of a node that was forgotten.
    pub(super) fn forget(&self, node: NodeId) {
        self.records().remove(&node);
    }

    /// Reason for which a node whose Worker API is at `url` gets no calls; `None` where it may.
    pub(super) fn obstacle(&self, node: NodeId, url: &str) -> Option<Reason> {
        let records = self.records();
        let record = records.get(&node)?;
        match &record.outcome {
            Outcome::Assumed | Outcome::Reachable if record.url == url => None,
            Outcome::Unreachable(reason) if record.url == url => Some(reason.clone()),
            _ => Some(Reason::with_detail(
                "starting: the orchestrator checks whether it can reach it",
                Some(&place(url)),
            )),
        }
    }

    /// Reason for which the last probe of a node failed, for the node itself. `None` where it did not, and for a tunnel:
    /// a node sees by itself that it has none.
    pub(super) fn failure(&self, node: NodeId) -> Option<Reason> {
        let records = self.records();
        let record = records.get(&node)?;
        match &record.outcome {
            Outcome::Unreachable(reason) if record.url != TUNNEL_URL => Some(reason.clone()),
            _ => None,
        }
    }

    /// Claims the probe of a node at `url`, where one is due: its ticket.
    fn claim(&self, node: NodeId, url: &str) -> Option<u64> {
        let mut records = self.records();
        let assumed = || ProbeRecord::new(url, Outcome::Assumed);
        let record = records.entry(node).or_insert_with(assumed);
        if record.is_running {
            return None;
        }
        if record.url != url {
            *record = ProbeRecord {
                ticket: record.ticket,
                ..ProbeRecord::new(url, Outcome::Pending)
            };
        }
        let now = Instant::now();
        if record.due_at.is_none_or(|due_at| due_at > now) {
            return None;
        }
        (record.due_at, record.is_running) = (None, true);
        record.ticket += 1;
        Some(record.ticket)
    }

    /// Records the result of a probe. A result that was overtaken by a change of the node does not count.
    fn record(&self, node: NodeId, ticket: u64, result: Result<(), Reason>) -> Option<Change> {
        let mut records = self.records();
        let record = records.get_mut(&node)?;
        record.is_running = false;
        if record.ticket != ticket {
            return None;
        }
        let was_unreachable = matches!(record.outcome, Outcome::Unreachable(_));
        let change = match result {
            Ok(()) => {
                record.failures = 0;
                let before = std::mem::replace(&mut record.outcome, Outcome::Reachable);
                match before {
                    Outcome::Pending => Some(Change::BecameReachable),
                    Outcome::Unreachable(_) => Some(Change::Recovered),
                    Outcome::Assumed | Outcome::Reachable => None,
                }
            }
            Err(reason) => {
                let pause = nth_delay(INITIAL_BACKOFF, MAX_BACKOFF, record.failures);
                record.due_at = Some(Instant::now() + pause);
                record.failures = record.failures.saturating_add(1);
                record.outcome = Outcome::Unreachable(reason);
                (!was_unreachable).then_some(Change::BecameUnreachable)
            }
        };
        drop(records);
        self.settled.notify_waiters();
        change
    }

    /// Removes the results of all other nodes.
    fn retain_only(&self, nodes: &[Arc<Node>]) {
        let mut records = self.records();
        if records.len() > nodes.len() {
            let known: HashSet<NodeId> = nodes.iter().map(|node| node.id).collect();
            records.retain(|id, _| known.contains(id));
        }
    }
}

impl AppState {
    /// Reason for which a call of this orchestrator does not arrive at a node; `None` where it does, as far as known.
    pub(super) fn reach_obstacle(&self, node: &Node) -> Option<Reason> {
        let url = self.worker_url(node)?;
        self.nodes.reachability.obstacle(node.id, url)
    }
}

/// Place of a Worker API, for admins.
fn place(url: &str) -> String {
    if url == TUNNEL_URL {
        return "its Worker API is behind its tunnel".to_owned();
    }
    format!("its Worker API is at {url}")
}

/// Probes nodes until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = watch(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

async fn watch(state: &AppState) {
    let mut running = FuturesUnordered::new();
    loop {
        let room = CONCURRENCY_LIMIT.saturating_sub(running.len());
        let pause = match claim_due(state, room).await {
            Ok(due) => {
                let probes = due.into_iter();
                running.extend(probes.map(|(node, ticket)| probe(state, node, ticket)));
                SCAN_INTERVAL
            }
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(error, "nodes to probe not read from the database; retrying");
                STORE_RETRY_INTERVAL
            }
        };
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                () = state.nodes.reachability.wake.notified() => break,
                Some(()) = running.next() => {}
            }
        }
    }
}

/// Claims the probes of up to `room` nodes that are due. A node that is silent, has applied no configuration, or has
/// reported its stop, is not probed: it gets a probe when it is back.
async fn claim_due(state: &AppState, room: usize) -> Result<Vec<(Arc<Node>, u64)>, StoreError> {
    let nodes = state.store.node_snapshot().await?;
    let reachability = &state.nodes.reachability;
    reachability.retain_only(&nodes);
    let now = Time::now();
    let listens = |node: &&Arc<Node>| {
        let silence = now.since(state.nodes.liveness.last_contact(node).at);
        let runs = node.capability.node.stopping_since.is_none();
        runs && node.ack_status == Some(AckStatus::Applied) && silence <= OFFLINE_AFTER
    };
    let due = nodes.iter().filter(listens).filter_map(|node| {
        let ticket = reachability.claim(node.id, state.worker_url(node)?)?;
        Some((Arc::clone(node), ticket))
    });
    Ok(due.take(room).collect())
}

/// Proof that the probe of a node demands. Only nodes of cynode report this feature, all that are in use do, and they list
/// their jobs.
fn demanded_proof(node: &Node) -> Proof {
    if node.capability.has_feature(features::LOG_ARCHIVE) {
        Proof::JobList
    } else {
        Proof::AnyAnswer
    }
}

/// Whether a node is called on a tunnel, and has none.
fn lacks_tunnel(state: &AppState, node: &Node) -> bool {
    state.worker_url(node) == Some(TUNNEL_URL) && !state.nodes.tunnels.is_connected(node.id)
}

async fn probe(state: &AppState, node: Arc<Node>, ticket: u64) {
    let result = match state.node_client(&node) {
        Some(client) => client.check_reach(demanded_proof(&node)).await,
        None => Err(Reason::from("the URL of its Worker API is unknown")),
    };
    let reason = result.as_ref().err().map(Reason::for_admins);
    let (id, slug) = (node.id, &node.slug);
    let change = state.nodes.reachability.record(id, ticket, result);
    match change {
        // As after a start of the orchestrator: nodes connect again within seconds, and log where they can't.
        Some(Change::BecameUnreachable) if lacks_tunnel(state, &node) => {
            tracing::info!(
                node = slug,
                "node has no tunnel yet; it gets no jobs until it connects"
            );
        }
        Some(Change::BecameUnreachable) => {
            tracing::warn!(
                node = slug,
                reason,
                "node can't be reached; it gets no jobs until a call arrives"
            );
        }
        Some(Change::Recovered) => {
            tracing::info!(node = slug, "node can be reached again");
            state.jobs.wake.notify_one();
        }
        Some(Change::BecameReachable) => state.jobs.wake.notify_one(),
        None => {}
    }
}

#[cfg(test)]
mod tests;
