//! Server of a tunnel, at the node: HTTP/2 streams become requests of a router.
//!
//! The router knows HTTP/1.1, so each stream looks like that: with a `Host`, and an extended CONNECT (RFC 8441) as a GET
//! with `Upgrade`. A 101 goes back as a 200, after which the stream is the connection of the other protocol.
//!
//! Each stream counts as a connection in the limits of the tunnel, so that long calls leave room for short ones, such as
//! cancels. A reader of output that is evicted for another call has its answer end early, as its connection would elsewhere:
//! otherwise it would keep its stream, and such readers could take all streams of the tunnel.

use super::{
    CONNECTION_WINDOW, MAX_HEAD_BYTES, MAX_STREAMS, PING_INTERVAL, PING_TIMEOUT, SEND_BUFFER_BYTES,
    STREAM_WINDOW, frames::NonEmptyFrames,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    background,
    http::{
        connection_info::ConnectionInfo,
        http2::make_http1,
        listener_policy::ListenerPolicy,
        response::{self, Body, Response},
        router::Router,
        server::{Shutdown, handle_request, shutdown_requested},
        upgrade::UpgradeSlot,
    },
};
use bytes::Bytes;
use futures_util::{FutureExt as _, TryFutureExt as _, future::BoxFuture};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    ext::Protocol,
    rt::{Read, Write},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use uuid::Uuid;

/// Address of the orchestrator on a tunnel, and of the listener: both have none.
const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// Time that a shutdown waits for calls under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves a router on an upgraded connection until its end, or until `shutdown`. Calls `on_call` at each request. Fails
/// where the connection breaks off.
pub async fn serve<T, S>(
    stream: T,
    router: Router<S>,
    on_call: impl Fn() + Send + 'static,
    shutdown: Shutdown,
) -> hyper::Result<()>
where
    T: Read + Write + Unpin + Send + 'static,
    S: Send + Sync + 'static,
{
    let policy = ListenerPolicy::of_tunnel(MAX_STREAMS as usize);
    let is_ending = shutdown.clone();
    let service = service_fn(move |request| {
        on_call();
        let answered = answer(router.clone(), policy.clone(), request, is_ending.clone());
        answered.map_ok(|answer| answer.map(NonEmptyFrames))
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        // The orchestrator is trusted, and what it sends on a stream that was reset before is no attack.
        .max_local_error_reset_streams(None::<usize>)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .serve_connection(stream, service);
    let mut served = pin!(served);
    tokio::select! {
        served = served.as_mut() => return served,
        () = shutdown_requested(shutdown) => served.as_mut().graceful_shutdown(),
    }
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, served).await;
    // What is left is cut.
    drained.unwrap_or(Ok(()))
}

/// Answers one request.
async fn answer<S: Send + Sync + 'static>(
    router: Router<S>,
    policy: ListenerPolicy,
    mut request: http::Request<Incoming>,
    shutdown: Shutdown,
) -> Result<Response, Infallible> {
    let connection = ConnectionInfo {
        peer: NO_ADDRESS,
        local: NO_ADDRESS,
        client: NO_ADDRESS.ip(),
        is_encrypted: false,
    };
    let Some(permit) = policy.acquire(connection.peer.ip()).map(Arc::new) else {
        return Ok(no_room());
    };
    make_request(&mut request);
    let upgrade = UpgradeSlot::default();
    let handled = handle_request(
        policy,
        router,
        Arc::clone(&permit),
        request,
        NO_ADDRESS,
        connection,
        upgrade.clone(),
    );
    let mut answer = tokio::select! {
        answer = handled => answer?,
        () = permit.evicted() => return Ok(no_room()),
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        *answer.status_mut() = StatusCode::OK;
        background::spawn("tunnel_upgrade", async move {
            tokio::select! {
                () = upgrade.serve() => {}
                () = shutdown_requested(shutdown) => {}
            }
        });
    } else if answer.body().size_hint().exact().is_none() {
        answer = answer.map(|body| {
            let evicted = async move { permit.evicted().await }.fuse().boxed();
            EvictableBody { body, evicted }.boxed_unsync()
        });
    }
    Ok(answer)
}

/// Body of unknown length that ends with an error once its stream is evicted. A reader that stalls is not asked, and keeps
/// its stream until it reads or leaves.
struct EvictableBody {
    body: Body,
    /// Resolves once the stream is evicted, and only once.
    evicted: BoxFuture<'static, ()>,
}

impl HttpBody for EvictableBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.evicted.as_mut().poll(context).is_ready() {
            let error = io::Error::other("the stream was evicted for another call");
            return Poll::Ready(Some(Err(error)));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Answer where too many calls are under way.
fn no_room() -> Response {
    let text = "too many calls are under way on this tunnel; try again in a moment";
    let problem = Problem::new(ProblemKind::Unavailable, text).retry_after(1);
    response::problem(&problem, &Uuid::now_v7().to_string())
}

/// Makes a request on a tunnel one that a router for HTTP/1.1 knows, also where it asks for another protocol.
fn make_request<B>(request: &mut http::Request<B>) {
    make_http1(request);
    let protocol = request.extensions_mut().remove::<Protocol>();
    let protocol = protocol.filter(|_| *request.method() == Method::CONNECT);
    let protocol = protocol.and_then(|name| HeaderValue::from_str(name.as_str()).ok());
    if let Some(protocol) = protocol {
        *request.method_mut() = Method::GET;
        let headers = request.headers_mut();
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}
