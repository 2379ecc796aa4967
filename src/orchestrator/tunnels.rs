//! Tunnels that nodes have opened: who has one, and which connection counts.
//!
//! | event | tunnel of the node |
//! |---|---|
//! | it connects, with the token of its latest registration | the new connection; one before it is cut |
//! | its connection ends | none, until it connects again by itself |
//! | it registers again, or is forgotten | cut: the token by which it was opened is not valid any more |
//!
//! A connection counts once it has answered a call, so that a peer which speaks something else gets no work. Its
//! generation tells it from the ones before and after.
//!
//! The [link](TunnelLink) of a node stays while its connections come and go: calls fail meanwhile as those to a port that
//! is closed do, and callers try again. Each begin and end has the node probed ([`reachability`](super::reachability)),
//! so that its readiness and the reason are right within moments.

use super::AppState;
use crate::{
    api::NodeId,
    http::{
        client::Client,
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
};
use tokio::sync::oneshot;

/// Tunnels of all nodes.
#[derive(Default)]
pub(super) struct Tunnels {
    nodes: Mutex<HashMap<NodeId, NodeTunnel>>,
    last_generation: AtomicU64,
}

/// Tunnel of one node.
#[derive(Default)]
struct NodeTunnel {
    link: TunnelLink,
    /// Generation of the connection that counts. Dropping the sender has it end.
    current: Option<(u64, oneshot::Sender<()>)>,
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
    if !is_registered(&state, &node).await {
        tracing::info!(node = slug, "tunnel closed: the node has registered again");
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

/// Whether the registration that a connection was opened with is still the latest.
async fn is_registered(state: &AppState, node: &Node) -> bool {
    let stored = state.store.node_get(node.id).await;
    stored.is_ok_and(|stored| stored.is_some_and(|stored| stored.registration == node.registration))
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
}
