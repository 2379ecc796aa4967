//! A protocol behind an upgrade.

use super::*;
use crate::http::{
    host::AllowedHosts,
    listener_policy::ListenerPolicy,
    metrics::MetricsRegistry,
    router::{Router, RouterBuilder},
    server,
};
use http::Method;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);
const ECHO: HeaderValue = HeaderValue::from_static("echo");

struct Role {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

async fn serve<S: Send + Sync + 'static>(state: S, router: RouterBuilder<S>) -> Role {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = MetricsRegistry::default().requests("test");
    let router = router.build(Arc::new(state), requests);
    let (stop, stopped) = watch::channel(false);
    let policy = ListenerPolicy::new(&[], AllowedHosts::default());
    let served = server::serve(listener, router, policy, None, stopped);
    let served = crate::background::spawn("test_server", served);
    Role {
        address,
        stop,
        served,
    }
}

async fn echo() -> Role {
    let echo = async |_, _| {
        Ok(accept(ECHO, async |stream| {
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }))
    };
    serve((), Router::new().route(Method::GET, "/echo", echo)).await
}

/// Connection whose protocol is the echo now.
async fn upgraded(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    // The first bytes of the protocol may come with the head.
    let sent = format!("{head}first");
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("upgrade: echo\r\n"), "{answer}");
    assert_eq!(echoed(&mut stream, 5).await, b"first");
    stream
}

async fn echoed(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let read = timeout(LIMIT, stream.read_exact(&mut bytes)).await;
    read.unwrap().unwrap();
    bytes
}

#[tokio::test]
async fn upgraded_bytes_pass_both_ways() {
    let role = echo().await;
    let mut stream = upgraded(role.address).await;
    let sent: Vec<u8> = (0..1 << 20).map(|n: u32| n as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut back = vec![0; sent.len()];
    let exchanged = async { tokio::join!(write.write_all(&sent), read.read_exact(&mut back)) };
    let (written, got) = timeout(LIMIT, exchanged).await.unwrap();
    written.unwrap();
    got.unwrap();
    assert!(back == sent);
    // The end of one side is that of the other.
    stream.shutdown().await.unwrap();
    assert_eq!(
        timeout(LIMIT, stream.read_u8())
            .await
            .unwrap()
            .unwrap_err()
            .kind(),
        std::io::ErrorKind::UnexpectedEof
    );
}

#[tokio::test]
async fn shutdown_cuts_upgraded_connection() {
    let role = echo().await;
    let mut stream = upgraded(role.address).await;
    role.stop.send_replace(true);
    // Sooner than requests in flight, which get time to end.
    timeout(Duration::from_secs(4), role.served)
        .await
        .unwrap()
        .unwrap();
    assert!(timeout(LIMIT, stream.read_u8()).await.unwrap().is_err());
}
