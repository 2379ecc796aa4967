//! Exchanges of plain HTTP: a request with a whole URL, sent to its host, and the answer.
//!
//! Each has a connection of its own to the host. Nothing is added that says who asks, and nothing is kept.

use super::{
    Proxy,
    refusal::Refusal,
    request::{Target, host_header, strip},
    tally::{Direction, Meter},
    tunnel::IDLE_TIMEOUT,
};
use crate::{
    background,
    http::response::{Body, Response},
};
use bytes::Bytes;
use http::{Extensions, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::http1::handshake,
};
use hyper_util::rt::TokioIo;
use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutStream;

/// Sends a request to its host, and answers with the answer.
pub(super) async fn exchange(
    proxy: &Proxy,
    request: http::Request<Incoming>,
    server: TcpStream,
    (target, path): (&Target, Uri),
) -> Result<Response, Refusal> {
    let mut stream = TimeoutStream::new(server);
    stream.set_read_timeout(Some(IDLE_TIMEOUT));
    stream.set_write_timeout(Some(IDLE_TIMEOUT));
    let begun = handshake(TokioIo::new(Box::pin(stream))).await;
    let (mut sender, connection) = begun.map_err(|error| broke_off(target, &error))?;
    // Ends with the answer, or when the client has left.
    background::spawn("egress_exchange", async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "exchange of a job ended early");
        }
    });
    let request = outgoing(proxy, request, target, path);
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| broke_off(target, &error))?;
    Ok(incoming(proxy, answer))
}

/// Request as the host gets it.
fn outgoing(
    proxy: &Proxy,
    request: http::Request<Incoming>,
    target: &Target,
    path: Uri,
) -> http::Request<Body> {
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    if let Some(host) = host_header(target) {
        parts.headers.insert(header::HOST, host);
    }
    (parts.uri, parts.version) = (path, Version::HTTP_11);
    // Those of the client's connection.
    parts.extensions = Extensions::new();
    http::Request::from_parts(parts, metered(proxy, body, Direction::Sent))
}

/// Answer as the client gets it.
fn incoming(proxy: &Proxy, answer: http::Response<Incoming>) -> Response {
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.extensions = Extensions::new();
    http::Response::from_parts(parts, metered(proxy, body, Direction::Received))
}

fn broke_off(target: &Target, error: &impl fmt::Display) -> Refusal {
    let detail = format!("{target} broke off before its answer ({error}); try again");
    Refusal::unreachable(StatusCode::BAD_GATEWAY, detail)
}

fn metered(proxy: &Proxy, body: Incoming, direction: Direction) -> Body {
    let meter = Arc::clone(&proxy.meter);
    MeteredBody {
        body,
        meter,
        direction,
    }
    .boxed_unsync()
}

/// Body whose bytes are counted, and which breaks off at the job's limit.
struct MeteredBody {
    body: Incoming,
    meter: Arc<Meter>,
    direction: Direction,
}

impl HttpBody for MeteredBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(io::Error::other)?;
            if let Some(data) = frame.data_ref() {
                let counted = self.meter.add(self.direction, data.len());
                counted.inspect_err(|_| self.meter.count_cut())?;
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
