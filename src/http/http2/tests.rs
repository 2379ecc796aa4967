//! Requests over HTTP/2, on a pipe.

use super::*;
use crate::http::{
    client::CallBody, host::AllowedHosts, metrics::MetricsRegistry, request::Request,
    response::Reply,
};
use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::client::conn::http2 as client;
use tokio::{io::duplex, task::JoinHandle};

/// Time limit for what ends by itself; the clock of the tests jumps ahead.
const LIMIT: Duration = Duration::from_secs(300);
/// Time that an answer of `/wait` takes: longer than an idle connection is kept.
const WAIT: Duration = Duration::from_secs(60);

/// One end of a pipe.
struct Peer {
    sender: client::SendRequest<CallBody>,
    served: JoinHandle<hyper::Result<()>>,
    stop: watch::Sender<bool>,
}

async fn echo(_: Arc<()>, mut request: Request) -> Reply {
    let bytes = request.bytes().await?;
    Ok(response::raw_json(bytes))
}

fn routes() -> Router<()> {
    let hello = async |_, _| Ok(response::text(StatusCode::OK, "hello"));
    let base = async |_, request: Request| {
        let base = request.base_url().unwrap_or_default();
        Ok(response::text(StatusCode::OK, base))
    };
    let wait = async |_, _| {
        tokio::time::sleep(WAIT).await;
        Ok(response::text(StatusCode::OK, "waited"))
    };
    Router::new()
        .route(Method::GET, "/hello", hello)
        .route(Method::GET, "/base", base)
        .route(Method::POST, "/echo", echo)
        .route(Method::GET, "/wait", wait)
        .build(Arc::new(()), MetricsRegistry::default().requests("test"))
}

fn policy() -> ListenerPolicy {
    ListenerPolicy::new(&[], AllowedHosts::default())
}

async fn connected(policy: &ListenerPolicy) -> Peer {
    let (near, far) = duplex(64 * 1024);
    let address: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let connection = ConnectionInfo {
        peer: address,
        local: address,
        client: address.ip(),
        is_encrypted: true,
    };
    let permit = Arc::new(policy.acquire(address.ip()).unwrap());
    let (stop, stopped) = watch::channel(false);
    let policy = policy.clone();
    let served = serve_stream(far, routes(), policy, permit, address, connection, stopped);
    let served = crate::background::spawn("test_server", served);
    let handshake =
        client::handshake::<_, _, CallBody>(TokioExecutor::new(), TokioIo::new(near)).await;
    let (sender, driver) = handshake.unwrap();
    crate::background::spawn("test_client", driver);
    Peer {
        sender,
        served,
        stop,
    }
}

fn request(method: Method, path: &str, body: &[u8]) -> http::Request<CallBody> {
    http::Request::builder()
        .method(method)
        .uri(format!("https://box.example{path}"))
        .body(crate::http::client::whole(Bytes::copy_from_slice(body)))
        .unwrap()
}

impl Peer {
    /// Sends a request; the status, the announced length and the body of its answer.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> (StatusCode, Option<String>, Bytes) {
        let mut sender = self.sender.clone();
        let answer = sender.send_request(request(method, path, body)).await;
        let answer = answer.unwrap();
        let length = answer.headers().get(header::CONTENT_LENGTH);
        let length = length.map(|length| length.to_str().unwrap().to_owned());
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, length, bytes)
    }
}

#[tokio::test]
async fn streams_are_requests_of_the_router() {
    let peer = connected(&policy()).await;
    let (status, _, body) = peer.call(Method::GET, "/base", b"").await;
    assert_eq!(
        (status, &body[..]),
        (StatusCode::OK, &b"https://box.example"[..])
    );
    // More than the window of a stream.
    let sent = vec![b'7'; 300_000];
    let (status, _, body) = peer.call(Method::POST, "/echo", &sent).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body == sent);
    let (status, ..) = peer.call(Method::GET, "/nothing", b"").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, length, body) = peer.call(Method::HEAD, "/hello", b"").await;
    assert_eq!((status, length.as_deref()), (StatusCode::OK, Some("5")));
    assert!(body.is_empty());
}

#[tokio::test(start_paused = true)]
async fn streams_of_network_are_limited() {
    let policy = policy();
    let peer = connected(&policy).await;
    let calls = (0..40).map(|_| peer.call(Method::GET, "/wait", b""));
    let answers = join_all(calls).await;
    let refused = answers
        .iter()
        .filter(|(status, ..)| *status == StatusCode::SERVICE_UNAVAILABLE)
        .count();
    // The connection is one of the 32 that an unknown network may have.
    assert_eq!(refused, 40 - 31);
    // There is room again.
    let (status, ..) = peer.call(Method::GET, "/hello", b"").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_closed() {
    let peer = connected(&policy()).await;
    let (status, ..) = peer.call(Method::GET, "/wait", b"").await;
    assert_eq!(status, StatusCode::OK, "not while a stream is open");
    // Whether that is an error does not matter: both ends close at once.
    let _ = timeout(LIMIT, peer.served).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn client_without_a_word_is_closed() {
    let (_near, far) = duplex(64 * 1024);
    let address: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let connection = ConnectionInfo {
        peer: address,
        local: address,
        client: address.ip(),
        is_encrypted: true,
    };
    let policy = policy();
    let permit = Arc::new(policy.acquire(address.ip()).unwrap());
    let (_stop, stopped) = watch::channel(false);
    let served = serve_stream(far, routes(), policy, permit, address, connection, stopped);
    // Whether that is an error does not matter.
    let _ = timeout(LIMIT, served).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn shutdown_finishes_open_streams() {
    let peer = connected(&policy()).await;
    let call = peer.call(Method::GET, "/wait", b"");
    let stop = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        peer.stop.send_replace(true);
    };
    let ((status, ..), ()) = tokio::join!(call, stop);
    assert_eq!(status, StatusCode::OK);
    let served = timeout(LIMIT, peer.served).await;
    served.unwrap().unwrap().unwrap();
}
