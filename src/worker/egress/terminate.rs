//! Tunnels whose TLS the proxy opens, since the job asked for it: requests in them are [exchanges](super::exchange) as
//! those of plain HTTP, so that the proxy can put [secrets](crate::worker::edge) into them.
//!
//! ```text
//! command ── TLS, by the sandbox's authority ──▶ here ── TLS, by the system's authorities ──▶ host
//! ```
//!
//! The job gives up that it checks the host's certificate itself, and this process does it: a host that is not trusted
//! gets no request. Inside of TLS is HTTP/1.1 alone, and no upgrade is passed on.
//!
//! The tunnel and each request in it are counted, and reported, as requests.

use super::{
    Proxy,
    activity::IDLE_TIMEOUT,
    exchange::exchange,
    notices::Asked,
    refusal::{Refusal, accept_of},
    request::{Destination, Target, wanted_inside},
    server::server_builder,
    tunnel::HELLO_TIMEOUT,
};
use crate::{
    http::response::Response,
    tls::{Cause, ClientStream, Untrusted},
};
use http::StatusCode;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{
    convert::Infallible,
    io::{self, Cursor},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, join, split},
    net::TcpStream,
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

/// Time for the handshake with a host.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Tunnel that is open.
struct Opened {
    proxy: Arc<Proxy>,
    target: Target,
    /// Connection that was made before the tunnel was promised, until the first request takes it.
    first: Mutex<Option<TcpStream>>,
}

/// Answers the requests in a tunnel whose client has sent its hello, which names the host.
pub(super) async fn serve(
    proxy: &Arc<Proxy>,
    (client, hello): (
        impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        Vec<u8>,
    ),
    (server, target): (TcpStream, Target),
) {
    let (from_client, to_client) = split(client);
    let client = join(Cursor::new(hello).chain(from_client), to_client);
    let accepting = async {
        let config = proxy.edge.server(&target.host)?;
        TlsAcceptor::from(config).accept(client).await
    };
    let accepted = timeout(HELLO_TIMEOUT, accepting).await;
    let client = match accepted.map_err(io::Error::from).flatten() {
        Ok(client) => client,
        Err(error) => {
            // Mostly a program that does not trust the authority.
            tracing::debug!(%target, %error, "TLS of a job's tunnel not opened");
            return;
        }
    };
    let opened = Arc::new(Opened {
        proxy: Arc::clone(proxy),
        target,
        first: Mutex::new(Some(server)),
    });
    let service = service_fn(move |request| {
        let opened = Arc::clone(&opened);
        async move { Ok::<_, Infallible>(opened.respond(request).await) }
    });
    let mut stream = TimeoutStream::new(client);
    stream.set_write_timeout(Some(IDLE_TIMEOUT));
    let served = server_builder().serve_connection(TokioIo::new(Box::pin(stream)), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "requests in a job's tunnel ended early");
    }
}

impl Opened {
    /// Answers one request.
    async fn respond(&self, request: http::Request<Incoming>) -> Response {
        self.proxy.rate.wait().await;
        let accept = accept_of(request.headers());
        match self.decide_and_answer(request).await {
            Ok(answer) => answer,
            Err(refusal) => {
                let asked = Asked::from(&self.target);
                self.proxy.refuse(&asked, &refusal, accept.as_ref()).await
            }
        }
    }

    async fn decide_and_answer(
        &self,
        request: http::Request<Incoming>,
    ) -> Result<Response, Refusal> {
        let (method, uri) = (request.method(), request.uri());
        let path = wanted_inside(method, uri, request.headers(), &self.target)?;
        self.proxy.check(&self.target)?;
        let connected = self.connect().await;
        let server = self.proxy.let_through(&self.target, connected).await?;
        let to = Destination {
            target: &self.target,
            path,
            is_encrypted: true,
        };
        exchange(&self.proxy, request, server, to).await
    }

    /// Connection to the host, whose certificate was checked.
    async fn connect(&self) -> Result<ClientStream, Refusal> {
        let first = self.first.lock().take();
        let (proxy, target) = (&self.proxy, &self.target);
        let stream = match first {
            Some(stream) => stream,
            None => proxy.route.connect(target, &proxy.addresses).await?,
        };
        let connecting = proxy.trust.connect(target.host.as_str(), stream);
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| not_connected(target, &error)),
            Err(_) => {
                let seconds = HANDSHAKE_TIMEOUT.as_secs();
                let detail = format!(
                    "{target} did not answer the TLS handshake of this node within {seconds} s; try again, or check that \
                     it speaks TLS at that port"
                );
                Err(Refusal::unreachable(StatusCode::GATEWAY_TIMEOUT, detail))
            }
        }
    }
}

/// Failed handshake with a host, in words for the user of the job.
fn not_connected(target: &Target, error: &io::Error) -> Refusal {
    let cause = Untrusted::find(error).map(|untrusted| &untrusted.cause);
    let detail = match cause {
        Some(Cause::UnknownIssuer) => format!(
            "{target} is not trusted: no authority that this node knows has issued its certificate; ask the node's operator to \
             add that authority to those of the system, or to name a file of authorities in SSL_CERT_FILE of the node's process, \
             and to start the node again"
        ),
        Some(Cause::Expired) => format!(
            "{target} is not trusted: its certificate has expired, by the clock of this node; ask the host's operator to renew it, \
             and the node's to check the clock"
        ),
        Some(Cause::NotYetValid) => format!(
            "{target} is not trusted: its certificate is not valid yet, by the clock of this node; ask the node's operator to \
             check the clock"
        ),
        Some(Cause::OtherName) => format!(
            "{target} is not trusted: its certificate is for other names; use a name that it covers"
        ),
        Some(Cause::OtherKey(_)) | None => format!(
            "the TLS handshake of this node with {target} failed ({error}); check that it speaks TLS at that port"
        ),
        Some(Cause::Invalid(reason)) => format!(
            "{target} is not trusted: its certificate is not usable ({reason}); ask the host's operator for another"
        ),
    };
    Refusal::unreachable(StatusCode::BAD_GATEWAY, detail)
}

#[cfg(test)]
mod tests;
