//! Interface to a node: run, attach, list, cancel, forget, probe.
//!
//! This is the only place in the orchestrator that knows how a node is called: over HTTP, at the URL of its Worker
//! API, or over the [tunnel](super::tunnels) that it has opened. The policy of these calls stands here, too: time limits,
//! backoff ([`retry_backoff`]), both tokens of a node. A failed call is a [`NodeCallError`], which says whether the node may
//! have acted.
//!
//! Every call about a job names the attempt, so that a repeated or late call never touches a newer one. `run`
//! is idempotent: a node that has the attempt attaches the caller to it.
//!
//! A cynode node answers at once, with a stream of events. Another implementation of the contract may answer one
//! document, and answer `jobs:run` only when the job has ended. So no time limit applies to that answer; the caller
//! asks meanwhile [whether the node is alive](NodeClient::probe_later).

mod error;
mod events;
mod files;
mod model_store;
mod models;
mod reach;
mod sessions;
mod snapshots;

pub(super) use error::{NodeCallError, NodeCallErrorKind};
pub(super) use events::{JobResponse, NodeEvents, PendingDocument, PendingResponse};
pub(super) use files::{ArtifactBytes, SendProgress};
pub(super) use model_store::ModelPull;
pub(super) use models::{ModelRequest, is_own_answer};
pub(super) use reach::Proof;
pub(super) use sessions::SessionCall;

use super::AppState;
use crate::{
    api::{
        JobId,
        events::{LOG_MEDIA_TYPE, LogPart, OutputEncoding, StreamFilter, TailLines},
        jobs::{JobList, JobState, RunJob, stdin::StdinReceipt},
    },
    backoff::Backoff,
    http::{
        client::{Call, CallError, Client},
        client_response::ByteStream,
    },
    store::Node,
};
use events::receive_response;
use futures_util::FutureExt as _;
use http::{Method, StatusCode};
use std::time::Duration;

/// Silence after which a stream or an answer counts as cut: three times the interval at which a node says that
/// it is alive.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time limit of `/healthz`, which costs a node no work.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of `/readyz`.
const READINESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before a node is asked whether it is alive, while its answer to another call is awaited.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Backoff between calls to a node that does not answer.
const INITIAL_CALL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_CALL_BACKOFF: Duration = Duration::from_secs(5);

/// Backoff between calls to a node that does not answer.
pub(super) const fn retry_backoff() -> Backoff {
    Backoff::new(INITIAL_CALL_BACKOFF, MAX_CALL_BACKOFF)
}

/// Worker API of one node.
#[derive(Clone)]
pub(super) struct NodeClient<'a> {
    client: Client,
    /// Slug of the node, for the log.
    slug: String,
    base_url: String,
    tokens: Tokens,
    /// Id of this process, by which a node notices two that call as one orchestrator.
    instance: &'a str,
}

/// Tokens of a node, which accepts one of them: the newest that it was served, and, until it has acknowledged
/// that, the one that it applied before. Neither is sent to an address that was reported after a later
/// registration; [`crate::store`] sees to it.
#[derive(Clone)]
struct Tokens {
    newest: String,
    applied: Option<String>,
}

/// Selection of a job's events.
#[derive(Clone, Copy)]
pub(super) enum EventSelection {
    /// Start and end, without output.
    Lifecycle,
    /// Events with a part of the output.
    Output {
        /// Whether to wait for events to come; else only those that are there.
        follow: bool,
        /// Encoding of the output. A node of an earlier release sends text.
        encoding: OutputEncoding,
        /// Part of the output. A node of an earlier release sends all of it.
        part: LogPart,
    },
}

/// Readiness of a node, as it answers by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Readiness {
    Ready,
    NotReady,
}

impl Readiness {
    /// Meaning of the status of `/readyz`; `None` where it doesn't show that the node is alive. A proxy
    /// answers 503 for a node that is gone, but then `/healthz` is not 200, either.
    const fn from_status(ready: StatusCode, is_alive: bool) -> Option<Self> {
        match ready {
            StatusCode::OK => Some(Self::Ready),
            StatusCode::SERVICE_UNAVAILABLE if is_alive => Some(Self::NotReady),
            _ => None,
        }
    }
}

impl AppState {
    /// Client of `node`; `None` before the node has reported the URL of its Worker API or its tunnel, and in a drill.
    pub(super) fn node_client(&self, node: &Node) -> Option<NodeClient<'_>> {
        let token = |registration| self.identity.worker_token(node.id, registration);
        let served = node.served_config();
        let registration = served.as_ref().map(|served| served.registration);
        let url = self.callable_url(node)?;
        Some(NodeClient {
            client: self.http_client_for(node, url),
            slug: node.slug.clone(),
            base_url: url.trim_end_matches('/').to_owned(),
            tokens: Tokens {
                newest: token(registration.unwrap_or(node.registration)),
                applied: served.and_then(|served| served.applied).map(token),
            },
            instance: &self.instance_id,
        })
    }
}

impl<'a> NodeClient<'a> {
    /// Slug of the node.
    pub(super) fn slug(&self) -> &str {
        &self.slug
    }

    /// Runs this attempt at the node, or attaches to it where the node has it already. Streams the
    /// [lifecycle](EventSelection::Lifecycle) of the attempt, or, from a worker without events, its result.
    ///
    /// The answer may take as long as the job, so the sandbox is kept meanwhile only while the node may know no
    /// other token than the applied one.
    pub(super) fn run(&self, body: RunJob) -> PendingResponse<'a> {
        let this = self.clone();
        async move {
            let call = |token: &str, body: &RunJob| {
                let call = this.authorized_call(Method::POST, ":run?output=false", token);
                receive_response(call.json(body))
            };
            let answer = call(&this.tokens.newest, &body);
            let again = this.tokens.applied.as_ref().map(|applied| (applied, body));
            match (answer.await, again) {
                (Err(error), Some((applied, body)))
                    if error.kind == NodeCallErrorKind::UnknownToken =>
                {
                    call(applied, &body).await
                }
                (answer, _) => answer,
            }
        }
        .boxed()
    }

    /// Streams the lifecycle of an attempt that the node may have, from the event after number `after`.
    /// Never starts it.
    pub(super) fn attach(&self, job: JobId, attempt: u32, after: u64) -> PendingResponse<'a> {
        let this = self.clone();
        let path = job_path(job, attempt, after, EventSelection::Lifecycle);
        async move { this.call_in_time(&path).await }.boxed()
    }

    /// Events of an attempt that the node may have, for a reader of its output, after number `after`.
    pub(super) async fn read_events(
        &self,
        job: JobId,
        attempt: u32,
        after: u64,
        selection: EventSelection,
    ) -> Result<NodeEvents, NodeCallError> {
        let path = job_path(job, attempt, after, selection);
        match self.call_in_time(&path).await? {
            JobResponse::Stream(events) => Ok(events),
            JobResponse::Document(_) => Err(CallError::Malformed {
                url: self.base_url.clone(),
                reason: "it sends no events".to_owned(),
            }
            .into()),
        }
    }

    /// Log of an attempt that the node has, as a stream of bytes.
    pub(super) async fn read_log(
        &self,
        job: JobId,
        attempt: u32,
    ) -> Result<ByteStream, NodeCallError> {
        let path = format!("/{job}/log?attempt={attempt}");
        let request = |call: Call<'a>| async { Ok(call.open(LOG_MEDIA_TYPE).await?.chunks()) };
        let answer = self.call(Method::GET, &path, request);
        let answer = tokio::time::timeout(SILENCE_TIMEOUT, answer).await;
        answer.unwrap_or_else(|_| Err(CallError::timed_out(&self.base_url, SILENCE_TIMEOUT).into()))
    }

    /// Status of all jobs that the node has, ended or not.
    pub(super) async fn list(&self) -> Result<Vec<JobState>, NodeCallError> {
        let request = |call: Call<'a>| async { Ok(call.receive::<JobList>().await?.jobs) };
        self.call(Method::GET, "", request).await
    }

    /// Ends an attempt: after the grace of its command, or at once.
    pub(super) async fn cancel(
        &self,
        job: JobId,
        attempt: u32,
        is_forced: bool,
    ) -> Result<(), NodeCallError> {
        let force = if is_forced { "&force=true" } else { "" };
        let path = format!("/{job}:cancel?attempt={attempt}{force}");
        let request = |call: Call<'a>| async { Ok(call.done().await?) };
        self.call(Method::POST, &path, request).await
    }

    /// Sends a piece of live stdin, whose first byte is at `offset`, to an attempt.
    pub(super) async fn send_stdin(
        &self,
        (job, attempt): (JobId, u32),
        (offset, is_last): (u64, bool),
        bytes: &[u8],
    ) -> Result<StdinReceipt, NodeCallError> {
        let path = format!("/{job}/stdin?attempt={attempt}&offset={offset}&eof={is_last}");
        let request = |call: Call<'a>| {
            let call = call.raw(bytes.to_vec());
            async { Ok(call.receive_payload::<StdinReceipt>().await?) }
        };
        self.call(Method::POST, &path, request).await
    }

    /// Removes an attempt that has ended, with its result. The node refuses the attempt from then on.
    pub(super) async fn forget(&self, job: JobId, attempt: u32) -> Result<(), NodeCallError> {
        let path = format!("/{job}?attempt={attempt}");
        let request = |call: Call<'a>| async { Ok(call.done().await?) };
        self.call(Method::DELETE, &path, request).await
    }

    /// Whether the node is alive, by its own word; a proxy that lost sight of it never answers 200. A node that
    /// is alive may be too busy to be ready.
    pub(super) async fn is_alive(&self) -> bool {
        let url = format!("{}/healthz", self.base_url);
        let call = self.client.call(Method::GET, url);
        let answer = call.probe(HEALTH_TIMEOUT).await;
        answer.is_ok_and(|answer| answer.status == StatusCode::OK)
    }

    /// Same as [`Self::is_alive`], after a pause.
    pub(super) async fn probe_later(&self) -> bool {
        tokio::time::sleep(PROBE_INTERVAL).await;
        self.is_alive().await
    }

    /// Readiness of the node; `None` where nothing shows that it is alive.
    pub(super) async fn readiness(&self) -> Option<Readiness> {
        let url = format!("{}/readyz", self.base_url);
        let answer = self.client.call(Method::GET, url);
        let ready = match answer.probe(READINESS_TIMEOUT).await {
            Ok(answer) => answer.status,
            Err(error) => {
                tracing::debug!(node = self.slug, %error, "node does not answer");
                return None;
            }
        };
        let is_alive = ready == StatusCode::OK || self.is_alive().await;
        Readiness::from_status(ready, is_alive)
    }

    /// Whether the worker has no such call at all, and not only something in between.
    pub(super) async fn lacks_call(&self, error: &NodeCallError) -> bool {
        error.kind.is_unsupported() && self.is_alive().await
    }

    /// Makes a call about jobs with the newest token, and with the applied one where the node does not know
    /// the newest: a node that refuses the token has not acted.
    async fn call<T, F>(
        &self,
        method: Method,
        path: &str,
        request: impl Fn(Call<'a>) -> F,
    ) -> Result<T, NodeCallError>
    where
        F: Future<Output = Result<T, NodeCallError>>,
    {
        self.call_to(method, &format!("jobs{path}"), request).await
    }

    /// Same for any call below `/v1/worker/`.
    async fn call_to<T, F>(
        &self,
        method: Method,
        path: &str,
        request: impl Fn(Call<'a>) -> F,
    ) -> Result<T, NodeCallError>
    where
        F: Future<Output = Result<T, NodeCallError>>,
    {
        let call = |token: &str| request(self.authorized_call_to(method.clone(), path, token));
        let answer = call(&self.tokens.newest).await;
        match (&answer, &self.tokens.applied) {
            (Err(error), Some(applied)) if error.kind == NodeCallErrorKind::UnknownToken => {
                call(applied).await
            }
            _ => answer,
        }
    }

    /// Call about jobs with this token.
    fn authorized_call(&self, method: Method, path: &str, token: &str) -> Call<'a> {
        self.authorized_call_to(method, &format!("jobs{path}"), token)
    }

    /// Call below `/v1/worker/` with this token.
    fn authorized_call_to(&self, method: Method, path: &str, token: &str) -> Call<'a> {
        let url = format!("{}/v1/worker/{path}", self.base_url);
        let call = self.client.call(method, url);
        call.bearer(token.to_owned()).instance(self.instance)
    }

    /// Asks about a job, within the time in which a node answers that is alive.
    async fn call_in_time(&self, path: &str) -> Result<JobResponse, NodeCallError> {
        let answer = self.call(Method::GET, path, receive_response);
        let answer = tokio::time::timeout(SILENCE_TIMEOUT, answer).await;
        answer.unwrap_or_else(|_| Err(CallError::timed_out(&self.base_url, SILENCE_TIMEOUT).into()))
    }
}

/// Path of a question about a job, below `/v1/worker/jobs`.
fn job_path(job: JobId, attempt: u32, after: u64, selection: EventSelection) -> String {
    let mut path = format!("/{job}?attempt={attempt}&after={after}");
    match selection {
        EventSelection::Lifecycle => path.push_str("&output=false"),
        EventSelection::Output {
            follow,
            encoding,
            part,
        } => {
            if !follow {
                path.push_str("&follow=false");
            }
            if encoding != OutputEncoding::default() {
                path.push_str(&format!("&encoding={}", encoding.as_str()));
            }
            if part.streams != StreamFilter::default() {
                path.push_str(&format!("&stream={}", part.streams.as_str()));
            }
            if let Some(since) = part.since {
                path.push_str(&format!("&since={since}"));
            }
            if let Some(TailLines(lines)) = part.tail {
                path.push_str(&format!("&tail={lines}"));
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_worker_answers_show_readiness() {
        let readiness = |status: u16, is_alive| {
            Readiness::from_status(StatusCode::from_u16(status).unwrap(), is_alive)
        };
        assert_eq!(readiness(200, true), Some(Readiness::Ready));
        assert_eq!(readiness(503, true), Some(Readiness::NotReady));
        assert_eq!(readiness(503, false), None, "a proxy answers the same");
        for status in [204, 301, 401, 404, 429, 500, 502] {
            assert_eq!(readiness(status, true), None, "{status}");
        }
    }
}
