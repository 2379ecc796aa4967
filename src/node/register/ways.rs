//! Ways to the Worker API of a node: its tunnel, its address, or both.
//!
//! | `--connect` | orchestrator offers a tunnel | it does not |
//! |---|---|---|
//! | `auto` | tunnel; listens where `--worker-listen` or `--advertise-url` is given | listens |
//! | `dial` | same | the node ends with an error |
//! | `listen` | listens | listens |
//!
//! An orchestrator whose offer does not work, mostly because of a proxy that passes no upgrade on, counts as one without. A
//! node behind NAT can't be called then, so the offer is [tried](TUNNEL_RETRY_INTERVAL) again now and then.

use super::{LISTEN_BACKLOG, Node};
use crate::{
    api::nodes::Connect,
    node::{
        NodeError, Settings,
        tunnel::{Tunnel, TunnelState, not_offered, opens},
    },
    worker::{self, Worker},
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Interval at which a node that was offered a tunnel in vain looks whether it opens by now.
const TUNNEL_RETRY_INTERVAL: Duration = Duration::from_mins(5);

impl Settings {
    /// Whether the node listens whatever the orchestrator offers.
    pub(in crate::node) fn always_listens(&self) -> bool {
        // A URL without a listener behind it makes no sense.
        let is_wanted = self.worker_listen.is_some() || self.advertise_url.is_some();
        self.connect == Connect::Listen || is_wanted
    }

    /// Whether the node opens a tunnel where one is offered.
    pub(in crate::node) fn dials(&self) -> bool {
        self.connect != Connect::Listen
    }

    /// Address to listen at.
    pub(in crate::node) fn listen_address(&self) -> SocketAddr {
        self.worker_listen.unwrap_or(worker::DEFAULT_LISTEN)
    }
}

impl Node {
    /// Fails where this node may only dial, and the orchestrator offers no tunnel.
    pub(super) fn check_offer(&self) -> Result<(), NodeError> {
        if self.settings.connect == Connect::Dial && !self.orchestrator.offers_tunnel() {
            return Err(not_offered("node_tunnel_url is missing"));
        }
        Ok(())
    }

    /// Opens the ways to a worker that has started, or whose access was replaced: all that calls need from now on.
    pub(super) async fn open_ways(&mut self, worker: &Worker) -> Result<(), NodeError> {
        if self.settings.always_listens() {
            self.listen(worker)?;
        }
        // It was opened with the token of the registration before.
        if let Some(tunnel) = self.tunnel.take() {
            tunnel.end().await;
        }
        self.tunnel_state.send_replace(TunnelState::Connecting);
        let has_tunnel = self.open_tunnel(worker).await?;
        let is_missed = !has_tunnel && self.settings.dials() && self.orchestrator.offers_tunnel();
        self.tunnel_missed_at = is_missed.then(Instant::now);
        self.machine.set_tunnel(has_tunnel);
        if !has_tunnel {
            return self.listen(worker);
        }
        if !self.is_listening {
            // The orchestrator offers a tunnel since this start.
            self.socket = None;
            self.machine.set_listening(false);
        }
        Ok(())
    }

    /// Whether the tunnel opens that did not when this node started: what is in between may have been set right. Looks
    /// only now and then.
    pub(super) async fn is_tunnel_back(&mut self) -> bool {
        let missed_at = self.tunnel_missed_at;
        if missed_at.is_none_or(|missed_at| missed_at.elapsed() < TUNNEL_RETRY_INTERVAL) {
            return false;
        }
        self.tunnel_missed_at = Some(Instant::now());
        let instance = self.machine.instance().map(str::to_owned);
        let Some(target) = self.orchestrator.tunnel_target(instance) else {
            return false;
        };
        let is_back = opens(&self.orchestrator.dialer(), &target).await;
        if is_back {
            tracing::info!("the orchestrator opens tunnels now; registering again");
        }
        is_back
    }

    /// Opens the tunnel, and waits for a call on it. Returns whether this node is called by it: not where the
    /// orchestrator has none. One that is unreachable for now counts, since the tries go on.
    async fn open_tunnel(&mut self, worker: &Worker) -> Result<bool, NodeError> {
        if !self.settings.dials() {
            return Ok(false);
        }
        let instance = self.machine.instance().map(str::to_owned);
        let Some(target) = self.orchestrator.tunnel_target(instance) else {
            return Ok(false);
        };
        let dialer = self.orchestrator.dialer();
        let state = self.tunnel_state.clone();
        let mut tunnel = Tunnel::start(dialer, target, worker.clone(), state);
        match tunnel.settled().await {
            TunnelState::Unsupported(reason) => {
                tunnel.end().await;
                // Answered; not to be taken for an outage later.
                self.tunnel_state.send_replace(TunnelState::Connecting);
                if self.settings.connect == Connect::Dial {
                    return Err(not_offered(&reason));
                }
                tracing::warn!(
                    reason,
                    "the orchestrator opens no tunnel; listening for its calls"
                );
                Ok(false)
            }
            TunnelState::Connecting => {
                tracing::warn!("tunnel not connected yet; going on without it");
                self.tunnel = Some(tunnel);
                Ok(true)
            }
            // A token that is not accepted shows at the acknowledgement, too.
            TunnelState::Connected | TunnelState::Unauthorized => {
                self.tunnel = Some(tunnel);
                Ok(true)
            }
        }
    }

    /// Listens, unless this node does already.
    fn listen(&mut self, worker: &Worker) -> Result<(), NodeError> {
        if self.is_listening {
            return Ok(());
        }
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let (socket, address) = worker::reserve(self.settings.listen_address())?;
                self.address = address;
                socket
            }
        };
        let advertise_url = self.settings.advertise_url.as_deref();
        worker.listen(socket.listen(LISTEN_BACKLOG)?, advertise_url);
        self.is_listening = true;
        self.machine.set_listening(true);
        let address = self.address;
        self.data_dir
            .update_addresses(|addresses| addresses.worker = Some(address));
        Ok(())
    }
}
