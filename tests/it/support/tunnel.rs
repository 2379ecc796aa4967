//! Tunnels that a test opens in place of a node: well, or frame by frame.

use super::{Cluster, DEADLINE, Node, Orchestrator, raw::connect_to, wire::Wire};
use cynode::{
    http::{
        metrics::MetricsRegistry,
        response,
        router::Router,
        tunnel::{self, DialIdentity, Dialer},
    },
    tls::Trust,
};
use http::{Method, StatusCode};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
};
use tokio::{runtime::Runtime, sync::watch, task::JoinHandle};

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Types of frames (RFC 9113, section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
/// Flag of settings and pings that are answers.
const ACK: u8 = 1;
/// Flags of frames that end their stream, and of those that end its head.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEAD: u8 = 4;

impl Cluster {
    /// An orchestrator and a node that listens nowhere, and the wire by which it reaches the orchestrator.
    pub(crate) fn start_dialed() -> (Self, Wire) {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = Orchestrator::start(home.path(), &[]);
        let wire = Wire::to(orchestrator.control.address());
        let node = Node::dial(home.path(), "box", &wire.url, &[]);
        (Self::of(home, orchestrator, node), wire)
    }

    /// The same with a node that also listens.
    pub(crate) fn start_with_both_ways() -> (Self, Wire) {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = Orchestrator::start(home.path(), &[]);
        let wire = Wire::to(orchestrator.control.address());
        let node = Node::start(home.path(), "box", &wire.url, &["--connect", "auto"]);
        (Self::of(home, orchestrator, node), wire)
    }
}

/// Asks for a tunnel with this token: the connection, and the head of the answer. What follows was not read.
pub(crate) fn ask(orchestrator: &Orchestrator, token: &str) -> (TcpStream, String) {
    let mut stream = connect_to(&orchestrator.control);
    let request = format!(
        "GET /v1/nodes/tunnel HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nConnection: upgrade\r\n\
         Upgrade: cynode-tunnel\r\n\r\n",
        orchestrator.control.address()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut stream);
    (stream, head)
}

/// Reads a head byte by byte, so that nothing behind it is lost.
fn read_head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Nodes whose Worker API only answers that it is alive, on tunnels.
pub(crate) struct TunnelServer {
    /// Runs the tunnels.
    pub(crate) runtime: Runtime,
    url: String,
}

impl TunnelServer {
    /// Server of tunnels to this orchestrator.
    pub(crate) fn to(orchestrator: &Orchestrator) -> Self {
        Self {
            runtime: Runtime::new().unwrap(),
            url: format!("{}/v1/nodes/tunnel", orchestrator.control_url),
        }
    }

    /// Opens a tunnel with this token; what is returned ends with the tunnel.
    pub(crate) fn serve(&self, token: &str) -> JoinHandle<()> {
        let (url, token) = (self.url.clone(), token.to_owned());
        self.runtime.spawn(async move {
            let identity = DialIdentity {
                token: &token,
                instance: None,
            };
            let stream = Dialer::new(Trust::default()).dial(&url, identity).await;
            let healthz = async |_, _| Ok(response::text(StatusCode::OK, "ok"));
            let router = Router::new()
                .route(Method::GET, "/healthz", healthz)
                .build(Arc::new(()), MetricsRegistry::default().requests("test"));
            let (_stop, stopped) = watch::channel(false);
            let _ = tunnel::serve(stream.unwrap(), router, || (), stopped).await;
        })
    }
}

/// Node on a tunnel that answers the first call, and then does what no HTTP/2 server should.
pub(crate) struct HostilePeer(TcpStream);

impl HostilePeer {
    /// Opens a tunnel and answers the first call, so that the connection counts.
    pub(crate) fn open(orchestrator: &Orchestrator, token: &str) -> Self {
        Self::upgrade(orchestrator, token).answer_first_call()
    }

    /// Opens a tunnel that does not count yet.
    pub(crate) fn upgrade(orchestrator: &Orchestrator, token: &str) -> Self {
        let (stream, head) = ask(orchestrator, token);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    /// Answers the first call on a tunnel, which counts from then on.
    pub(crate) fn answer_first_call(mut self) -> Self {
        let mut preface = [0; PREFACE.len()];
        self.0.read_exact(&mut preface).unwrap();
        assert_eq!(preface, PREFACE);
        self.send(&frame(SETTINGS, 0, 0, &[]));
        let call = loop {
            let (kind, flags, stream, payload) = self.receive();
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&frame(SETTINGS, ACK, 0, &[])),
                PING if flags & ACK == 0 => self.send(&frame(PING, ACK, 0, &payload)),
                HEADERS => break stream,
                _ => {}
            }
        };
        // The field `:status: 200` of the static table (RFC 7541, appendix A).
        self.send(&frame(HEADERS, END_STREAM | END_HEAD, call, &[0x88]));
        self
    }

    /// Sends these bytes, of which only some may be received.
    pub(crate) fn attack(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// Connection, on which no more is answered.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.0
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Type, flags, stream and payload of the next frame.
    fn receive(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).unwrap();
        (kind, flags, u32::from_be_bytes(stream), payload)
    }
}

/// Frame of HTTP/2 (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}
