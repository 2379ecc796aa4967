//! Both ends of a tunnel, on a pipe.

use super::*;
use crate::http::{
    budget::Account,
    client::Client,
    metrics::MetricsRegistry,
    request::Request,
    response::{self, Reply},
    router::Router,
    upgrade,
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Method, StatusCode, header};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    sync::{Notify, watch},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);
/// Chunk of an answer that never ends.
const DRIP: &[u8] = b"a line of a log\n";

/// What the handlers of the node share.
#[derive(Default)]
struct State {
    /// Calls that wait.
    waiting: AtomicUsize,
    /// Chunks that were sent by answers that never end.
    dripped: AtomicUsize,
    go_on: Notify,
}

/// Reader of output that says nothing more.
async fn follow(_: Arc<State>, request: Request) -> Reply {
    request.authorize(Account::SoleClient)?;
    request.mark_preemptible();
    let nothing = futures_util::stream::pending::<Bytes>();
    Ok(response::stream("text/plain", nothing))
}

fn routes(state: Arc<State>) -> Router<State> {
    let healthz = async |_, _| Ok(response::text(StatusCode::OK, "ok"));
    let wait = async |state: Arc<State>, _: Request| {
        let go_on = state.go_on.notified();
        state.waiting.fetch_add(1, Ordering::SeqCst);
        go_on.await;
        Ok(response::text(StatusCode::OK, "waited"))
    };
    // More than the window of a stream.
    let large = async |_, _| Ok(response::text(StatusCode::OK, "x".repeat(1 << 20)));
    let empty = async |_, _| {
        let chunks = std::iter::repeat_n(Bytes::new(), 200);
        let chunks = chunks.chain([Bytes::from_static(b"end")]);
        let chunks = futures_util::stream::iter(chunks);
        Ok(response::stream("text/plain", chunks))
    };
    let drip = async |state: Arc<State>, _: Request| {
        let chunk = move || {
            state.dripped.fetch_add(1, Ordering::SeqCst);
            Bytes::from_static(DRIP)
        };
        let chunks = futures_util::stream::iter(std::iter::repeat_with(chunk));
        Ok(response::stream("text/plain", chunks))
    };
    let echo = async |_, _| {
        let echo = HeaderValue::from_static("echo");
        Ok(upgrade::accept(echo, async |stream| {
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }))
    };
    Router::new()
        .route(Method::GET, "/healthz", healthz)
        .route(Method::GET, "/wait", wait)
        .route(Method::GET, "/large", large)
        .route(Method::GET, "/empty", empty)
        .route(Method::GET, "/drip", drip)
        .route(Method::GET, "/follow", follow)
        .route(Method::GET, "/echo", echo)
        .build(state, MetricsRegistry::default().requests("test"))
}

/// Client over a tunnel, its connection, and the signal that ends the node.
async fn connected() -> (Client, TunnelConnection, watch::Sender<bool>) {
    connected_to(Arc::default()).await
}

/// The same with this state of the handlers.
async fn connected_to(state: Arc<State>) -> (Client, TunnelConnection, watch::Sender<bool>) {
    let (near, far) = duplex(64 * 1024);
    let (stop, stopped) = watch::channel(false);
    let served = serve(TokioIo::new(far), routes(state), || (), stopped);
    crate::background::spawn("test_node", served);
    let mut connection = open(near).await.unwrap();
    connection.check().await.unwrap();
    let link = TunnelLink::default();
    connection.attach(&link, 1);
    (Client::over_tunnel(link), connection, stop)
}

/// Keeps a connection to its end.
async fn run(mut connection: TunnelConnection) -> Option<String> {
    let cause = connection.ended().await;
    connection.drain().await;
    cause
}

fn url(path: &str) -> String {
    format!("{TUNNEL_URL}{path}")
}

#[tokio::test]
async fn calls_pass_until_connection_ends() {
    let (client, connection, _stop) = connected().await;
    let ended = crate::background::spawn("test_tunnel", run(connection));
    let call = client.call(Method::GET, url("/healthz"));
    assert_eq!(call.probe(LIMIT).await.unwrap().body_start, "ok");
    let unknown = client.call(Method::GET, url("/nothing")).done().await;
    assert_eq!(unknown.unwrap_err().status(), Some(StatusCode::NOT_FOUND));
    ended.abort();
    assert!(ended.await.unwrap_err().is_cancelled());
    let broken = async {
        loop {
            let call = client.call(Method::GET, url("/healthz"));
            if let Err(error) = call.done().await {
                return error;
            }
        }
    };
    let error = timeout(LIMIT, broken).await.unwrap();
    assert!(error.to_string().contains("no answer from"), "{error}");
}

#[tokio::test]
async fn many_calls_wait_at_a_time() {
    let state = Arc::<State>::default();
    let (client, connection, _stop) = connected_to(Arc::clone(&state)).await;
    crate::background::spawn("test_tunnel", run(connection));
    let start = || {
        let calls = (0..200).map(|_| client.call(Method::GET, url("/wait")).bytes());
        crate::background::spawn("test_calls", join_all(calls))
    };
    let all_wait = async |total: usize| {
        let reached = async {
            while state.waiting.load(Ordering::SeqCst) < total {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, reached).await.unwrap();
        let call = client.call(Method::GET, url("/healthz"));
        assert_eq!(call.probe(LIMIT).await.unwrap().status, StatusCode::OK);
    };
    let dropped = start();
    all_wait(200).await;
    dropped.abort();
    assert!(dropped.await.is_err_and(|error| error.is_cancelled()));
    // There is room for as many again.
    let answered = start();
    all_wait(400).await;
    state.go_on.notify_waiters();
    let answers = timeout(LIMIT, answered).await.unwrap().unwrap();
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn peer_with_few_streams_is_left() {
    let (near, far) = duplex(64 * 1024);
    let service = service_fn(|_: http::Request<Incoming>| {
        ready(Ok::<_, Infallible>(response::text(StatusCode::OK, "ok")))
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(1)
        .serve_connection(TokioIo::new(far), service);
    crate::background::spawn("test_node", served);
    let mut connection = open(near).await.unwrap();
    let left = async {
        loop {
            if let Err(reason) = connection.check().await {
                return reason;
            }
        }
    };
    let reason = timeout(LIMIT, left).await.unwrap();
    assert!(reason.contains("fewer than 16"), "{reason}");
}

#[tokio::test]
async fn shutdown_waits_for_calls_under_way() {
    let state = Arc::<State>::default();
    let (client, connection, stop) = connected_to(Arc::clone(&state)).await;
    crate::background::spawn("test_tunnel", run(connection));
    let call = client.call(Method::GET, url("/wait"));
    let call = crate::background::spawn("test_call", call.probe(LIMIT));
    let waits = async {
        while state.waiting.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, waits).await.unwrap();
    stop.send_replace(true);
    // Further ones are refused, without an end of the one before.
    let refused = async {
        while client
            .call(Method::GET, url("/healthz"))
            .done()
            .await
            .is_ok()
        {}
    };
    timeout(LIMIT, refused).await.unwrap();
    state.go_on.notify_waiters();
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.body_start, "waited");
    // The node lets go of the signal once it has ended.
    timeout(LIMIT, stop.closed()).await.unwrap();
}

#[tokio::test]
async fn stalled_readers_hold_up_no_other_call() {
    let (client, connection, _stop) = connected().await;
    crate::background::spawn("test_tunnel", run(connection));
    let stalled = (0..50).map(|_| client.call(Method::GET, url("/large")).bytes());
    let stalled = timeout(LIMIT, join_all(stalled)).await.unwrap();
    assert!(stalled.iter().all(Result::is_ok));
    let mut read = client
        .call(Method::GET, url("/large"))
        .bytes()
        .await
        .unwrap();
    let mut length = 0;
    while let Some(chunk) = timeout(LIMIT, read.next()).await.unwrap().unwrap() {
        length += chunk.len();
    }
    assert_eq!(length, 1 << 20);
    drop(stalled);
}

#[tokio::test]
async fn stalled_readers_of_small_frames_end_no_tunnel() {
    // Their frames would cost more than half of a window without room for them.
    const STREAMS: usize = 20;
    let state = Arc::<State>::default();
    let (client, connection, _stop) = connected_to(Arc::clone(&state)).await;
    crate::background::spawn("test_tunnel", run(connection));
    let stalled = (0..STREAMS).map(|_| client.call(Method::GET, url("/drip")).bytes());
    let mut stalled = timeout(LIMIT, join_all(stalled)).await.unwrap();
    let full = STREAMS * (STREAM_WINDOW as usize / DRIP.len());
    let all_full = async {
        while state.dripped.load(Ordering::SeqCst) < full {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, all_full).await.unwrap();
    for _ in 0..100 {
        let call = client.call(Method::GET, url("/healthz"));
        assert_eq!(call.probe(LIMIT).await.unwrap().status, StatusCode::OK);
    }
    for reader in &mut stalled {
        let next = reader.as_mut().unwrap().next().await;
        assert_eq!(next.unwrap().unwrap(), DRIP);
    }
}

#[tokio::test]
async fn evicted_reader_leaves_its_stream() {
    let (client, connection, _stop) = connected().await;
    crate::background::spawn("test_tunnel", run(connection));
    let open = async || {
        let call = client.call(Method::GET, url("/follow")).bytes();
        timeout(LIMIT, call).await.unwrap().unwrap()
    };
    // As many as may be in flight: seven eighths of all streams.
    let mut readers = Vec::new();
    for _ in 0..MAX_STREAMS / 8 * 7 {
        readers.push(open().await);
    }
    let _one_more = open().await;
    let ended = timeout(LIMIT, readers[0].next()).await;
    ended.unwrap().unwrap_err();
}

#[tokio::test]
async fn empty_chunks_end_no_tunnel() {
    let (client, connection, _stop) = connected().await;
    crate::background::spawn("test_tunnel", run(connection));
    let call = client.call(Method::GET, url("/empty"));
    let mut read = timeout(LIMIT, call.bytes()).await.unwrap().unwrap();
    let chunk = timeout(LIMIT, read.next()).await.unwrap().unwrap();
    assert_eq!(chunk.unwrap(), "end");
    let call = client.call(Method::GET, url("/healthz"));
    assert_eq!(call.probe(LIMIT).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn protocol_changes_over_extended_connect() {
    let (client, connection, _stop) = connected().await;
    crate::background::spawn("test_tunnel", run(connection));
    let request = http::Request::get(url("/echo"))
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "echo")
        .body(crate::http::client::whole(Bytes::new()))
        .unwrap();
    let answer = client.forward(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    let read = timeout(LIMIT, stream.read_exact(&mut echoed)).await;
    read.unwrap().unwrap();
    assert_eq!(&echoed, b"hello");
    stream.shutdown().await.unwrap();
    let rest = timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
    assert_eq!(rest.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn garbage_fails_the_check() {
    let (near, mut far) = duplex(64 * 1024);
    far.write_all(b"HTTP/1.1 200 OK\r\n\r\nno HTTP/2 at all, but long enough to be a frame")
        .await
        .unwrap();
    let mut connection = open(near).await.unwrap();
    connection.check().await.unwrap_err();
}

#[tokio::test]
async fn silent_peer_fails_the_check() {
    let (near, _far) = duplex(64 * 1024);
    tokio::time::pause();
    let mut connection = open(near).await.unwrap();
    connection.check().await.unwrap_err();
}
