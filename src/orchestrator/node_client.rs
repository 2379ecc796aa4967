//! How a node is reached: run, attach, cancel, forget.
//!
//! This is the one seam between us and a node. Today it is HTTP to the Worker API;
//! nothing else in the orchestrator knows.

use super::Orchestrator;
use crate::{
    api::{
        JobId, PAYLOAD_VERSION,
        events::JobEvent,
        jobs::{JobState, RunJob},
    },
    http::client::{Call, CallError, Client, Lines},
    store::{Node, RunningJob},
};
use http::Method;

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
pub(super) struct Events(Lines);

impl Events {
    /// The next event; `None` at the end. May be given up while it waits, without losing any.
    pub(super) async fn next(&mut self) -> Result<Option<JobEvent>, CallError> {
        self.0.next().await
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
        call.lines().await.map(Events)
    }

    /// Follows a job that the node may have, without starting it; the events after number `after`.
    pub(super) async fn attach(
        &self,
        job: JobId,
        after: u64,
        wanted: Wanted,
    ) -> Result<Events, CallError> {
        let which = match wanted {
            Wanted::Course => "&output=false",
            Wanted::All => "",
            Wanted::SoFar => "&follow=false",
        };
        let call = self.call(Method::GET, &format!("/{job}?after={after}{which}"));
        call.lines().await.map(Events)
    }

    /// Ends a job.
    pub(super) async fn cancel(&self, job: JobId) -> Result<(), CallError> {
        let call = self.call(Method::POST, &format!("/{job}:cancel"));
        call.receive::<JobState>().await.map(drop)
    }

    /// Lets the node forget a job whose result is stored.
    pub(super) async fn forget(&self, job: JobId) -> Result<(), CallError> {
        self.call(Method::DELETE, &format!("/{job}")).done().await
    }
}
