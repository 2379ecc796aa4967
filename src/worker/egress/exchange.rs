//! Exchanges of HTTP: a request, sent to its host, and the answer. The request came to the proxy in the clear, with a whole
//! URL, or inside of TLS that the proxy has opened.
//!
//! Each has a connection of its own to the host. Nothing is added that says who asks; what is put in are the values of
//! [secrets](crate::worker::edge) that are for this host. Nothing is kept but what the [cache](super::cache) keeps.

use super::{
    Proxy,
    activity::Activity,
    cache::Origin,
    refusal::Refusal,
    request::{Destination, Target, strip},
    tally::{Direction, Meter},
};
use crate::{
    background,
    http::response::{Body, Response},
};
use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Fuse, FusedFuture as _},
};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use std::{
    fmt, io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Most bytes of an answer that wait here, and longest head of one: a host that sends much at once takes no more of the
/// node's memory.
const MAX_BUFFER_BYTES: usize = 24 * 1024;

/// Sends a request to its host, over a connection to it, and answers with the answer.
pub(super) async fn exchange(
    proxy: &Proxy,
    request: http::Request<Incoming>,
    server: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    to: Destination<'_>,
) -> Result<Response, Refusal> {
    let activity = Arc::new(Activity::of(proxy.notices.flow(to.target)));
    let answer = ask(proxy, request, server, to, &activity).await;
    if answer.is_err() {
        // The refusal reports it.
        activity.leave_end_to_others();
    }
    Ok(incoming(proxy, answer?, &activity))
}

/// Answer of a host to a request, as the host or the cache gives it.
async fn ask(
    proxy: &Proxy,
    request: http::Request<Incoming>,
    server: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    to: Destination<'_>,
    activity: &Arc<Activity>,
) -> Result<Response, Refusal> {
    let (target, scheme) = (to.target, to.scheme());
    let request = outgoing(proxy, request, activity, to)?;
    let begun = http1::Builder::new()
        .max_buf_size(MAX_BUFFER_BYTES)
        .handshake(TokioIo::new(server))
        .await;
    let (mut sender, connection) = begun.map_err(|error| broke_off(target, &error))?;
    let mut connection = while_active(connection, Arc::clone(activity))
        .boxed()
        .fuse();
    let origin = Origin {
        scheme,
        target,
        // Secrets that the proxy puts in are marked so.
        is_private: request.headers().values().any(HeaderValue::is_sensitive),
    };
    let (request, lookup) = proxy.cache.look_up(request, &origin).await;
    let sends_body = !request.body().is_end_stream();
    let mut answering = pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answering => answer,
        () = &mut connection => answering.await,
    };
    let answer = answer.map_err(|error| broke_off(target, &error))?;
    let answer = if sends_body {
        // A client may read the answer only once it has sent all.
        if !connection.is_terminated() {
            background::spawn("egress_exchange", connection);
        }
        answer.map(plain)
    } else {
        answer.map(|body| Carried { body, connection }.boxed_unsync())
    };
    lookup.answer(target, answer).await
}

/// Serves a connection to a host until it ends, or nothing moves.
async fn while_active(
    connection: impl Future<Output = hyper::Result<()>>,
    activity: Arc<Activity>,
) {
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "exchange of a job ended early");
        },
        () = activity.wait_idle() => tracing::debug!("idle exchange of a job cut"),
    }
}

/// Answer whose reader serves the connection that it comes by: no other task is woken for each part, none waits between the two,
/// and the connection goes when the reader does.
struct Carried {
    body: Incoming,
    connection: Fuse<BoxFuture<'static, ()>>,
}

impl HttpBody for Carried {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // Also once it has ended: it may have left a last part.
        let _ = self.connection.poll_unpin(context);
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map_err(io::Error::other)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Request as the host gets it.
fn outgoing(
    proxy: &Proxy,
    request: http::Request<Incoming>,
    activity: &Arc<Activity>,
    to: Destination<'_>,
) -> Result<http::Request<Body>, Refusal> {
    let (mut parts, body) = request.into_parts();
    let path_bytes = to
        .path
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    proxy
        .meter
        .add_head(head_bytes(&parts.headers) + path_bytes);
    let is_chunked = parts.headers.contains_key(header::TRANSFER_ENCODING);
    strip(&mut parts.headers);
    if is_chunked {
        // Of this hop. Without it the body of a GET would be left out.
        let chunked = HeaderValue::from_static("chunked");
        parts.headers.insert(header::TRANSFER_ENCODING, chunked);
    }
    if let Some(host) = to.host_header() {
        parts.headers.insert(header::HOST, host);
    }
    let at = (&to.target.host, to.target.port);
    let swapped = proxy.edge.swap(at, to.is_encrypted, &mut parts.headers);
    swapped.map_err(|fault| Refusal::malformed(StatusCode::BAD_REQUEST, fault.to_string()))?;
    (parts.uri, parts.version) = (to.path, Version::HTTP_11);
    // Those of the client's connection.
    parts.extensions = Extensions::new();
    let body = metered(proxy, plain(body), Direction::Sent, activity);
    Ok(http::Request::from_parts(parts, body))
}

/// Answer as the client gets it.
fn incoming(proxy: &Proxy, answer: Response, activity: &Arc<Activity>) -> Response {
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

/// Body as it came.
fn plain(body: Incoming) -> Body {
    body.map_err(io::Error::other).boxed_unsync()
}

fn metered(proxy: &Proxy, body: Body, direction: Direction, activity: &Arc<Activity>) -> Body {
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
    body: Body,
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
            let frame = frame?;
            self.activity.touch();
            if let Some(data) = frame.data_ref() {
                self.activity.count(self.direction, data.len());
                let counted = self.meter.add(self.direction, data.len());
                counted.inspect_err(|_| {
                    self.meter.count_used_up();
                    self.activity.cut_if_used_up(&self.meter);
                })?;
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
