//! Listener: from an address to connections, and a graceful shutdown.
//!
//! A slow client is disconnected: while it sends a head, while it sends a body
//! ([`request`](super::request)), and while it reads an answer. Where the listener is full, idle
//! connections are closed for new ones ([`connection_limiter`](super::connection_limiter)). Bytes that are
//! no HTTP request get hyper's own answer, a 400 or 431 without a body.
//!
//! A listener speaks TLS or plain HTTP; the [`handshake`](super::handshake) counts as a slow head. Over TLS a client may choose
//! [HTTP/2](super::http2), where the listener offers it.

use super::{
    connection_info::ConnectionInfo,
    connection_limiter::ConnectionPermit,
    handshake, http2,
    listener_policy::ListenerPolicy,
    request::RequestContext,
    response::{Response, hold_until_sent},
    router::Router,
    upgrade::UpgradeSlot,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    background,
    tls::ServerTls,
    wait,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::header;
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::server::TlsStream;
use uuid::Uuid;

/// Time for the head of a request to arrive, and for a TLS handshake; also how long an idle connection is kept.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the client to read what is sent. The reader of a stream that is slower reconnects and resumes.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest head of a request, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Time that a shutdown waits for requests in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a shutdown waits for connections that it has cut.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted, mostly for lack of file descriptors.
pub(super) const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Shutdown signal that every part of a role can wait for: `true` once the role has to end.
pub type Shutdown = watch::Receiver<bool>;

/// Resolves at shutdown, and when the sender of the signal is dropped.
pub async fn shutdown_requested(mut shutdown: Shutdown) {
    // An error means that the sender was dropped, which ends the role as well.
    let _ = wait::until(&mut shutdown, |end| *end).await;
}

/// Binds `address`; port 0 asks the system for a free one. The error names `flag`, which sets the address.
pub async fn bind(address: SocketAddr, flag: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("can't listen on {address}: {error}; choose another address with {flag} (port 0 takes a free one)"),
        )
    })
}

/// Serves connections until `shutdown`, then lets requests in flight finish. With `tls`, plain HTTP is answered with
/// advice only.
pub async fn serve<S: Send + Sync + 'static>(
    listener: TcpListener,
    router: Router<S>,
    policy: ListenerPolicy,
    tls: Option<ServerTls>,
    shutdown: Shutdown,
) {
    let (drain, is_draining) = watch::channel(false);
    let (cut, is_cut) = watch::channel(false);
    let Ok(address) = listener.local_addr() else {
        tracing::error!("listener has no address and serves no requests");
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
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        let Some(connection) = connection_info(&stream, tls.is_some()) else {
            continue;
        };
        let Some(permit) = policy.acquire(connection.peer.ip()).map(Arc::new) else {
            tracing::debug!(peer = %connection.peer, "connection refused: too many are open");
            // A client that speaks TLS would not understand the answer.
            if tls.is_none() {
                reject(&stream);
            }
            continue;
        };
        let (router, policy, tls) = (router.clone(), policy.clone(), tls.clone());
        let (drain, held) = (is_draining.clone(), Arc::clone(&permit));
        // Each in a box of its own, so that a plain connection has not the size of an encrypted one.
        let served: BoxFuture<'static, hyper::Result<()>> = match tls {
            None => serve_stream(stream, router, policy, held, address, connection, drain).boxed(),
            Some(tls) => async move {
                match handshake::accept(stream, &tls, connection, drain.clone()).await {
                    Some(stream) => {
                        serve_encrypted(stream, router, policy, held, address, connection, drain)
                            .await
                    }
                    None => Ok(()),
                }
            }
            .boxed(),
        };
        background::spawn(
            "http_connection",
            serve_until_cut(serve_connection(served, connection, permit), is_cut.clone()),
        );
    }
    drop((listener, is_draining));
    drain.send_replace(true);
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, drain.closed()).await;
    if drained.is_err() {
        let waited_seconds = DRAIN_TIMEOUT.as_secs();
        tracing::info!(waited_seconds, "open connections cut at shutdown");
        drop(is_cut);
        cut.send_replace(true);
        // Their answers end now, and record that before the role does.
        let _ = tokio::time::timeout(CUT_TIMEOUT, cut.closed()).await;
    }
}

/// Serves an encrypted connection, by the protocol that its client has chosen.
async fn serve_encrypted<S: Send + Sync + 'static>(
    stream: TlsStream<TcpStream>,
    router: Router<S>,
    policy: ListenerPolicy,
    permit: Arc<ConnectionPermit>,
    listener: SocketAddr,
    connection: ConnectionInfo,
    drain: Shutdown,
) -> hyper::Result<()> {
    if handshake::is_http2(&stream) {
        return http2::serve_stream(stream, router, policy, permit, listener, connection, drain)
            .await;
    }
    serve_stream(stream, router, policy, permit, listener, connection, drain).await
}

/// Serves a connection until it ends, or all are cut.
async fn serve_until_cut(served: impl Future<Output = ()>, is_cut: Shutdown) {
    tokio::select! {
        () = served => {}
        () = shutdown_requested(is_cut.clone()) => {}
    }
}

/// Serves a connection: answers its requests with a router, and then speaks the protocol to which one of them has
/// upgraded it. From `drain` on, it answers no further request, and drops that protocol.
pub(super) async fn serve_stream<T, S>(
    stream: T,
    router: Router<S>,
    policy: ListenerPolicy,
    permit: Arc<ConnectionPermit>,
    listener: SocketAddr,
    connection: ConnectionInfo,
    drain: Shutdown,
) -> hyper::Result<()>
where
    T: AsyncRead + AsyncWrite + Send + 'static,
    S: Send + Sync + 'static,
{
    let upgrade = UpgradeSlot::default();
    let accepted = upgrade.clone();
    let service = service_fn(move |request| {
        let (policy, router, permit) = (policy.clone(), router.clone(), Arc::clone(&permit));
        let upgrade = accepted.clone();
        handle_request(
            policy, router, permit, request, listener, connection, upgrade,
        )
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .with_upgrades();
    let mut served = pin!(served);
    tokio::select! {
        served = served.as_mut() => served?,
        () = shutdown_requested(drain.clone()) => {
            served.as_mut().graceful_shutdown();
            served.await?;
        }
    }
    tokio::select! {
        () = upgrade.serve() => {}
        () = shutdown_requested(drain) => {}
    }
    Ok(())
}

/// Answers one request. Its connection is not evicted for another one before the whole answer was handed over.
pub(super) async fn handle_request<S: Send + Sync + 'static>(
    policy: ListenerPolicy,
    router: Router<S>,
    permit: Arc<ConnectionPermit>,
    mut request: http::Request<Incoming>,
    listener: SocketAddr,
    connection: ConnectionInfo,
    upgrade: UpgradeSlot,
) -> Result<Response, Infallible> {
    let wants_upgrade = request.headers().contains_key(header::UPGRADE);
    let upgraded = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
    let in_flight = permit.begin_request(!request.body().is_end_stream());
    let client = policy.client_address(connection.client, request.headers());
    let authority = policy.authority(&request, listener, connection.peer.ip());
    let is_encrypted = policy.is_encrypted(
        connection.peer.ip(),
        connection.is_encrypted,
        request.headers(),
    );
    let context = authority.map(|authority| RequestContext {
        connection: ConnectionInfo {
            client,
            is_encrypted,
            ..connection
        },
        authority,
        permit,
    });
    let mut answer = router.answer(request, context).await;
    Ok(match upgrade.take_over(&mut answer, upgraded, in_flight) {
        Some(in_flight) => hold_until_sent(answer, in_flight),
        None => answer,
    })
}

/// Serves a connection until it ends or is evicted for another one.
async fn serve_connection<E: std::fmt::Display>(
    served: impl Future<Output = Result<(), E>>,
    connection: ConnectionInfo,
    permit: Arc<ConnectionPermit>,
) {
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::debug!(%error, peer = %connection.peer, "connection ended early");
            }
        }
        () = permit.evicted() => {
            tracing::debug!(peer = %connection.peer, "connection closed to make room for another one");
        }
    }
}

/// Answers 503 to a connection over the limit, if that takes no waiting; it is closed either way.
fn reject(stream: &TcpStream) {
    let text = "too many connections are open, in all or from your address; close some, or try again in a moment";
    let problem = Problem::new(ProblemKind::Unavailable, text);
    // A client that is gone already needs no answer.
    let _ = stream.try_write(raw_answer(&problem, "retry-after: 1\r\n").as_bytes());
}

/// Answer that closes the connection, with these header lines, for a connection on which no request is read.
pub(super) fn raw_answer(problem: &Problem, headers: &str) -> String {
    let (status, title) = (problem.kind.status(), problem.kind.title());
    let id = Uuid::now_v7().to_string();
    // A problem body is made of strings and numbers, which always have a JSON form.
    let body = serde_json::to_string(&problem.body(&id)).unwrap_or_default();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n{headers}\
         content-length: {length}\r\nx-request-id: {id}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Both ends of a connection; `None` when the peer is gone already.
fn connection_info(stream: &TcpStream, is_encrypted: bool) -> Option<ConnectionInfo> {
    // Answers are small and written whole; waiting to fill a segment only adds latency.
    stream.set_nodelay(true).ok()?;
    let peer = stream.peer_addr().ok()?;
    Some(ConnectionInfo {
        peer,
        local: stream.local_addr().ok()?,
        client: peer.ip(),
        is_encrypted,
    })
}
