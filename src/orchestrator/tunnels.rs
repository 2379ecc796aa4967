//! Tunnels that nodes have opened: who has one, and which connection counts.
//!
//! | event | tunnel of the node |
//! |---|---|
//! | it connects, with the token of its latest registration | the new connection; one before it is cut |
//! | its connection ends | none, until it connects again by itself |
//! | it registers again, or is forgotten | cut: the token by which it was opened is not valid any more |
//!
//! A connection counts once it has answered a call, so that a peer which speaks something else gets no work. Its
//! generation tells it from the ones before and after. A node may have [some](MAX_CONNECTIONS) under way, since one that the
//! network has lost still stands when the next one comes, and may open [some](MAX_OPENINGS) within a while. So a tunnel
//! needs no share of the connections that its network may have, and many nodes behind one address can have theirs.
//!
//! The [link](TunnelLink) of a node stays while its connections come and go: calls fail meanwhile as those to a port that
//! is closed do, and callers try again. Each begin and end has the node probed ([`reachability`](super::reachability)),
//! so that its readiness and the reason are right within moments.

use super::AppState;
use crate::{
    api::{
        NodeId,
        problem::{Problem, ProblemKind},
    },
    http::{
        client::Client,
        listener_policy::connection_limit,
        tunnel::{self, TUNNEL_URL, TunnelLink},
        upgrade::UpgradedStream,
    },
    store::Node,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Most connections of one node at a time, those included that have not answered a call yet.
const MAX_CONNECTIONS: u32 = 8;
/// Most connections that one node may open within [`OPENING_WINDOW`]: far more than a node whose network comes and goes, and
/// far fewer than would fill the log.
const MAX_OPENINGS: u32 = 30;
const OPENING_WINDOW: Duration = Duration::from_secs(10);

/// Tunnels of all nodes.
#[derive(Default)]
pub(super) struct Tunnels {
    nodes: Arc<Mutex<HashMap<NodeId, NodeTunnel>>>,
    last_generation: AtomicU64,
}

/// Tunnel of one node.
#[derive(Default)]
struct NodeTunnel {
    link: TunnelLink,
    /// Generation of the connection that counts. Dropping the sender has it end.
    current: Option<(u64, oneshot::Sender<()>)>,
    /// Connections that are being opened or served.
    connections: u32,
    /// Start of the window in which openings are counted, and their number.
    openings: Option<(Instant, u32)>,
}

/// Slot of one connection of a node; given back when dropped.
pub(super) struct ConnectionSlot {
    nodes: Arc<Mutex<HashMap<NodeId, NodeTunnel>>>,
    node: NodeId,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        // A node that was forgotten meanwhile has no entry.
        if let Some(tunnel) = self.nodes.lock().get_mut(&self.node) {
            tunnel.connections = tunnel.connections.saturating_sub(1);
        }
    }
}

impl Tunnels {
    /// Client that calls a node over its tunnel, connected or not.
    pub(super) fn client(&self, node: NodeId) -> Client {
        let link = self.nodes.lock().entry(node).or_default().link.clone();
        Client::over_tunnel(link)
    }

    /// Whether a node is connected.
    pub(super) fn is_connected(&self, node: NodeId) -> bool {
        let nodes = self.nodes.lock();
        nodes
            .get(&node)
            .is_some_and(|tunnel| tunnel.current.is_some())
    }

    /// Number of nodes that are connected.
    pub(super) fn connected(&self) -> usize {
        let nodes = self.nodes.lock();
        let connected = nodes.values().filter(|tunnel| tunnel.current.is_some());
        connected.count()
    }

    /// Slot for a further connection of a node. Fails with 503 where it has too many, or opens them too fast, and where all
    /// nodes together have too many.
    pub(super) fn admit(&self, node: NodeId, now: Instant) -> Result<ConnectionSlot, Problem> {
        let limit = limit_of_all(connection_limit());
        let mut nodes = self.nodes.lock();
        let all: u32 = nodes.values().map(|tunnel| tunnel.connections).sum();
        if all >= limit {
            let text = format!(
                "the orchestrator has as many tunnels as it has connections for ({limit}); raise its limit of open files \
                 (LimitNOFILE=) if that is low, or start nodes that it can reach with --connect listen"
            );
            return Err(Problem::new(ProblemKind::Unavailable, text).retry_after(30));
        }
        let tunnel = nodes.entry(node).or_default();
        let is_recent = |start: Instant| now.saturating_duration_since(start) < OPENING_WINDOW;
        let recent = tunnel.openings.filter(|(start, _)| is_recent(*start));
        let (start, openings) = recent.unwrap_or((now, 0));
        if tunnel.connections >= MAX_CONNECTIONS || openings >= MAX_OPENINGS {
            let text =
                "this node opens too many tunnels; it needs one, and may try again in a moment";
            return Err(Problem::new(ProblemKind::Unavailable, text).retry_after(5));
        }
        tunnel.openings = Some((start, openings + 1));
        tunnel.connections += 1;
        Ok(ConnectionSlot {
            nodes: Arc::clone(&self.nodes),
            node,
        })
    }

    /// Has a connection count from now on, in place of one before: its generation, and the signal to end it.
    fn connect(
        &self,
        node: NodeId,
        attach: impl FnOnce(&TunnelLink, u64),
    ) -> (u64, oneshot::Receiver<()>) {
        let generation = self.last_generation.fetch_add(1, Ordering::Relaxed) + 1;
        let (closer, closed) = oneshot::channel();
        let mut nodes = self.nodes.lock();
        let tunnel = nodes.entry(node).or_default();
        attach(&tunnel.link, generation);
        // Drops the sender of the connection before.
        tunnel.current = Some((generation, closer));
        (generation, closed)
    }

    /// Records the end of a connection. Returns whether it was the one that counts.
    fn disconnect(&self, node: NodeId, generation: u64) -> bool {
        let mut nodes = self.nodes.lock();
        let Some(tunnel) = nodes.get_mut(&node) else {
            return false;
        };
        tunnel.link.disconnect(generation);
        let current = tunnel.current.as_ref();
        let is_current = current.is_some_and(|(current, _)| *current == generation);
        if is_current {
            tunnel.current = None;
        }
        is_current
    }

    /// Ends the connection of a node that registers again.
    pub(super) fn close(&self, node: NodeId) {
        let mut nodes = self.nodes.lock();
        if let Some(tunnel) = nodes.get_mut(&node)
            && let Some((generation, _)) = tunnel.current.take()
        {
            tunnel.link.disconnect(generation);
        }
    }

    /// Ends the connection of a node that was forgotten, and forgets its link.
    pub(super) fn forget(&self, node: NodeId) {
        self.close(node);
        self.nodes.lock().remove(&node);
    }
}

/// Most tunnels of all nodes at a listener with so many connections: an eighth is left for other calls, such as reports.
fn limit_of_all(connections: usize) -> u32 {
    let room = connections.div_ceil(8);
    let limit = connections.saturating_sub(room).max(1);
    u32::try_from(limit).unwrap_or(u32::MAX)
}

/// Connection that counts, until it is dropped.
struct Connected {
    state: Arc<AppState>,
    node: NodeId,
    generation: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let nodes = &self.state.nodes;
        if nodes.tunnels.disconnect(self.node, self.generation) {
            nodes.reachability.mark_pending(self.node, TUNNEL_URL);
            nodes.reachability.wake();
        }
    }
}

/// Calls a node over a connection that it has opened, with the token of this registration, until either ends it.
pub(super) async fn serve(state: Arc<AppState>, node: Node, stream: UpgradedStream) {
    let slug = &node.slug;
    let opened = async {
        let mut connection = tunnel::open(stream).await?;
        connection.check().await?;
        Ok::<_, String>(connection)
    };
    let mut connection = match opened.await {
        Ok(connection) => connection,
        Err(reason) => {
            tracing::info!(
                node = slug,
                reason,
                "tunnel refused: no answer from the node"
            );
            return;
        }
    };
    let tunnels = &state.nodes.tunnels;
    let (generation, closed) = tunnels.connect(node.id, |link, generation| {
        connection.attach(link, generation);
    });
    let connected = Connected {
        state: Arc::clone(&state),
        node: node.id,
        generation,
    };
    // After the connection counts: a later registration closes it.
    if !verify_registration(&state, &node).await {
        tracing::info!(
            node = slug,
            "tunnel closed: the node has registered again, or was forgotten"
        );
        return;
    }
    tracing::info!(node = slug, generation, "tunnel connected");
    state.nodes.reachability.mark_pending(node.id, TUNNEL_URL);
    state.nodes.reachability.wake();
    let is_orderly = tokio::select! {
        cause = connection.ended() => {
            let is_orderly = cause.is_none();
            tracing::info!(node = slug, generation, cause, "tunnel ended");
            is_orderly
        }
        _ = closed => {
            tracing::info!(node = slug, generation, "tunnel closed for a newer connection or registration");
            false
        }
    };
    drop(connected);
    if is_orderly {
        connection.drain().await;
    }
}

/// Verifies that the registration that a connection was opened with is still the latest. Forgets the tunnel of a node that
/// was forgotten while its connection was opened.
async fn verify_registration(state: &AppState, node: &Node) -> bool {
    match state.store.node_get(node.id).await {
        Ok(Some(stored)) => stored.registration == node.registration,
        Ok(None) => {
            // Before the end of the connection, which would have the node probed.
            state.nodes.tunnels.forget(node.id);
            false
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn newer_connection_closes_the_one_before() {
        let (tunnels, node) = (Tunnels::default(), NodeId::new());
        assert!(!tunnels.is_connected(node));
        let (first, is_closed) = tunnels.connect(node, |_, _| ());
        let (second, mut stays) = tunnels.connect(node, |_, _| ());
        assert!(first < second);
        is_closed.await.unwrap_err();
        assert!(
            !tunnels.disconnect(node, first),
            "the end of the one before changes nothing"
        );
        assert!(tunnels.is_connected(node));
        assert_eq!(stays.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert!(tunnels.disconnect(node, second));
        assert!(!tunnels.is_connected(node));
    }

    #[tokio::test]
    async fn registration_closes_tunnel() {
        let (tunnels, node) = (Tunnels::default(), NodeId::new());
        let (_, closed) = tunnels.connect(node, |_, _| ());
        tunnels.close(node);
        closed.await.unwrap_err();
        assert!(!tunnels.is_connected(node));
        let (generation, closed) = tunnels.connect(node, |_, _| ());
        tunnels.forget(node);
        closed.await.unwrap_err();
        assert!(!tunnels.disconnect(node, generation));
    }

    #[test]
    fn connections_of_a_node_are_bounded() {
        let (tunnels, node, now) = (Tunnels::default(), NodeId::new(), Instant::now());
        let admit = |at: Instant| tunnels.admit(node, at);
        let slots: Vec<_> = (0..MAX_CONNECTIONS).map(|_| admit(now).unwrap()).collect();
        assert!(admit(now).is_err(), "as many as may be open");
        tunnels.admit(NodeId::new(), now).unwrap();
        drop(slots);
        for _ in MAX_CONNECTIONS..MAX_OPENINGS {
            drop(admit(now).unwrap());
        }
        assert!(admit(now).is_err(), "as many as may be opened in a while");
        drop(admit(now + OPENING_WINDOW).unwrap());
    }

    #[test]
    fn tunnels_leave_some_connections() {
        assert_eq!([1, 2, 8, 32, 2048].map(limit_of_all), [1, 1, 7, 28, 1792]);
    }

    #[tokio::test]
    async fn connected_nodes_are_counted_once() {
        let (tunnels, node) = (Tunnels::default(), NodeId::new());
        let _ = tunnels.client(NodeId::new());
        let (_, _closed) = tunnels.connect(node, |_, _| ());
        let (generation, _closed) = tunnels.connect(node, |_, _| ());
        assert_eq!(tunnels.connected(), 1);
        tunnels.disconnect(node, generation);
        assert_eq!(tunnels.connected(), 0);
    }
}
