//! Facts of a connection that handlers may need.

use http::uri::Authority;
use std::net::{IpAddr, SocketAddr};

/// Both ends of a connection, and the client behind it.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionInfo {
    /// Address of the peer.
    pub peer: SocketAddr,
    /// Local address of the connection.
    pub local: SocketAddr,
    /// Address of the client: the peer, or the one that a trusted proxy names.
    pub client: IpAddr,
    /// Whether the client's connection is encrypted: this one, or the one to a trusted proxy.
    pub is_encrypted: bool,
}

impl ConnectionInfo {
    /// Scheme of URLs that lead the client here.
    pub const fn scheme(&self) -> &'static str {
        if self.is_encrypted { "https" } else { "http" }
    }

    /// URL of this server by the host and port that a request on this connection names.
    pub(super) fn base_url(&self, authority: Option<&Authority>) -> Option<String> {
        Some(format!("{}://{}", self.scheme(), authority?))
    }
}
