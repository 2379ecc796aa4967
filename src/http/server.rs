//! Listening: from an address to connections, and an orderly end.
//!
//! A client that is slow is cut off: in sending a head, in sending a body
//! ([`request`](super::request)), and in taking what we send. Where there is no room, those who send
//! nothing are cut off for others ([`connection_limiter`](super::connection_limiter)).

use super::{
    connection_limiter::ConnectionPermit,
    listener_policy::ListenerPolicy,
    refusal::{Polite, raw},
    request::{ConnectionInfo, RequestContext},
    response::{Response, hold_until_sent},
    router::Router,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    background, wait,
};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_io_timeout::TimeoutStream;

/// Headers must arrive within this time, and the next request on a kept connection, too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// What is sent must be taken within this time. A stream's reader who is that slow comes back and goes
/// on where they were.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// What a shutdown waits for answers under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A signal that every part of a role can wait for: `true` once it is time to end.
pub type Shutdown = watch::Receiver<bool>;

/// Resolves at shutdown, and when the one who could order it is gone.
pub async fn shutdown_requested(mut shutdown: Shutdown) {
    // An error means that the sender was dropped, which ends the role as well.
    let _ = wait::until(&mut shutdown, |end| *end).await;
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
    gate: ListenerPolicy,
    shutdown: Shutdown,
) {
    let connections = GracefulShutdown::new();
    let Ok(address) = listener.local_addr() else {
        tracing::error!("a listener has no address; it serves nobody");
        return;
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown_requested(shutdown.clone()) => break,
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
        let Some(connection) = ends(&stream) else {
            continue;
        };
        let Some(place) = gate.acquire(connection.peer.ip()).map(Arc::new) else {
            tracing::debug!(peer = %connection.peer, "there are too many connections, or too many from there");
            refuse(&stream);
            continue;
        };
        let (gate, router, held) = (gate.clone(), router.clone(), Arc::clone(&place));
        let service = service_fn(move |request| {
            exchange(
                gate.clone(),
                router.clone(),
                Arc::clone(&held),
                request,
                address,
                connection,
            )
        });
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(Polite::new(Box::pin(stream))), service);
        background::spawn(
            "http_connection",
            serve_connection(connections.watch(served), connection, place),
        );
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.shutdown())
        .await
        .is_err()
    {
        tracing::info!(
            "some connections were still open after {} s and are cut",
            DRAIN_TIMEOUT.as_secs()
        );
    }
}

/// Answers one request. Its place is worth nothing to newcomers until all of the answer was handed over.
async fn exchange<S: Send + Sync + 'static>(
    gate: ListenerPolicy,
    router: Router<S>,
    place: Arc<ConnectionPermit>,
    request: http::Request<Incoming>,
    listener: SocketAddr,
    connection: ConnectionInfo,
) -> Result<Response, Infallible> {
    let exchange = place.begin(!request.body().is_end_stream());
    let client = gate.client(connection.client, request.headers());
    let authority = gate.authority(&request, listener, connection.peer.ip());
    let arrival = authority.map(|authority| RequestContext {
        connection: ConnectionInfo {
            client,
            ..connection
        },
        authority,
        place,
    });
    let answer = router.answer(request, arrival).await;
    Ok(hold_until_sent(answer, exchange))
}

/// Serves a connection to its end, or until its place is needed for another one.
async fn serve_connection<E: std::fmt::Display>(
    served: impl Future<Output = Result<(), E>>,
    connection: ConnectionInfo,
    place: Arc<ConnectionPermit>,
) {
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::debug!(%error, peer = %connection.peer, "a connection ended early");
            }
        }
        () = place.evicted() => {
            tracing::debug!(peer = %connection.peer, "connection closed to make room for another one");
        }
    }
}

/// Says so to somebody for whom there is no place, if that can be done at once.
fn refuse(stream: &TcpStream) {
    let text = "too many connections are open, or too many from your address; close some, or try again in a moment";
    let problem = Problem::new(ProblemKind::Unavailable, text).retry_after(1);
    let _ = stream.try_write(&raw(&problem));
}

/// Both ends of a connection; none when the peer is gone already.
fn ends(stream: &TcpStream) -> Option<ConnectionInfo> {
    // Answers are small and written whole; waiting to fill a segment only adds latency.
    stream.set_nodelay(true).ok()?;
    let peer = stream.peer_addr().ok()?;
    Some(ConnectionInfo {
        peer,
        local: stream.local_addr().ok()?,
        client: peer.ip(),
    })
}
