//! Server of the proxy: connections of one sandbox, and the requests on them.
//!
//! Every connection has a place among those of its sandbox and of its node, from its begin to the end of its tunnel. One
//! without a place is told so at once. A head that is slow or large ends its connection, as everywhere.

use super::{
    FEW_CONNECTIONS, MAX_CONNECTIONS, Proxy,
    activity::IDLE_TIMEOUT,
    exchange::exchange,
    notices::Asked,
    refusal::{Refusal, accept_of},
    request::{Destination, Target, Wanted, wanted},
    tunnel::PendingTunnel,
};
use crate::{
    background,
    http::{
        response::{Body, Response},
        server::{Shutdown, shutdown_requested},
    },
};
use bytes::Bytes;
use http::HeaderValue;
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::{convert::Infallible, io, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;

/// Time for the head of a request; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request, and most bytes of an answer that wait for a client. In bytes.
const MAX_HEAD_BYTES: usize = 24 * 1024;
/// Pause after a connection could not be accepted, mostly for lack of file descriptors.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Time for a connection without a place to read its answer.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// Answer to such a connection.
const BUSY: &str = "cynode: too many connections to the proxy are open, of this sandbox or of all on this node; close some, \
                    and try again\n";

/// Connection of a client, as hyper serves it.
pub(super) type ClientIo = TokioIo<Pin<Box<TimeoutStream<TcpStream>>>>;

/// Tunnel of a connection, as soon as one was promised.
type TunnelSlot = Arc<Mutex<Option<PendingTunnel>>>;

/// Serves the connections of a listener until `stopped`, and then cuts them.
pub(super) async fn serve_listener(proxy: Arc<Proxy>, listener: TcpListener, stopped: Shutdown) {
    tokio::select! {
        never = accept_all(&proxy, &listener, &stopped) => match never {},
        () = shutdown_requested(stopped.clone()) => {}
    }
}

async fn accept_all(proxy: &Arc<Proxy>, listener: &TcpListener, stopped: &Shutdown) -> Infallible {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "connection to the proxy not accepted");
                sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        let Some(place) = proxy.place() else {
            // No faster than requests: those that wait cost nothing here.
            proxy.rate.wait().await;
            // One that is not told is closed: descriptors are the node's, too.
            if let Ok(turn) = Arc::clone(&proxy.turned_away).try_acquire_owned() {
                background::spawn("egress_turn_away", async move {
                    let _turn = turn;
                    turn_away(stream).await;
                });
            }
            continue;
        };
        let (proxy, stopped) = (Arc::clone(proxy), stopped.clone());
        background::spawn("egress_connection", async move {
            let _place = place;
            tokio::select! {
                () = serve_connection(&proxy, stream) => {}
                () = shutdown_requested(stopped) => {}
            }
        });
    }
}

/// Tells a client that there is no place for its connection.
async fn turn_away(mut stream: TcpStream) {
    let length = BUSY.len();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{BUSY}"
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // What it has sent is read, since unread bytes would reset the connection before it reads the answer.
        let mut request = [0; 4096];
        while stream.read(&mut request).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that does not read learns it from the end of the connection.
    let _ = timeout(TURN_AWAY_TIMEOUT, told).await;
}

/// Places of a connection; free again when dropped.
type Place = [OwnedSemaphorePermit; 2];

impl Proxy {
    /// Place for one more connection; `None` where there is none.
    fn place(&self) -> Option<Place> {
        let own = Arc::clone(&self.room).try_acquire_owned().ok()?;
        let used = MAX_CONNECTIONS.saturating_sub(self.room.available_permits());
        if used > FEW_CONNECTIONS && self.node_room.available_permits() <= self.reserve {
            return None;
        }
        let of_node = Arc::clone(&self.node_room).try_acquire_owned().ok()?;
        Some([own, of_node])
    }
}

/// Answers the requests on a connection, and then serves the tunnel that one of them has opened.
async fn serve_connection(proxy: &Arc<Proxy>, stream: TcpStream) {
    // What is passed on is whole as it is.
    let _ = stream.set_nodelay(true);
    let tunnel = TunnelSlot::default();
    let (of_requests, promise) = (Arc::clone(proxy), Arc::clone(&tunnel));
    let service = service_fn(move |request| {
        let (proxy, tunnel) = (Arc::clone(&of_requests), Arc::clone(&promise));
        async move { Ok::<_, Infallible>(respond(&proxy, request, &tunnel).await) }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(IDLE_TIMEOUT));
    let stream: ClientIo = TokioIo::new(Box::pin(stream));
    let served = server_builder()
        .serve_connection(stream, service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "connection to the proxy ended early");
    }
    let promised = tunnel.lock().take();
    if let Some(promised) = promised {
        promised.run(proxy).await;
    }
}

/// HTTP of a client's connection, within its limits.
pub(super) fn server_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        // A client may have sent all that it will.
        .half_close(true);
    builder
}

/// Answers one request.
async fn respond(proxy: &Proxy, request: http::Request<Incoming>, tunnel: &TunnelSlot) -> Response {
    proxy.rate.wait().await;
    let accept = accept_of(request.headers());
    let asked = Asked::of(request.uri());
    match decide_and_answer(proxy, request, tunnel).await {
        Ok(answer) => answer,
        Err(refusal) => proxy.refuse(&asked, &refusal, accept.as_ref()).await,
    }
}

impl Proxy {
    /// Counts and reports that a request may go to its host, as one may whose host could not be reached.
    pub(super) async fn let_through<T>(
        &self,
        target: &Target,
        connected: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        if !matches!(&connected, Err(refusal) if refusal.is_by_rule) {
            self.meter.count_allowed();
            self.notices.allowed(target).await;
        }
        connected
    }

    /// Answer to a request that is not passed on, which is counted and reported.
    pub(super) async fn refuse(
        &self,
        asked: &Asked,
        refusal: &Refusal,
        accept: Option<&HeaderValue>,
    ) -> Response {
        if refusal.is_by_rule {
            self.meter.count_refused(refusal);
            // Not more: a job could repeat it.
            tracing::debug!(
                reason = refusal.detail,
                "request of a job to the proxy refused"
            );
        }
        self.notices.not_passed(asked, refusal).await;
        refusal.answer(accept)
    }
}

async fn decide_and_answer(
    proxy: &Proxy,
    mut request: http::Request<Incoming>,
    tunnel: &TunnelSlot,
) -> Result<Response, Refusal> {
    let wanted = wanted(request.method(), request.uri(), request.headers())?;
    let (Wanted::Tunnel(target) | Wanted::Exchange(target, _)) = &wanted;
    proxy.check(target)?;
    let connected = proxy.route.connect(target, &proxy.addresses).await;
    let server = proxy.let_through(target, connected).await?;
    match wanted {
        Wanted::Exchange(target, path) => {
            let to = Destination {
                target: &target,
                path,
                is_encrypted: false,
            };
            exchange(proxy, request, server, to).await
        }
        Wanted::Tunnel(target) => {
            let client = upgrade::on(&mut request);
            *tunnel.lock() = Some(PendingTunnel {
                client,
                server,
                target,
            });
            let empty: Body = Empty::<Bytes>::new()
                .map_err(|never: Infallible| match never {})
                .boxed_unsync();
            Ok(http::Response::new(empty))
        }
    }
}
