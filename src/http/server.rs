//! Listening: from an address to connections, and an orderly end.

use super::{request::Connection, router::Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower::{ServiceBuilder, util::MapRequestLayer};

/// Headers must arrive within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// What a shutdown waits for answers under way.
const DRAIN: Duration = Duration::from_secs(5);

/// A signal that every part of a role can wait for: `true` once it is time to end.
pub type Shutdown = watch::Receiver<bool>;

/// Resolves at shutdown, and when the one who could order it is gone.
pub async fn ended(mut shutdown: Shutdown) {
    // An error means that the sender was dropped, which ends the role as well.
    let _ = shutdown.wait_for(|end| *end).await;
}

/// Binds `address`; port 0 asks the system for a free one.
pub async fn bind(address: SocketAddr, flag: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("can't listen on {address}: {error}; choose another address with {flag} (port 0 takes a free one)"),
        )
    })
}

/// Serves connections until `shutdown`, then lets answers under way finish.
pub async fn serve<S: Send + Sync + 'static>(
    listener: TcpListener,
    router: Router<S>,
    shutdown: Shutdown,
) {
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ended(shutdown.clone()) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly out of descriptors: without a pause this loop would spin until one is free.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Some(connection) = ends(&stream) {
            let service = ServiceBuilder::new()
                .layer(MapRequestLayer::new(
                    move |mut request: http::Request<_>| {
                        request.extensions_mut().insert(connection);
                        request
                    },
                ))
                .service(router.clone());
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            let served = connections.watch(served);
            tokio::spawn(async move {
                if let Err(error) = served.await {
                    tracing::debug!(%error, peer = %connection.peer, "a connection ended early");
                }
            });
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, connections.shutdown())
        .await
        .is_err()
    {
        tracing::info!(
            "some connections were still open after {} s and are cut",
            DRAIN.as_secs()
        );
    }
}

/// Both ends of a connection; none when the peer is gone already.
fn ends(stream: &TcpStream) -> Option<Connection> {
    // Answers are small and written whole; waiting to fill a segment only adds latency.
    stream.set_nodelay(true).ok()?;
    Some(Connection {
        peer: stream.peer_addr().ok()?,
        local: stream.local_addr().ok()?,
    })
}
