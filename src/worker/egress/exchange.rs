//! Exchanges of plain HTTP: a request with a whole URL, sent to its host, and the answer.
//!
//! Each has a connection of its own to the host. Nothing is added that says who asks, and nothing is kept.

use super::{
    Proxy,
    activity::Activity,
    refusal::Refusal,
    request::{Target, host_header, strip},
    tally::{Direction, Meter},
};
use crate::{
    background,
    http::response::{Body, Response},
};
use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::net::TcpStream;

/// Most bytes of an answer that wait here, and longest head of one: a host that sends much at once takes no more of the
/// node's memory.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// Sends a request to its host, and answers with the answer.
pub(super) async fn exchange(
    proxy: &Proxy,
    request: http::Request<Incoming>,
    server: TcpStream,
    (target, path): (&Target, Uri),
) -> Result<Response, Refusal> {
    let begun = http1::Builder::new()
        .max_buf_size(MAX_BUFFER_BYTES)
        .handshake(TokioIo::new(server))
        .await;
    let (mut sender, connection) = begun.map_err(|error| broke_off(target, &error))?;
    let activity = Arc::new(Activity::new());
    let watched = Arc::clone(&activity);
    // Ends with the answer, when the client has left, or when nothing moves.
    background::spawn("egress_exchange", async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "exchange of a job ended early");
            },
            () = watched.wait_idle() => tracing::debug!("idle exchange of a job cut"),
        }
    });
    let request = outgoing(proxy, request, &activity, (target, path));
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| broke_off(target, &error))?;
    Ok(incoming(proxy, answer, &activity))
}

/// Request as the host gets it.
fn outgoing(
    proxy: &Proxy,
    request: http::Request<Incoming>,
    activity: &Arc<Activity>,
    (target, path): (&Target, Uri),
) -> http::Request<Body> {
    let (mut parts, body) = request.into_parts();
    let path_bytes = path.path_and_query().map_or(0, |path| path.as_str().len());
    proxy
        .meter
        .add_head(head_bytes(&parts.headers) + path_bytes);
    strip(&mut parts.headers);
    if let Some(host) = host_header(target) {
        parts.headers.insert(header::HOST, host);
    }
    (parts.uri, parts.version) = (path, Version::HTTP_11);
    // Those of the client's connection.
    parts.extensions = Extensions::new();
    let body = metered(proxy, body, Direction::Sent, activity);
    http::Request::from_parts(parts, body)
}

/// Answer as the client gets it.
fn incoming(proxy: &Proxy, answer: http::Response<Incoming>, activity: &Arc<Activity>) -> Response {
    let (mut parts, body) = answer.into_parts();
    proxy.meter.add_head(head_bytes(&parts.headers));
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.extensions = Extensions::new();
    let body = metered(proxy, body, Direction::Received, activity);
    http::Response::from_parts(parts, body)
}

/// Bytes of headers as they are sent.
fn head_bytes(headers: &HeaderMap) -> usize {
    let header = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + ": \r\n".len()
    };
    headers.iter().map(header).sum()
}

fn broke_off(target: &Target, error: &impl fmt::Display) -> Refusal {
    let detail = format!("{target} broke off before its answer ({error}); try again");
    Refusal::unreachable(StatusCode::BAD_GATEWAY, detail)
}

fn metered(proxy: &Proxy, body: Incoming, direction: Direction, activity: &Arc<Activity>) -> Body {
    MeteredBody {
        body,
        meter: Arc::clone(&proxy.meter),
        direction,
        activity: Arc::clone(activity),
    }
    .boxed_unsync()
}

/// Body whose bytes are counted, and which breaks off at the job's limit.
struct MeteredBody {
    body: Incoming,
    meter: Arc<Meter>,
    direction: Direction,
    activity: Arc<Activity>,
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
            self.activity.touch();
            if let Some(data) = frame.data_ref() {
                let counted = self.meter.add(self.direction, data.len());
                counted.inspect_err(|_| self.meter.count_used_up())?;
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
