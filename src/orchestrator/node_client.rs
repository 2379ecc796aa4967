//! How a node is reached: run, attach, cancel, forget.
//!
//! This is the one seam between us and a node. Today it is HTTP to the Worker API;
//! nothing else in the orchestrator knows.
//!
//! Our own nodes answer a question about a job at once, with events. Another implementation of the
//! contract may answer one document, and to `jobs:run` only once the job has ended: how long that takes
//! is the caller's affair, who can find out meanwhile [whether the node is there](NodeClient::is_there).

use super::Orchestrator;
use crate::{
    api::{
        JobId, PAYLOAD_VERSION,
        events::JobEvent,
        jobs::{JobList, JobState, RunJob},
        plain::PlainAnswer,
    },
    http::{
        answer::{Answer, Lines},
        client::{Call, CallError, Client},
    },
    store::{Node, RunningJob},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{Method, StatusCode};
use std::time::Duration;

/// A node says every 5 s that it is alive; one that says nothing for so long is not, or there is no way to
/// it any more, which nobody tells us.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
/// Media types of an answer about a job, events rather than a document.
const ACCEPTED: &str = "application/x-ndjson, application/json;q=0.5";
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
pub(super) enum Wanted {
    /// Its start and its end, no output.
    Course,
    /// All that it tells, as it comes.
    All,
    /// What it has told so far, as much as a result would keep of it.
    SoFar,
}

/// Answer of a node to a question about a job, which is still to come.
pub(super) type Pending<'a> = BoxFuture<'a, Result<JobAnswer, CallError>>;

/// Answer of a node to a question about a job.
pub(super) enum JobAnswer {
    /// Events, as they come.
    Events(Events),
    /// One document, of a worker that sends no events.
    Plain(Plain),
}

/// The events of a job as its node sends them.
pub(super) struct Events {
    lines: Lines,
    url: String,
    /// An event that was looked at and not yet taken.
    ahead: Option<JobEvent>,
}

impl Events {
    /// The next event; `None` at the end. One that is silent for too long has broken off. May be given up
    /// while it waits, without losing any.
    pub(super) async fn next(&mut self) -> Result<Option<JobEvent>, CallError> {
        if let Some(event) = self.ahead.take() {
            return Ok(Some(event));
        }
        let next = tokio::time::timeout(SILENCE, self.lines.next()).await;
        next.unwrap_or_else(|_| Err(CallError::silent(&self.url, SILENCE)))
    }

    /// The first event by which the node says more than that it is alive; it stays the next one.
    pub(super) async fn first(&mut self) -> Result<Option<&JobEvent>, CallError> {
        while let Some(event) = self.next().await? {
            if event.seq().is_some() {
                return Ok(Some(self.ahead.insert(event)));
            }
        }
        Ok(None)
    }
}

/// State or result of a job, as its node sends it.
pub(super) struct Plain(Answer);

impl Plain {
    /// Whole document, however long that takes to come.
    pub(super) async fn read(self) -> Result<PlainAnswer, CallError> {
        self.0.document().await
    }
}

impl Orchestrator {
    /// The Worker API of `node`; none before it has said where that is.
    pub(super) fn node_client(&self, node: &Node) -> Option<NodeClient<'_>> {
        let token = |registration| self.identity.worker_token(node.id, registration);
        let served = node.served();
        let registration = served.as_ref().map(|served| served.registration);
        Some(NodeClient {
            client: self.client_for(node),
            base_url: self.worker_url(node)?.trim_end_matches('/').to_owned(),
            tokens: Tokens {
                newest: token(registration.unwrap_or(node.registration)),
                applied: served.and_then(|served| served.applied).map(token),
            },
            instance: &self.instance,
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
        let call = |token: String| read(self.about(method.clone(), &url, token));
        self.tokens.try_each(call).await
    }

    fn about(&self, method: Method, url: &str, token: String) -> Call<'a> {
        let call = self.client.call(method, url).bearer(token);
        call.instance(self.instance)
    }

    /// Has the node run this attempt, or attaches to it where it has done so already; its course, or, from a
    /// worker that sends no events, its end.
    pub(super) fn run(&self, job: &RunningJob) -> Pending<'a> {
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
    pub(super) fn attach(&self, job: JobId, attempt: u32, after: u64) -> Pending<'a> {
        let (this, rest) = (self.clone(), about(job, attempt, after, Wanted::Course));
        async move {
            let answer = this.call(Method::GET, &rest, answer);
            soon(&this.base_url, answer).await
        }
        .boxed()
    }

    /// Events of an attempt that the node may have, for who reads along: those after number `after`.
    pub(super) async fn read(
        &self,
        job: JobId,
        attempt: u32,
        after: u64,
        wanted: Wanted,
    ) -> Result<Events, CallError> {
        let rest = about(job, attempt, after, wanted);
        match soon(&self.base_url, self.call(Method::GET, &rest, answer)).await? {
            JobAnswer::Events(events) => Ok(events),
            JobAnswer::Plain(_) => Err(CallError::Malformed {
                url: self.base_url.clone(),
                reason: "it sends no events".to_owned(),
            }),
        }
    }

    /// Whether the node lives, by its own word: a proxy that has lost sight of it says anything but 200.
    /// Not whether it is ready, which one that is busy may deny.
    pub(super) async fn is_there(&self) -> bool {
        let call = self
            .client
            .call(Method::GET, format!("{}/healthz", self.base_url));
        let answer = call.look(PROBE_TIMEOUT).await;
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
fn about(job: JobId, attempt: u32, after: u64, wanted: Wanted) -> String {
    let which = match wanted {
        Wanted::Course => "&output=false",
        Wanted::All => "",
        Wanted::SoFar => "&follow=false&kept=true",
    };
    format!("/{job}?attempt={attempt}&after={after}{which}")
}

async fn answer(call: Call<'_>) -> Result<JobAnswer, CallError> {
    let answer = call.open(ACCEPTED).await?;
    Ok(if answer.has_lines() {
        JobAnswer::Events(Events {
            url: answer.url().to_owned(),
            lines: answer.lines(),
            ahead: None,
        })
    } else {
        JobAnswer::Plain(Plain(answer))
    })
}

/// An answer that a node which is there gives at once.
async fn soon<T>(
    url: &str,
    answer: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let answer = tokio::time::timeout(SILENCE, answer).await;
    answer.unwrap_or_else(|_| Err(CallError::silent(url, SILENCE)))
}
