//! Both ends of a tunnel, on a pipe.

use super::*;
use crate::http::{
    client::Client, metrics::MetricsRegistry, request::Request, response, router::Router, upgrade,
};
use futures_util::future::join_all;
use http::{HeaderValue, Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    sync::{Notify, watch},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);

/// What the handlers of the node share.
#[derive(Default)]
struct State {
    go_on: Notify,
}

fn routes() -> Router<State> {
    let healthz = async |_, _| Ok(response::text(StatusCode::OK, "ok"));
    let wait = async |state: Arc<State>, _: Request| {
        state.go_on.notified().await;
        Ok(response::text(StatusCode::OK, "waited"))
    };
    // More than the window of a stream.
    let large = async |_, _| Ok(response::text(StatusCode::OK, "x".repeat(1 << 20)));
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
        .route(Method::GET, "/echo", echo)
        .build(
            Arc::new(State::default()),
            MetricsRegistry::default().requests("test"),
        )
}

/// Client over a tunnel, its connection, and the signal that ends the node.
async fn connected() -> (Client, TunnelConnection, watch::Sender<bool>) {
    let (near, far) = duplex(64 * 1024);
    let (stop, stopped) = watch::channel(false);
    let served = serve(TokioIo::new(far), routes(), || (), stopped);
    crate::background::spawn("test_node", served);
    let mut connection = open(near).await.unwrap();
    connection.check().await.unwrap();
    let link = TunnelLink::default();
    connection.attach(&link, 1);
    (Client::over_tunnel(link), connection, stop)
}

fn url(path: &str) -> String {
    format!("{TUNNEL_URL}{path}")
}

#[tokio::test]
async fn calls_pass_until_connection_ends() {
    let (client, connection, _stop) = connected().await;
    let ended = crate::background::spawn("test_tunnel", connection.ended());
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
    let (client, connection, _stop) = connected().await;
    crate::background::spawn("test_tunnel", connection.ended());
    let waiting = (0..200).map(|_| client.call(Method::GET, url("/wait")).bytes());
    let waiting = crate::background::spawn("test_calls", join_all(waiting));
    let call = client.call(Method::GET, url("/healthz"));
    assert_eq!(call.probe(LIMIT).await.unwrap().status, StatusCode::OK);
    waiting.abort();
    let call = client.call(Method::GET, url("/healthz"));
    assert_eq!(call.probe(LIMIT).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn stalled_readers_hold_up_no_other_call() {
    let (client, connection, _stop) = connected().await;
    crate::background::spawn("test_tunnel", connection.ended());
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
async fn protocol_changes_over_extended_connect() {
    let (client, connection, _stop) = connected().await;
    crate::background::spawn("test_tunnel", connection.ended());
    let request = http::Request::get(url("/echo"))
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "echo")
        .body(crate::http::client::whole(bytes::Bytes::new()))
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
