//! Address at which the orchestrator reaches this machine.

use super::NodeError;
use crate::http::resolve;
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

/// URL of the Worker API in reports.
pub(super) enum AdvertisedUrl {
    /// Configured by the operator.
    Configured(String),
    /// The address of this machine on the route to the orchestrator. It is looked up for each report, because a
    /// machine may move to another network.
    Detected {
        /// Address of the Worker API.
        bound: SocketAddr,
        /// URL of the orchestrator.
        orchestrator: String,
    },
}

impl AdvertisedUrl {
    /// The current URL.
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

/// The address of this machine that the orchestrator can call: the one to listen at, or, where that is every
/// address, the one on the route to the orchestrator.
async fn local_address(bound: SocketAddr, orchestrator: &str) -> io::Result<IpAddr> {
    if !bound.ip().is_unspecified() {
        return Ok(bound.ip());
    }
    let uri: http::Uri = orchestrator.parse().map_err(io::Error::other)?;
    let found = resolve::resolve_host(uri.host().unwrap_or_default()).await?;
    let mut failed = io::Error::other("its name has no address");
    for target in found {
        match route_source(target, resolve::port_of(&uri)) {
            Ok(ip) => return Ok(ip),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The source address of packets to `target`, from the routing table; nothing is sent.
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
