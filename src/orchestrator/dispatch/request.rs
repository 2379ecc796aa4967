//! First request of an attempt, and the node that it goes to.

use super::outcome::{AttemptError, AttemptOutcome};
use crate::{
    api::{
        NodeId, PAYLOAD_VERSION,
        jobs::{RunJob, SandboxSpec},
        nodes::features,
        secrets::{SecretRef, SecretValues},
    },
    orchestrator::{
        AppState,
        node_client::{NodeClient, PendingResponse},
        reason::Reason,
    },
    store::{Node, RunningJob},
};

/// Way in which an attempt starts at its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::orchestrator) enum Start {
    /// The node has not been sent this attempt: send it.
    Run,
    /// The node may have this attempt: ask about it, and never send it again.
    Attach,
}

impl Start {
    /// Way for the request that is made now. Any later request attaches.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Attach)
    }
}

/// Request by which an attempt starts.
pub(super) struct InitialRequest<'a> {
    pub(super) start: Start,
    /// Answer to it, where it was made already.
    pub(super) pending: Option<PendingResponse<'a>>,
}

impl From<Start> for InitialRequest<'_> {
    fn from(start: Start) -> Self {
        Self {
            start,
            pending: None,
        }
    }
}

/// Request that sends an attempt to its node, or asks about it: its lifecycle after event number `after`. All that it
/// needs is read before, so that a request without an answer was made.
pub(super) async fn request_job<'a>(
    state: &AppState,
    client: &NodeClient<'a>,
    job: &RunningJob,
    start: Start,
    after: u64,
) -> Result<PendingResponse<'a>, AttemptError> {
    Ok(match start {
        Start::Run => {
            let sandbox = state.store.task_sandbox(job.task_id).await;
            let mut sandbox = sandbox.map_err(AttemptError::of_sandbox)?;
            state.settings.egress.apply(&mut sandbox);
            let secrets = secrets(state, client, job, &sandbox).await?;
            client.run(RunJob {
                version: PAYLOAD_VERSION,
                task_id: job.task_id,
                job_id: job.id,
                attempt: job.attempt,
                sandbox,
                secrets,
            })
        }
        Start::Attach => client.attach(job.id, job.attempt, after),
    })
}

/// Values of the secrets that a job names, as they are now.
async fn secrets(
    state: &AppState,
    client: &NodeClient<'_>,
    job: &RunningJob,
    sandbox: &SandboxSpec,
) -> Result<SecretValues, AttemptError> {
    if sandbox.secrets.is_empty() {
        return Ok(SecretValues::default());
    }
    let node: Result<Option<Node>, _> = state.store.node_get(job.node_id).await;
    let node = node.map_err(AttemptError::of_store)?;
    check_way(state, client, node.as_ref())?;
    if sandbox.secrets.iter().any(SecretRef::is_at_edge) {
        check_edge(node.as_ref())?;
    }
    let values = state
        .identity
        .secrets_of_task(job.task_id, &sandbox.secrets);
    values.await.map_err(AttemptError::of_secrets)
}

/// Fails where secrets would go to the address of a node that has a tunnel: whoever can cut the tunnel would get them in
/// the clear. The operator may want that, with `--worker-url`.
fn check_way(
    state: &AppState,
    client: &NodeClient<'_>,
    node: Option<&Node>,
) -> Result<(), AttemptError> {
    let is_meant = |node: &Node| {
        !node.capability.has_tunnel() || state.settings.worker_urls.contains_key(&node.slug)
    };
    if client.uses_tunnel() || node.is_none_or(is_meant) {
        return Ok(());
    }
    Err(not_sent(
        "the tunnel of its node is not connected, and secrets don't go to the address of that node in the clear",
    ))
}

/// Fails where the node would give the command what it must not see, as one of an earlier release does, by which it may have
/// been replaced since it was chosen.
fn check_edge(node: Option<&Node>) -> Result<(), AttemptError> {
    let knows = |node: &Node| node.capability.has_feature(features::EGRESS_TERMINATE);
    if node.is_some_and(knows) {
        return Ok(());
    }
    Err(not_sent(
        "its node no longer keeps secrets at the edge; upgrade cynode there",
    ))
}

/// Error after which a job goes back into the queue, since its node was not sent it.
fn not_sent(reason: &str) -> AttemptError {
    let reason = Reason::from(reason);
    AttemptError {
        outcome: Some(AttemptOutcome::NotSent(reason.clone())),
        ..AttemptError::transient(reason)
    }
}

/// Client of the node of an attempt, as the node is known now.
pub(super) async fn connect<'a>(
    state: &'a AppState,
    job: &RunningJob,
    start: Start,
) -> Result<NodeClient<'a>, AttemptError> {
    let node: Result<Option<Node>, _> = state.store.node_get(job.node_id).await;
    let node = node
        .map_err(AttemptError::of_store)?
        .ok_or_else(|| AttemptError::lost("its node was removed"))?;
    state.node_client(&node).ok_or_else(|| {
        let reason = Reason::from("it has not reported the URL of its Worker API");
        AttemptError {
            store_error: None,
            outcome: (start == Start::Run).then(|| AttemptOutcome::NotStarted(reason.clone())),
            reason,
        }
    })
}

/// Name of a node in log lines: its slug, or its id where the store can't be read.
pub(super) async fn node_slug(state: &AppState, id: NodeId) -> String {
    let node = state.store.node_get(id).await.ok().flatten();
    node.map_or_else(|| id.to_string(), |node| node.slug)
}
