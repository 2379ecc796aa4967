//! HTTP/2 of a listener that speaks TLS, where the client asks for it (ALPN).
//!
//! The router knows HTTP/1.1, so each stream looks like a request of that. In the [limits](super::connection_limiter) each
//! stream counts as one more connection, so that a client gains nothing by HTTP/2: credentials are shown on each stream,
//! and an account or a network has as many streams as it may have connections. The connection itself counts as waiting
//! for a head while no stream is open, and as authorized once one of its streams is. The eviction of a stream ends its
//! connection; so none is evicted for a further stream of the same connection, which gets a 503.
//!
//! | as with HTTP/1.1 | here |
//! |---|---|
//! | a slow or absent head, an idle connection | a connection without a stream is closed after [`IDLE_TIMEOUT`] |
//! | a slow body | the same: each body has its limits |
//! | a peer that reads nothing | the same, and pings find one that is gone |
//!
//! A reader that stalls one stream, and reads others, is not cut for it. It holds its place in the limits and a few buffers.
//! Windows are small, since what arrives before a handler reads it counts against no memory. A WebSocket needs HTTP/1.1: its
//! clients ask for that by themselves.

use super::{
    connection_info::ConnectionInfo,
    connection_limiter::{ConnectionPermit, InFlightRequest},
    listener_policy::ListenerPolicy,
    response::{self, Response, hold_until_sent, whole},
    router::Router,
    server::{
        HEADER_TIMEOUT, MAX_HEAD_BYTES, Shutdown, WRITE_TIMEOUT, handle_request, shutdown_requested,
    },
    upgrade::UpgradeSlot,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    wait,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use uuid::Uuid;

/// Name of the protocol in a handshake (RFC 9113, section 3.2).
pub(super) const ALPN: &[u8] = b"h2";
/// Concurrent streams of one connection.
const MAX_STREAMS: u32 = 100;
/// Bytes of a body that a client may send before a handler reads them.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of one answer that wait to be sent.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Time for which a connection without a stream is kept, as with HTTP/1.1.
const IDLE_TIMEOUT: Duration = HEADER_TIMEOUT;
/// Interval of pings, also while a stream is open.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection: answers the requests of its streams with a router. From `drain` on, it accepts no further stream.
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
    let streams = Streams::new(permit);
    let open = streams.0.open.subscribe();
    let service = service_fn(move |request| {
        let (router, policy, streams) = (router.clone(), policy.clone(), streams.clone());
        answer(router, policy, streams, request, listener, connection)
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut served = pin!(served);
    tokio::select! {
        served = served.as_mut() => return served,
        () = shutdown_requested(drain.clone()) => {
            served.as_mut().graceful_shutdown();
            return served.await;
        }
        () = idle(open.clone()) => served.as_mut().graceful_shutdown(),
    }
    // A request that has crossed the goodbye is answered, however long that takes. A client that stays without one is cut.
    tokio::select! {
        served = served.as_mut() => served,
        () = shutdown_requested(drain) => served.await,
        () = idle(open) => Ok(()),
    }
}

/// Resolves when no stream has been open for [`IDLE_TIMEOUT`].
async fn idle(mut open: watch::Receiver<usize>) {
    loop {
        // The sender lives as long as the connection.
        let _ = wait::until(&mut open, |count| *count == 0).await;
        let opened = timeout(IDLE_TIMEOUT, wait::until(&mut open, |count| *count > 0));
        if opened.await.is_err() {
            return;
        }
    }
}

/// Answers the request of one stream.
async fn answer<S: Send + Sync + 'static>(
    router: Router<S>,
    policy: ListenerPolicy,
    streams: Streams,
    mut request: http::Request<Incoming>,
    listener: SocketAddr,
    connection: ConnectionInfo,
) -> Result<Response, Infallible> {
    // Before the permit, for which another connection may be evicted, but not this one as idle.
    let guard = streams.enter();
    let permit = policy.acquire_stream(&streams.0.connection, connection.peer.ip());
    let Some(permit) = permit.map(Arc::new) else {
        return Ok(no_room());
    };
    let is_head = *request.method() == Method::HEAD;
    make_http1(&mut request);
    let upgrade = UpgradeSlot::default();
    let handled = handle_request(
        policy, router, permit, request, listener, connection, upgrade,
    );
    let mut answer = handled.await?;
    if is_head {
        answer = without_body(answer);
    }
    Ok(hold_until_sent(answer, guard))
}

/// Answer where too many streams and connections are open.
fn no_room() -> Response {
    let text = "too many requests are under way, in all or from your address; wait for some, or try again in a moment";
    let problem = Problem::new(ProblemKind::Unavailable, text).retry_after(1);
    response::problem(&problem, &Uuid::now_v7().to_string())
}

/// Makes a request of HTTP/2 one that a router for HTTP/1.1 knows.
pub(super) fn make_http1<B>(request: &mut http::Request<B>) {
    *request.version_mut() = Version::HTTP_11;
    let host = request.uri().authority();
    let host = host.and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
}

/// Head of an answer, with the length of its body. With HTTP/1.1 hyper leaves the body out by itself.
fn without_body(mut answer: Response) -> Response {
    if let Some(length) = answer.body().size_hint().exact() {
        let headers = answer.headers_mut();
        headers
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    answer.map(|_| whole(Bytes::new()))
}

/// Open streams of a connection.
#[derive(Clone)]
struct Streams(Arc<StreamTable>);

struct StreamTable {
    connection: Arc<ConnectionPermit>,
    /// Guard of the connection while a stream is open.
    in_flight: Mutex<Option<InFlightRequest>>,
    /// Number of open streams; changed under the lock of `in_flight`.
    open: watch::Sender<usize>,
}

/// Guard of an open stream.
struct OpenStream(Streams);

impl Streams {
    fn new(connection: Arc<ConnectionPermit>) -> Self {
        Self(Arc::new(StreamTable {
            connection,
            in_flight: Mutex::new(None),
            open: watch::Sender::new(0),
        }))
    }

    /// Marks the arrival of a request. Dropping the returned guard marks it as answered.
    fn enter(&self) -> OpenStream {
        let mut in_flight = self.0.in_flight.lock();
        if in_flight.is_none() {
            *in_flight = Some(self.0.connection.begin_request(false));
        }
        self.0.open.send_modify(|count| *count += 1);
        OpenStream(self.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let table = &self.0.0;
        let mut in_flight = table.in_flight.lock();
        table.open.send_modify(|count| *count -= 1);
        if *table.open.borrow() == 0 {
            *in_flight = None;
        }
    }
}

#[cfg(test)]
mod tests;
