//! Listener that one client has to itself: a sandbox, or another program that shares no network with anybody.

use super::{
    connection_info::ConnectionInfo,
    listener_policy::ListenerPolicy,
    router::Router,
    server::{ACCEPT_RETRY_INTERVAL, Shutdown, serve_stream, shutdown_requested},
};
use crate::background;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};

/// Address of a client that has none.
const NO_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Listener on a socket of any kind.
pub enum PrivateListener {
    /// Unix socket.
    Unix(UnixListener),
    /// TCP socket.
    Tcp(TcpListener),
}

/// Connection of any kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl PrivateListener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

/// Serves connections until `shutdown`, and then cuts them. Where `room` has no permit left, connections wait to be
/// accepted. Any host name is accepted: no browser is on this network.
pub async fn serve_private<S: Send + Sync + 'static>(
    listener: PrivateListener,
    router: Router<S>,
    room: Arc<Semaphore>,
    shutdown: Shutdown,
) {
    let policy = ListenerPolicy::private();
    let connection = ConnectionInfo {
        peer: NO_ADDRESS,
        local: NO_ADDRESS,
        client: NO_ADDRESS.ip(),
        is_encrypted: false,
    };
    let accepting = async {
        loop {
            // Never closed.
            let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(%error, "connection not accepted");
                    drop(place);
                    tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                    continue;
                }
            };
            let Some(permit) = policy.acquire(connection.peer.ip()).map(Arc::new) else {
                continue;
            };
            let (policy, router, shutdown) = (policy.clone(), router.clone(), shutdown.clone());
            background::spawn("private_connection", async move {
                let _place = place;
                let drain = shutdown.clone();
                let served = serve_stream(
                    stream, router, policy, permit, NO_ADDRESS, connection, drain,
                );
                tokio::select! {
                    ended = served => if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended early");
                    },
                    () = shutdown_requested(shutdown) => {}
                }
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown_requested(shutdown.clone()) => {}
    }
}
