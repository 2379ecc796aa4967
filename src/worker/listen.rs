//! Address of the Worker API.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};
use tokio::net::TcpSocket;

/// Default address of the Worker API.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 12090);

/// Reserves an address without listening yet: the port is known, and calls are refused until
/// [`TcpSocket::listen`].
pub fn reserve(address: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address).map_err(|error| {
        let advice = "choose another address with --worker-listen (port 0 takes a free one)";
        let text = format!("can't listen on {address}: {error}; {advice}");
        io::Error::new(error.kind(), text)
    })?;
    let bound = socket.local_addr()?;
    Ok((socket, bound))
}
