//! How a node is reached: run, attach, cancel, forget.
//!
//! This is the one seam between dispatch and a node. Today it is HTTP to the Worker API;
//! nothing else in the orchestrator knows.

use crate::{
    api::{
        JobId, PAYLOAD_VERSION,
        events::JobEvent,
        jobs::{JobState, RunJob},
    },
    http::client::{CallError, Client, Lines},
    store::RunningJob,
};
use http::Method;

/// The Worker API of one node.
pub(super) struct NodeClient<'a> {
    client: &'a Client,
    base_url: &'a str,
    token: String,
}

/// The events of a job as its node sends them.
pub(super) struct Events(Lines);

impl Events {
    /// The next event; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<JobEvent>, CallError> {
        self.0.next().await
    }
}

impl<'a> NodeClient<'a> {
    pub(super) fn new(client: &'a Client, base_url: &'a str, token: String) -> Self {
        Self {
            client,
            base_url: base_url.trim_end_matches('/'),
            token,
        }
    }

    fn url(&self, rest: &str) -> String {
        format!("{}/v1/worker/jobs{rest}", self.base_url)
    }

    /// Has the node run this attempt, or attaches to it where it has done so already.
    pub(super) async fn run(&self, job: &RunningJob) -> Result<Events, CallError> {
        let body = RunJob {
            version: PAYLOAD_VERSION,
            task_id: job.task_id,
            job_id: job.id,
            attempt: job.attempt,
            sandbox: job.spec.sandbox.clone(),
        };
        self.client
            .call(Method::POST, self.url(":run"))
            .bearer(&self.token)
            .json(&body)
            .lines()
            .await
            .map(Events)
    }

    /// Follows a job that the node may have, without starting it; the events after number `after`.
    pub(super) async fn attach(&self, job: JobId, after: u64) -> Result<Events, CallError> {
        let url = self.url(&format!("/{job}?after={after}"));
        self.client
            .call(Method::GET, url)
            .bearer(&self.token)
            .lines()
            .await
            .map(Events)
    }

    /// Ends a job.
    pub(super) async fn cancel(&self, job: JobId) -> Result<(), CallError> {
        let url = self.url(&format!("/{job}:cancel"));
        self.client
            .call(Method::POST, url)
            .bearer(&self.token)
            .receive::<JobState>()
            .await
            .map(drop)
    }

    /// Lets the node forget a job whose result is stored.
    pub(super) async fn forget(&self, job: JobId) -> Result<(), CallError> {
        self.client
            .call(Method::DELETE, self.url(&format!("/{job}")))
            .bearer(&self.token)
            .done()
            .await
    }
}
