//! At which address others reach this machine.

use super::NodeError;
use crate::http::resolve;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The address of ours that the orchestrator can call: the one we listen on, or, where that is all
/// of them, the one that leads to the orchestrator.
pub(super) async fn own(bound: SocketAddr, orchestrator: &str) -> Result<IpAddr, NodeError> {
    if !bound.ip().is_unspecified() {
        return Ok(bound.ip());
    }
    let uri: http::Uri = orchestrator
        .parse()
        .map_err(|_| NodeError::Setting("--orchestrator is no URL".to_owned()))?;
    let found = resolve::addresses(uri.host().unwrap_or_default()).await?;
    let advice = "say where the orchestrator reaches this node with --advertise-url";
    found
        .into_iter()
        .find_map(|target| {
            let from: SocketAddr = if target.is_ipv4() {
                ([0, 0, 0, 0], 0).into()
            } else {
                ([0_u16; 8], 0).into()
            };
            let socket = UdpSocket::bind(from).ok()?;
            // Asks the routing table; nothing is sent.
            socket
                .connect((target, uri.port_u16().unwrap_or(80)))
                .ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
        .ok_or_else(|| NodeError::Setting(format!("there is no route to {orchestrator}; {advice}")))
}
