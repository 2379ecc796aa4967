//! HTTP client for calls between roles: asynchronous, with timeouts, over plain HTTP or TLS, without proxies; or over the
//! [tunnel](super::tunnel) that a node has opened.

pub use super::{call_error::CallError, client_response::ProbeResponse};

use super::{
    call_error::{malformed, transport},
    client_response::{ByteStream, ClientResponse, JsonLines, collect},
    json_body::parse_json,
    resolve::AddressGuard,
    tls_only::unknown_reason,
    transport::Transport,
    tunnel::TunnelLink,
};
use crate::{
    api::{
        INSTANCE_HEADER, check_envelope_version,
        nodes::Reach,
        problem::{ProblemBody, truncated},
    },
    tls::Trust,
};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http::{Method, StatusCode, header, response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use serde::{Serialize, de::DeserializeOwned};
use std::{borrow::Cow, convert::Infallible, io, sync::Arc, time::Duration};

/// Time for an answer that is not a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which an idle connection is kept: shorter than a cynode listener keeps it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Media type of newline-delimited JSON.
const NDJSON: &str = "application/x-ndjson";
/// Bytes that are read of the body of a probe's answer.
const PROBE_BODY_BYTES: usize = 4096;

/// Body of a call: whole, or a stream.
pub type CallBody = UnsyncBoxBody<Bytes, io::Error>;

/// HTTP client; cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
    answer_timeout: Duration,
}

impl Default for Client {
    fn default() -> Self {
        Self::with_guard(AddressGuard::new(Reach::Anywhere, Arc::new([])))
    }
}

impl Client {
    /// Client that connects only to addresses that `guard` allows, with a pool of its own.
    pub fn with_guard(guard: AddressGuard) -> Self {
        Self::build(guard, Trust::default(), POOL_IDLE_TIMEOUT)
    }

    /// Client that calls servers of `https://` URLs only where this trust holds, with another timeout for answers that
    /// are not streams.
    pub fn with_trust(trust: Trust, answer_timeout: Duration) -> Self {
        let guard = AddressGuard::new(Reach::Anywhere, Arc::new([]));
        Self {
            answer_timeout,
            ..Self::build(guard, trust, POOL_IDLE_TIMEOUT)
        }
    }

    /// Client that keeps idle connections for so long: shorter than its servers do, which may be other programs.
    pub fn with_idle_timeout(idle_timeout: Duration) -> Self {
        let guard = AddressGuard::new(Reach::Anywhere, Arc::new([]));
        Self::build(guard, Trust::default(), idle_timeout)
    }

    /// Client that calls over a tunnel, whatever the host in its URLs.
    pub fn over_tunnel(link: TunnelLink) -> Self {
        Self {
            transport: Transport::Tunnel(link),
            answer_timeout: ANSWER_TIMEOUT,
        }
    }

    fn build(guard: AddressGuard, trust: Trust, idle_timeout: Duration) -> Self {
        Self {
            transport: Transport::pool(guard, trust, idle_timeout),
            answer_timeout: ANSWER_TIMEOUT,
        }
    }

    /// Call to `url`, to be completed and sent.
    pub fn call<'a>(&self, method: Method, url: impl Into<String>) -> Call<'a> {
        Call {
            client: self.clone(),
            method,
            url: url.into(),
            bearer: None,
            instance: None,
            range_start: None,
            content: CallContent::None,
        }
    }

    /// Sends a request as it is; see [`forward`](super::forward).
    pub(super) async fn request(
        &self,
        url: &str,
        request: http::Request<CallBody>,
    ) -> Result<http::Response<Incoming>, CallError> {
        self.transport.request(url, request).await
    }
}

/// Content of a call.
enum CallContent {
    None,
    Json(serde_json::Result<Vec<u8>>),
    Bytes(Vec<u8>),
    /// Bytes of this number.
    Stream(u64, CallBody),
}

/// Call that is being built.
pub struct Call<'a> {
    client: Client,
    method: Method,
    url: String,
    bearer: Option<Cow<'a, str>>,
    instance: Option<&'a str>,
    /// First byte of the answer that is asked for.
    range_start: Option<u64>,
    content: CallContent,
}

impl<'a> Call<'a> {
    /// Adds a bearer token.
    pub fn bearer(mut self, token: impl Into<Cow<'a, str>>) -> Self {
        self.bearer = Some(token.into());
        self
    }

    /// Adds the instance id of this process.
    pub fn instance(mut self, instance: &'a str) -> Self {
        self.instance = Some(instance);
        self
    }

    /// Adds a JSON body.
    pub fn json(mut self, body: &impl Serialize) -> Self {
        self.content = CallContent::Json(serde_json::to_vec(body));
        self
    }

    /// Adds a body of any bytes.
    pub fn raw(mut self, body: Vec<u8>) -> Self {
        self.content = CallContent::Bytes(body);
        self
    }

    /// Adds a body of `length` bytes, which are sent as they come.
    pub fn stream(
        mut self,
        length: u64,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Self {
        let body = StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync();
        self.content = CallContent::Stream(length, body);
        self
    }

    /// Asks for the bytes of the answer from this one on.
    pub fn from_byte(mut self, first: u64) -> Self {
        self.range_start = (first > 0).then_some(first);
        self
    }

    /// Sends the call, however long its body takes; any successful answer will do. The caller limits the time.
    pub async fn sent(self) -> Result<(), CallError> {
        let (url, limit) = (self.url.clone(), self.client.answer_timeout);
        let (_, body) = self.send("application/json", None).await?;
        read_whole(url, body, limit).await.map(drop)
    }

    /// Sends the call and receives the head of an answer of bytes.
    pub async fn bytes(self) -> Result<ByteStream, CallError> {
        let (url, limit) = (self.url.clone(), self.client.answer_timeout);
        let (head, body) = self.send("*/*", Some(limit)).await?;
        let is_part = head.status == StatusCode::PARTIAL_CONTENT;
        Ok(ByteStream::new(url, is_part, body))
    }

    /// Sends the call and reads the answer as JSON.
    pub async fn receive<T: DeserializeOwned>(self) -> Result<T, CallError> {
        let url = self.url.clone();
        let bytes = self.whole().await?;
        parse(&url, &bytes)
    }

    /// Same as [`receive`](Self::receive) for versioned payloads between orchestrator and node: the version is
    /// checked before anything else.
    pub async fn receive_payload<T: DeserializeOwned>(self) -> Result<T, CallError> {
        let url = self.url.clone();
        let bytes = self.whole().await?;
        check_envelope_version(&bytes)
            .and_then(|()| parse_json(&bytes))
            .map_err(|problem| CallError::Malformed {
                url,
                reason: problem.detail,
            })
    }

    /// Sends the call; any successful answer will do.
    pub async fn done(self) -> Result<(), CallError> {
        self.whole().await.map(drop)
    }

    /// Sends the call; any successful answer will do. Returns this header of it, where it is text.
    pub async fn header(self, name: &str) -> Result<Option<String>, CallError> {
        let (url, limit) = (self.url.clone(), self.client.answer_timeout);
        let (head, body) = self.send("application/json", Some(limit)).await?;
        read_whole(url, body, limit).await?;
        let value = head.headers.get(name).and_then(|value| value.to_str().ok());
        Ok(value.map(str::to_owned))
    }

    /// Sends the call and reads the answer line by line as it arrives.
    pub async fn lines(self) -> Result<JsonLines, CallError> {
        Ok(self.open(NDJSON).await?.lines())
    }

    /// Sends the call and receives the head of an answer in one of the media types of `accept`. There is no
    /// timeout: some answers begin only once the work is done.
    pub async fn open(self, accept: &str) -> Result<ClientResponse, CallError> {
        let url = self.url.clone();
        let (head, body) = self.send(accept, None).await?;
        let media_type = head.headers.get(header::CONTENT_TYPE);
        let media_type = media_type.and_then(|value| value.to_str().ok());
        let media_type = media_type.and_then(|value| value.split(';').next());
        let has_lines = media_type.is_some_and(|name| name.trim().eq_ignore_ascii_case(NDJSON));
        Ok(ClientResponse::new(url, has_lines, body))
    }

    async fn whole(self) -> Result<Bytes, CallError> {
        let url = self.url.clone();
        let limit = self.client.answer_timeout;
        let (_, body) = self.send("application/json", Some(limit)).await?;
        read_whole(url, body, limit).await
    }

    /// Sends the call and returns any answer, to find out what listens there.
    pub async fn probe(self, limit: Duration) -> Result<ProbeResponse, CallError> {
        let url = self.url.clone();
        let answer = async {
            let (parts, mut body) = self.exchange("*/*", None).await?;
            let mut start = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| transport(&url, error.to_string()))?;
                start.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
                if start.len() >= PROBE_BODY_BYTES {
                    break;
                }
            }
            start.truncate(PROBE_BODY_BYTES);
            let date = parts.headers.get(header::DATE);
            Ok(ProbeResponse {
                status: parts.status,
                date: date
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned),
                body_start: String::from_utf8_lossy(&start).into_owned(),
            })
        };
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(transport(&url, "timed out")))
    }

    async fn send(
        self,
        accept: &str,
        limit: Option<Duration>,
    ) -> Result<(response::Parts, Incoming), CallError> {
        let (url, answer_timeout) = (self.url.clone(), self.client.answer_timeout);
        let (parts, body) = self.exchange(accept, limit).await?;
        if parts.status.is_success() {
            return Ok((parts, body));
        }
        Err(refusal(url, parts.status, body, answer_timeout).await)
    }

    /// Sends the call and receives the head of its answer, of any status.
    async fn exchange(
        self,
        accept: &str,
        limit: Option<Duration>,
    ) -> Result<(response::Parts, Incoming), CallError> {
        let Self {
            client,
            method,
            url,
            bearer,
            instance,
            range_start,
            content,
        } = self;
        let malformed = |reason: String| malformed(&url, reason);
        let mut request = http::Request::builder()
            .method(method)
            .uri(&url)
            .header(header::ACCEPT, accept);
        if let Some(token) = bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(instance) = instance {
            request = request.header(INSTANCE_HEADER, instance);
        }
        if let Some(first) = range_start {
            request = request.header(header::RANGE, format!("bytes={first}-"));
        }
        let body = match content {
            CallContent::Bytes(bytes) => {
                request = request.header(header::CONTENT_TYPE, "application/octet-stream");
                whole(bytes.into())
            }
            CallContent::Json(json) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                whole(json.map_err(|error| malformed(error.to_string()))?.into())
            }
            CallContent::Stream(length, body) => {
                request = request.header(header::CONTENT_LENGTH, length);
                body
            }
            CallContent::None => whole(Bytes::new()),
        };
        let request = request
            .body(body)
            .map_err(|error| malformed(error.to_string()))?;
        let sent = client.transport.request(&url, request);
        let answer = match limit {
            Some(limit) => tokio::time::timeout(limit, sent)
                .await
                .map_err(|_| transport(&url, "timed out"))?,
            None => sent.await,
        };
        Ok(answer?.into_parts())
    }
}

/// Body that is these bytes.
pub fn whole(bytes: Bytes) -> CallBody {
    let never = |error: Infallible| match error {};
    Full::new(bytes).map_err(never).boxed_unsync()
}

/// Error of an answer that is no success, whose body is read for `limit` at most.
pub(super) async fn refusal(
    url: String,
    status: StatusCode,
    body: Incoming,
    limit: Duration,
) -> CallError {
    let bytes = read_whole(url.clone(), body, limit)
        .await
        .unwrap_or_default();
    let mut problem: ProblemBody = parse_json(&bytes).unwrap_or_else(|_| ProblemBody {
        kind: String::new(),
        title: String::new(),
        status: status.as_u16(),
        detail: unknown_reason(status, &bytes),
        instance: String::new(),
        errors: Vec::new(),
        missing: Vec::new(),
    });
    // The text goes to the log, and to the database as the end of a job.
    problem.detail = truncated(problem.detail.replace(char::is_control, " "));
    CallError::Refused {
        url,
        status,
        problem: Box::new(problem),
    }
}

async fn read_whole(url: String, body: Incoming, limit: Duration) -> Result<Bytes, CallError> {
    let read = tokio::time::timeout(limit, collect(&url, body)).await;
    read.unwrap_or_else(|_| Err(transport(&url, "timed out")))
}

pub(super) fn parse<T: DeserializeOwned>(url: &str, bytes: &[u8]) -> Result<T, CallError> {
    parse_json(bytes).map_err(|problem| malformed(url, problem.detail))
}
