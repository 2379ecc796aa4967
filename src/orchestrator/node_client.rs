//! How a node is reached: run, attach, cancel, forget.
//!
//! This is the one seam between us and a node. Today it is HTTP to the Worker API;
//! nothing else in the orchestrator knows.

use super::Orchestrator;
use crate::{
    api::{
        JobId, PAYLOAD_VERSION,
        events::JobEvent,
        jobs::{JobList, JobState, RunJob},
    },
    http::client::{Call, CallError, Client, Lines},
    store::{Node, RunningJob},
};
use http::Method;
use std::time::Duration;

/// A node says every 5 s that it is alive; one that says nothing for so long is not, or there is no way to
/// it any more, which nobody tells us.
const SILENCE: Duration = Duration::from_secs(15);

/// The Worker API of one node.
pub(super) struct NodeClient<'a> {
    client: &'a Client,
    base_url: &'a str,
    token: String,
}

/// What is wanted of a job that a node has.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    /// Its start and its end, no output.
    Course,
    /// All that it tells, as it comes.
    All,
    /// What it has told so far.
    SoFar,
}

/// The events of a job as its node sends them.
pub(super) struct Events {
    lines: Lines,
    url: String,
}

impl Events {
    /// The next event; `None` at the end. One that is silent for too long has broken off. May be given up
    /// while it waits, without losing any.
    pub(super) async fn next(&mut self) -> Result<Option<JobEvent>, CallError> {
        let next = tokio::time::timeout(SILENCE, self.lines.next()).await;
        next.unwrap_or_else(|_| Err(CallError::silent(&self.url, SILENCE)))
    }
}

impl Orchestrator {
    /// The Worker API of `node`; none before it has said where that is.
    pub(super) fn node_client<'a>(&'a self, node: &'a Node) -> Option<NodeClient<'a>> {
        Some(NodeClient {
            client: &self.client,
            base_url: self.worker_url(node)?.trim_end_matches('/'),
            token: self.identity.worker_token(node.id),
        })
    }
}

impl NodeClient<'_> {
    fn call(&self, method: Method, rest: &str) -> Call<'_> {
        let url = format!("{}/v1/worker/jobs{rest}", self.base_url);
        self.client.call(method, url).bearer(&self.token)
    }

    /// Has the node run this attempt, or attaches to it where it has done so already; its course.
    pub(super) async fn run(&self, job: &RunningJob) -> Result<Events, CallError> {
        let body = RunJob {
            version: PAYLOAD_VERSION,
            task_id: job.task_id,
            job_id: job.id,
            attempt: job.attempt,
            sandbox: job.spec.sandbox.clone(),
        };
        let call = self.call(Method::POST, ":run?output=false").json(&body);
        self.events(call).await
    }

    /// Follows an attempt that the node may have, without starting it; the events after number `after`.
    pub(super) async fn attach(
        &self,
        job: JobId,
        attempt: u32,
        after: u64,
        wanted: Wanted,
    ) -> Result<Events, CallError> {
        let which = match wanted {
            Wanted::Course => "&output=false",
            Wanted::All => "",
            Wanted::SoFar => "&follow=false",
        };
        let rest = format!("/{job}?attempt={attempt}&after={after}{which}");
        self.events(self.call(Method::GET, &rest)).await
    }

    async fn events(&self, call: Call<'_>) -> Result<Events, CallError> {
        let lines = tokio::time::timeout(SILENCE, call.lines()).await;
        let lines = lines.unwrap_or_else(|_| Err(CallError::silent(self.base_url, SILENCE)))?;
        let url = self.base_url.to_owned();
        Ok(Events { lines, url })
    }

    /// What the node has, ended or not.
    pub(super) async fn list(&self) -> Result<Vec<JobState>, CallError> {
        let list = self.call(Method::GET, "").receive::<JobList>().await?;
        Ok(list.jobs)
    }

    /// Ends an attempt.
    pub(super) async fn cancel(&self, job: JobId, attempt: u32) -> Result<(), CallError> {
        let rest = format!("/{job}:cancel?attempt={attempt}");
        let call = self.call(Method::POST, &rest);
        call.receive::<JobState>().await.map(drop)
    }

    /// Lets the node forget an attempt whose result is stored.
    pub(super) async fn forget(&self, job: JobId, attempt: u32) -> Result<(), CallError> {
        let rest = format!("/{job}?attempt={attempt}");
        self.call(Method::DELETE, &rest).done().await
    }
}
