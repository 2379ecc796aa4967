//! Calls between roles: an async client with time limits, over plain HTTP, without proxies.

pub use super::call_error::CallError;

use super::{
    call_error::{malformed, transport},
    client_response::{ClientResponse, JsonLines, collect},
    request::parse_json,
    resolve::{AddressGuard, Connector},
};
use crate::{
    api::{
        INSTANCE_HEADER, check_envelope_version,
        nodes::Reach,
        problem::{ProblemBody, truncated},
    },
    errors,
};
use bytes::Bytes;
use http::{Method, StatusCode, header, response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{borrow::Cow, sync::Arc, time::Duration};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer that isn't a stream may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Media type of lines of JSON.
const NDJSON: &str = "application/x-ndjson";
/// What is read of an answer that is only looked at.
const PROBE_BODY_BYTES: usize = 4096;

/// An HTTP client with a pool of connections; cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<Connector, Full<Bytes>>,
    answer_timeout: Duration,
}

impl Default for Client {
    fn default() -> Self {
        Self::with_guard(AddressGuard::new(Reach::Anywhere, Arc::new([])))
    }
}

impl Client {
    /// One that calls only addresses that `guard` allows. Its connections are its own.
    pub fn with_guard(guard: AddressGuard) -> Self {
        let connector = Connector::new(guard, |connector| {
            connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
            connector.set_nodelay(true);
            // A node that lost power sends no FIN; this finds out within about 20 s.
            connector.set_keepalive(Some(Duration::from_secs(10)));
            connector.set_keepalive_interval(Some(Duration::from_secs(5)));
            connector.set_keepalive_retries(Some(2));
            // The same where it owes us an acknowledgement, which keepalive doesn't look at.
            #[cfg(target_os = "linux")]
            connector.set_tcp_user_timeout(Some(Duration::from_secs(20)));
        });
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            // Less than a listener of ours waits for the next request.
            .pool_idle_timeout(Duration::from_secs(5))
            .build(connector);
        Self {
            inner,
            answer_timeout: ANSWER_TIMEOUT,
        }
    }

    /// One that gives up on an answer that isn't a stream after this time.
    pub fn with_answer_timeout(answer_timeout: Duration) -> Self {
        Self {
            answer_timeout,
            ..Self::default()
        }
    }

    /// Prepares a call.
    pub fn call(&self, method: Method, url: impl Into<String>) -> Call<'_> {
        Call {
            client: self,
            method,
            url: url.into(),
            bearer: None,
            instance: None,
            body: None,
        }
    }
}

/// One call, before it is made.
pub struct Call<'a> {
    client: &'a Client,
    method: Method,
    url: String,
    bearer: Option<Cow<'a, str>>,
    instance: Option<&'a str>,
    body: Option<serde_json::Result<Vec<u8>>>,
}

impl<'a> Call<'a> {
    /// Shows this token.
    pub fn bearer(mut self, token: impl Into<Cow<'a, str>>) -> Self {
        self.bearer = Some(token.into());
        self
    }

    /// Names the process that calls.
    pub fn instance(mut self, instance: &'a str) -> Self {
        self.instance = Some(instance);
        self
    }

    /// Sends this as JSON.
    pub fn json(mut self, body: &impl Serialize) -> Self {
        self.body = Some(serde_json::to_vec(body));
        self
    }

    /// Makes the call and reads the answer as JSON.
    pub async fn receive<T: DeserializeOwned>(self) -> Result<T, CallError> {
        let url = self.url.clone();
        let bytes = self.whole().await?;
        parse(&url, &bytes)
    }

    /// Like [`receive`](Self::receive), for what orchestrator and nodes send each other: the version of the
    /// payload is looked at before anything else.
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

    /// Makes the call; any answer of success will do.
    pub async fn done(self) -> Result<(), CallError> {
        self.whole().await.map(drop)
    }

    /// Makes the call and reads the answer line by line as it comes.
    pub async fn lines(self) -> Result<JsonLines, CallError> {
        Ok(self.open(NDJSON).await?.lines())
    }

    /// Makes the call and receives the head of an answer in one of the media types that `accept` names.
    /// There is no time limit: some answers come only once the work is done.
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

    /// Makes the call and tells what came back, whatever it is: to find out who is there.
    pub async fn probe(self, limit: Duration) -> Result<ProbeResponse, CallError> {
        let url = self.url.clone();
        let look = async {
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
        tokio::time::timeout(limit, look)
            .await
            .unwrap_or_else(|_| Err(transport(&url, "it took too long")))
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
        let bytes = read_whole(url.clone(), body, answer_timeout)
            .await
            .unwrap_or_default();
        let mut problem: ProblemBody = parse_json(&bytes).unwrap_or_else(|_| ProblemBody {
            kind: String::new(),
            title: String::new(),
            status: parts.status.as_u16(),
            detail: "it gave no reason; is this the address of a cynode?".to_owned(),
            instance: String::new(),
            errors: Vec::new(),
        });
        // It is logged, and stored as the end of a job.
        problem.detail = truncated(problem.detail.replace(char::is_control, " "));
        Err(CallError::Refused {
            url,
            status: parts.status,
            problem: Box::new(problem),
        })
    }

    /// Sends the call and receives the head of any answer.
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
            body,
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
        let body = match body {
            Some(json) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                json.map_err(|error| malformed(error.to_string()))?.into()
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(body))
            .map_err(|error| malformed(error.to_string()))?;
        let sent = client.inner.request(request);
        let answered = match limit {
            Some(limit) => tokio::time::timeout(limit, sent)
                .await
                .map_err(|_| transport(&url, "it took too long"))?,
            None => sent.await,
        };
        let answer = answered.map_err(|error| CallError::Transport {
            url: url.clone(),
            // hyper's errors say little by themselves; the cause is further down.
            reason: errors::chain(&error),
            connected: !error.is_connect(),
        })?;
        Ok(answer.into_parts())
    }
}

async fn read_whole(url: String, body: Incoming, limit: Duration) -> Result<Bytes, CallError> {
    let read = tokio::time::timeout(limit, collect(&url, body)).await;
    read.unwrap_or_else(|_| Err(transport(&url, "it took too long")))
}

pub(super) fn parse<T: DeserializeOwned>(url: &str, bytes: &[u8]) -> Result<T, CallError> {
    parse_json(bytes).map_err(|problem| malformed(url, problem.detail))
}

/// An answer of any kind, as it was found.
#[derive(Clone, Debug)]
pub struct ProbeResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its `Date` field: the other side's clock.
    pub date: Option<String>,
    /// How its body begins.
    pub body_start: String,
}
