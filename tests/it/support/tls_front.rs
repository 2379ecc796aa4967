//! A server that speaks TLS and passes what it decrypts to a plain one, as a reverse proxy does. It keeps the bytes that
//! clients sent after the handshake, or instead of one, and can take another key at any time, as someone in between would.

use super::eventually;
use cynode::tls::Pin;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use std::{
    io, pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy, split},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle, Runtime},
};
use tokio_rustls::TlsAcceptor;

/// Key and certificate of a server.
pub(crate) struct Identity {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
    /// Pin of the key.
    pub(crate) pin: String,
}

impl Identity {
    /// New key with a certificate that is valid, of its own.
    pub(crate) fn new() -> Self {
        Self::between(2020, 2040)
    }

    /// New key with a certificate for the time between the starts of these years.
    pub(crate) fn between(from: i32, to: i32) -> Self {
        Self::of_key(KeyPair::generate().unwrap(), from, to)
    }

    /// Same key with a new certificate.
    pub(crate) fn renewed(&self) -> Self {
        let key = KeyPair::try_from(self.key.serialize_der()).unwrap();
        Self::of_key(key, 2021, 2041)
    }

    fn of_key(key: KeyPair, from: i32, to: i32) -> Self {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pin: Pin::of_certificate(certificate.der()).unwrap().to_string(),
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            key,
        }
    }

    /// The certificate, which is its own authority, in PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let config = ServerConfig::builder_with_provider(cynode::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], PrivateKeyDer::Pkcs8(key))
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// The server.
pub(crate) struct TlsFront {
    /// `https://` and its address.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    _runtime: Runtime,
}

struct State {
    acceptor: TlsAcceptor,
    /// Follows on `acceptor` after the next handshake.
    next: Option<TlsAcceptor>,
    /// Bytes that clients sent after the handshake, or outside of one.
    received: Vec<u8>,
    /// Handshakes that failed.
    refused: usize,
}

impl TlsFront {
    /// Starts one in front of the plain server at this URL.
    pub(crate) fn start(identity: &Identity, upstream: &str) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            acceptor: identity.acceptor(),
            next: None,
            received: Vec::new(),
            refused: 0,
        }));
        let upstream = upstream.trim_start_matches("http://").to_owned();
        runtime.spawn(serve(listener, upstream, Arc::clone(&state)));
        Self {
            url,
            state,
            _runtime: runtime,
        }
    }

    /// Has this key from now on, for new connections.
    pub(crate) fn swap(&self, identity: &Identity) {
        self.state.lock().unwrap().acceptor = identity.acceptor();
    }

    /// Has this key after one more handshake.
    pub(crate) fn swap_after_next(&self, identity: &Identity) {
        self.state.lock().unwrap().next = Some(identity.acceptor());
    }

    /// Text that clients sent after the handshake, or outside of one, since the last call.
    pub(crate) fn take_received(&self) -> String {
        let received = std::mem::take(&mut self.state.lock().unwrap().received);
        String::from_utf8_lossy(&received).into_owned()
    }

    /// Waits for a handshake that failed, and forgets it.
    pub(crate) fn wait_refused(&self) {
        eventually("a client refuses the handshake", || {
            let refused = std::mem::take(&mut self.state.lock().unwrap().refused);
            (refused > 0).then_some(())
        });
    }
}

async fn serve(listener: TcpListener, upstream: String, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        Handle::current().spawn(pass(stream, upstream.clone(), Arc::clone(&state)));
    }
}

async fn pass(stream: TcpStream, upstream: String, state: Arc<Mutex<State>>) {
    let acceptor = state.lock().unwrap().acceptor.clone();
    let raw = Raw {
        stream,
        seen: Vec::new(),
    };
    let stream = match acceptor.accept(raw).into_fallible().await {
        Ok(stream) => stream,
        Err((_, raw)) => {
            let mut state = state.lock().unwrap();
            state.received.extend(outside_records(&raw.all()));
            state.refused += 1;
            return;
        }
    };
    let next = state.lock().unwrap().next.take();
    if let Some(next) = next {
        state.lock().unwrap().acceptor = next;
    }
    let Ok(server) = TcpStream::connect(upstream).await else {
        return;
    };
    let (mut client_read, mut client_write) = split(stream);
    let (mut server_read, mut server_write) = server.into_split();
    let up = async {
        let mut some = [0; 8192];
        while let Ok(n @ 1..) = client_read.read(&mut some).await {
            state.lock().unwrap().received.extend(&some[..n]);
            if server_write.write_all(&some[..n]).await.is_err() {
                break;
            }
        }
        let _ = server_write.shutdown().await;
    };
    let down = async {
        let _ = copy(&mut server_read, &mut client_write).await;
        let _ = client_write.shutdown().await;
    };
    tokio::join!(up, down);
}

/// Connection that keeps the bytes of the client as they come.
struct Raw {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Raw {
    /// Bytes that have come so far, also those that nobody has read yet.
    fn all(mut self) -> Vec<u8> {
        let mut some = [0; 8192];
        while let Ok(n @ 1..) = self.stream.try_read(&mut some) {
            self.seen.extend(&some[..n]);
        }
        self.seen
    }
}

impl AsyncRead for Raw {
    fn poll_read(
        self: pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = pin::Pin::new(&mut this.stream).poll_read(context, buffer);
        this.seen.extend(&buffer.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Raw {
    fn poll_write(
        self: pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        pin::Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin::Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin::Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Rest of the bytes from the first that belongs to no record of TLS on: what a client sent in the clear.
fn outside_records(mut bytes: &[u8]) -> &[u8] {
    while let [20..=23, 3, 0..=4, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        bytes = rest.get(length..).unwrap_or_default();
    }
    bytes
}

#[test]
fn plain_bytes_are_seen_without_handshake() {
    use std::io::{Read as _, Write as _};

    let front = TlsFront::start(&Identity::new(), "http://127.0.0.1:1");
    let address = front.url.trim_start_matches("https://");
    let mut client = std::net::TcpStream::connect(address).unwrap();
    client.write_all(b"the key").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    // Its end shows that the server has looked.
    let _ = client.read_to_end(&mut Vec::new());
    front.wait_refused();
    assert_eq!(front.take_received(), "the key");
    let record = [22, 3, 1, 0, 2, 9, 9, b'x'];
    assert_eq!(outside_records(&record), b"x");
    assert_eq!(outside_records(&record[..6]), b"");
}
