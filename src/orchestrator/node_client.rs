//! How a node is reached: run, attach, cancel, forget.
//!
//! This is the one seam between us and a node. Today it is HTTP to the Worker API;
//! nothing else in the orchestrator knows.
//!
//! Our own nodes answer a question about a job at once, with events. Another implementation of the
//! contract may answer one document, and to `jobs:run` only once the job has ended: how long that takes
//! is the caller's affair, who can find out meanwhile [whether the node is there](NodeClient::is_alive).

use super::AppState;
use crate::{
    api::{
        JobId, PAYLOAD_VERSION,
        events::JobEvent,
        job_document::JobDocument,
        jobs::{JobList, JobState, RunJob},
    },
    http::{
        client::{Call, CallError, Client},
        client_response::{ClientResponse, JsonLines},
    },
    store::{Node, RunningJob},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{Method, StatusCode};
use std::time::Duration;

/// A node says every 5 s that it is alive; one that says nothing for so long is not, or there is no way to
/// it any more, which nobody tells us.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);
/// Media types of an answer about a job, events rather than a document.
const ACCEPTED_TYPES: &str = "application/x-ndjson, application/json;q=0.5";
/// Time limit of an answer that a node can give without any work.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The Worker API of one node.
#[derive(Clone)]
pub(super) struct NodeClient<'a> {
    client: &'a Client,
    base_url: String,
    tokens: Tokens,
    /// This process, so that a node finds out where two call as one orchestrator.
    instance: &'a str,
}

/// Tokens of which the node accepts one: that which it was served last, and, until it has acknowledged that,
/// the one that it applied before. Neither is shown at an address that was named after a later registration
/// ([`crate::store`] sees to it).
#[derive(Clone)]
struct Tokens {
    newest: String,
    applied: Option<String>,
}

impl Tokens {
    /// Makes a call with the one, and, where the node knows no such token, with the other: a refusal of the
    /// token is certain to have done nothing.
    async fn try_each<T, F>(&self, call: impl Fn(String) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let outcome = call(self.newest.clone()).await;
        match (&outcome, &self.applied) {
            (Err(error), Some(applied)) if error.status() == Some(StatusCode::UNAUTHORIZED) => {
                call(applied.clone()).await
            }
            _ => outcome,
        }
    }
}

/// What is wanted of a job that a node has.
#[derive(Clone, Copy)]
pub(super) enum EventSelection {
    /// Its start and its end, no output.
    Lifecycle,
    /// All that it tells, as it comes.
    All,
    /// What it has told so far, as much as a result would keep of it.
    Kept,
}

/// Answer of a node to a question about a job, which is still to come.
pub(super) type PendingResponse<'a> = BoxFuture<'a, Result<JobResponse, CallError>>;

/// Answer of a node to a question about a job.
pub(super) enum JobResponse {
    /// NodeEvents, as they come.
    Stream(NodeEvents),
    /// One document, of a worker that sends no events.
    Document(PendingDocument),
}

/// The events of a job as its node sends them.
pub(super) struct NodeEvents {
    lines: JsonLines,
    url: String,
    /// An event that was looked at and not yet taken.
    peeked: Option<JobEvent>,
}

impl NodeEvents {
    /// The next event; `None` at the end. One that is silent for too long has broken off. May be given up
    /// while it waits, without losing any.
    pub(super) async fn next(&mut self) -> Result<Option<JobEvent>, CallError> {
        if let Some(event) = self.peeked.take() {
            return Ok(Some(event));
        }
        let next = tokio::time::timeout(SILENCE_TIMEOUT, self.lines.next()).await;
        next.unwrap_or_else(|_| Err(CallError::timed_out(&self.url, SILENCE_TIMEOUT)))
    }

    /// The first event by which the node says more than that it is alive; it stays the next one.
    pub(super) async fn peek_first(&mut self) -> Result<Option<&JobEvent>, CallError> {
        while let Some(event) = self.next().await? {
            if event.seq().is_some() {
                return Ok(Some(self.peeked.insert(event)));
            }
        }
        Ok(None)
    }
}

/// State or result of a job, as its node sends it.
pub(super) struct PendingDocument(ClientResponse);

impl PendingDocument {
    /// Whole document, however long that takes to come.
    pub(super) async fn read(self) -> Result<JobDocument, CallError> {
        self.0.document().await
    }
}

impl AppState {
    /// The Worker API of `node`; none before it has said where that is.
    pub(super) fn node_client(&self, node: &Node) -> Option<NodeClient<'_>> {
        let token = |registration| self.identity.worker_token(node.id, registration);
        let served = node.served_config();
        let registration = served.as_ref().map(|served| served.registration);
        Some(NodeClient {
            client: self.http_client_for(node),
            base_url: self.worker_url(node)?.trim_end_matches('/').to_owned(),
            tokens: Tokens {
                newest: token(registration.unwrap_or(node.registration)),
                applied: served.and_then(|served| served.applied).map(token),
            },
            instance: &self.instance_id,
        })
    }
}

impl<'a> NodeClient<'a> {
    /// Makes a call about jobs.
    async fn call<T, F>(
        &self,
        method: Method,
        rest: &str,
        read: impl Fn(Call<'a>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let url = format!("{}/v1/worker/jobs{rest}", self.base_url);
        let call = |token: String| read(self.authorized(method.clone(), &url, token));
        self.tokens.try_each(call).await
    }

    fn authorized(&self, method: Method, url: &str, token: String) -> Call<'a> {
        let call = self.client.call(method, url).bearer(token);
        call.instance(self.instance)
    }

    /// Has the node run this attempt, or attaches to it where it has done so already; its course, or, from a
    /// worker that sends no events, its end.
    pub(super) fn run(&self, job: &RunningJob) -> PendingResponse<'a> {
        let body = RunJob {
            version: PAYLOAD_VERSION,
            task_id: job.task_id,
            job_id: job.id,
            attempt: job.attempt,
            sandbox: job.spec.sandbox.clone(),
        };
        let this = self.clone();
        async move {
            let call = |call: Call<'a>| answer(call.json(&body));
            this.call(Method::POST, ":run?output=false", call).await
        }
        .boxed()
    }

    /// Follows an attempt that the node may have, without starting it: its course after event number
    /// `after`.
    pub(super) fn attach(&self, job: JobId, attempt: u32, after: u64) -> PendingResponse<'a> {
        let (this, rest) = (
            self.clone(),
            job_path(job, attempt, after, EventSelection::Lifecycle),
        );
        async move {
            let answer = this.call(Method::GET, &rest, answer);
            with_silence_timeout(&this.base_url, answer).await
        }
        .boxed()
    }

    /// NodeEvents of an attempt that the node may have, for who reads along: those after number `after`.
    pub(super) async fn read_events(
        &self,
        job: JobId,
        attempt: u32,
        after: u64,
        wanted: EventSelection,
    ) -> Result<NodeEvents, CallError> {
        let rest = job_path(job, attempt, after, wanted);
        match with_silence_timeout(&self.base_url, self.call(Method::GET, &rest, answer)).await? {
            JobResponse::Stream(events) => Ok(events),
            JobResponse::Document(_) => Err(CallError::Malformed {
                url: self.base_url.clone(),
                reason: "it sends no events".to_owned(),
            }),
        }
    }

    /// Whether the node lives, by its own word: a proxy that has lost sight of it says anything but 200.
    /// Not whether it is ready, which one that is busy may deny.
    pub(super) async fn is_alive(&self) -> bool {
        let call = self
            .client
            .call(Method::GET, format!("{}/healthz", self.base_url));
        let answer = call.probe(PROBE_TIMEOUT).await;
        answer.is_ok_and(|answer| answer.status == StatusCode::OK)
    }

    /// What the node has, ended or not.
    pub(super) async fn list(&self) -> Result<Vec<JobState>, CallError> {
        let list = self.call(Method::GET, "", Call::receive::<JobList>);
        Ok(list.await?.jobs)
    }

    /// Ends an attempt.
    pub(super) async fn cancel(&self, job: JobId, attempt: u32) -> Result<(), CallError> {
        let rest = format!("/{job}:cancel?attempt={attempt}");
        self.call(Method::POST, &rest, Call::done).await
    }

    /// Lets the node forget an attempt whose result is stored.
    pub(super) async fn forget(&self, job: JobId, attempt: u32) -> Result<(), CallError> {
        let rest = format!("/{job}?attempt={attempt}");
        self.call(Method::DELETE, &rest, Call::done).await
    }
}

/// Where a question about a job goes.
fn job_path(job: JobId, attempt: u32, after: u64, wanted: EventSelection) -> String {
    let which = match wanted {
        EventSelection::Lifecycle => "&output=false",
        EventSelection::All => "",
        EventSelection::Kept => "&follow=false&kept=true",
    };
    format!("/{job}?attempt={attempt}&after={after}{which}")
}

async fn answer(call: Call<'_>) -> Result<JobResponse, CallError> {
    let answer = call.open(ACCEPTED_TYPES).await?;
    Ok(if answer.has_lines() {
        JobResponse::Stream(NodeEvents {
            url: answer.url().to_owned(),
            lines: answer.lines(),
            peeked: None,
        })
    } else {
        JobResponse::Document(PendingDocument(answer))
    })
}

/// An answer that a node which is there gives at once.
async fn with_silence_timeout<T>(
    url: &str,
    answer: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let answer = tokio::time::timeout(SILENCE_TIMEOUT, answer).await;
    answer.unwrap_or_else(|_| Err(CallError::timed_out(url, SILENCE_TIMEOUT)))
}
