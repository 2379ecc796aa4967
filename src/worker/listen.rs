//! Ways to the Worker API: an address to listen at, and tunnels.

use super::Worker;
use crate::{
    background::spawn,
    http::{
        host::AllowedHosts,
        listener_policy::ListenerPolicy,
        server::{self, shutdown_requested},
        tunnel,
    },
};
use hyper::upgrade::Upgraded;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};
use tokio::net::{TcpListener, TcpSocket};

/// End of the error about an unknown host name on loopback: the flags that allow another one.
const HOST_ADVICE: &str = ", or have the node advertise this name (--advertise-url), or listen elsewhere (--worker-listen)";

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

impl Worker {
    /// Serves the API on `listener` from now on. On loopback the host name of `public_url` is accepted, too. A worker
    /// listens once.
    pub fn listen(&self, listener: TcpListener, public_url: Option<&str>) {
        let served = server::serve(
            listener,
            self.0.router.clone(),
            ListenerPolicy::new(&[], AllowedHosts::from_urls(public_url, HOST_ADVICE)),
            None,
            self.0.stop.subscribe(),
        );
        *self.0.listener.lock() = Some(spawn("worker_api", served));
    }

    /// Serves the API on a connection that this node has opened, until its end. Calls `on_call` at each request.
    pub async fn serve_tunnel(
        &self,
        stream: Upgraded,
        on_call: impl Fn() + Send + 'static,
    ) -> hyper::Result<()> {
        let (router, stopped) = (self.0.router.clone(), self.0.stop.subscribe());
        tunnel::serve(stream, router, on_call, stopped).await
    }

    /// Resolves once the API has ended.
    pub async fn stopped(&self) {
        shutdown_requested(self.0.stop.subscribe()).await;
    }
}
