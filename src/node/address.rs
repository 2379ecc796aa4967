//! At which address others reach this machine.

use super::NodeError;
use crate::http::resolve;
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

/// How the orchestrator is told to call the Worker API.
pub(super) enum AdvertisedUrl {
    /// As the operator says.
    Configured(String),
    /// By the address that is its own way back. Looked up anew each time: a machine that moves to
    /// another network has another one.
    Detected {
        /// Where the Worker API listens.
        bound: SocketAddr,
        /// The orchestrator.
        orchestrator: String,
    },
}

impl AdvertisedUrl {
    /// The URL, as it is now.
    pub(super) async fn url(&self) -> Result<String, NodeError> {
        match self {
            Self::Configured(url) => Ok(url.trim_end_matches('/').to_owned()),
            Self::Detected {
                bound,
                orchestrator,
            } => {
                let ip = local_address(*bound, orchestrator)
                    .await
                    .map_err(|source| NodeError::NoRoute {
                        orchestrator: orchestrator.clone(),
                        source,
                    })?;
                Ok(format!("http://{}", SocketAddr::new(ip, bound.port())))
            }
        }
    }
}

/// The address of ours that the orchestrator can call: the one we listen on, or, where that is all
/// of them, the one that leads to the orchestrator.
async fn local_address(bound: SocketAddr, orchestrator: &str) -> io::Result<IpAddr> {
    if !bound.ip().is_unspecified() {
        return Ok(bound.ip());
    }
    let uri: http::Uri = orchestrator.parse().map_err(io::Error::other)?;
    let found = resolve::resolve_host(uri.host().unwrap_or_default()).await?;
    let mut failed = io::Error::other("its name has no address");
    for target in found {
        match route_source(target, uri.port_u16().unwrap_or(80)) {
            Ok(ip) => return Ok(ip),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Asks the routing table by which address of ours packets go there; nothing is sent.
fn route_source(target: IpAddr, port: u16) -> io::Result<IpAddr> {
    let from: SocketAddr = if target.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(from)?;
    socket.connect((target, port))?;
    Ok(socket.local_addr()?.ip())
}
