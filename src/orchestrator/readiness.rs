//! Readiness of nodes and of the whole, and the reasons for it. Pure: takes nodes and a time, returns data.

use super::liveness::LastContact;
use crate::{
    api::{
        nodes::{AckError, AckStatus, CapabilityReport, Inference, NodeStatus, NodeView},
        time::Time,
    },
    orchestrator::reason::Reason,
    store::{JobOutlook, Node},
};
use std::time::Duration;

/// Time without contact after which a node is offline.
pub(super) const OFFLINE_AFTER: Duration = Duration::from_secs(30);
/// Reason of a node whose acknowledgement is `failed`; the node's own text follows.
const CONFIG_FAILED_REASON: &str = "could not apply its configuration";
/// Reason of a node that runs no sandboxes; the node's own text follows.
const NO_SANDBOXES_REASON: &str = "runs no sandboxes at present";
/// Reason of a node whose Worker API reports that it is not ready. The text of that answer is not shown:
/// whatever listens at the node's address could say anything to everybody.
const WORKER_NOT_READY_REASON: &str = "its Worker API reports that it is not ready; see its log";
/// Reason of a node that two machines run.
pub(super) const DUPLICATE_REASON: &str = "two machines run with the same data directory as this node; stop one of them, \
    or start it with another --data-dir and another --slug; neither gets jobs until only one has been in contact \
    for 30 s";
/// Remark on a ready node whose configuration is outdated.
pub(super) const STALE_CONFIG_REASON: &str =
    "runs with an outdated configuration; restart it to apply the current one";
/// Maximum number of nodes that a reason names one by one.
pub(super) const MAX_NAMED_NODES: usize = 10;

/// Readiness of a node for jobs, and the reason where it is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeReadiness {
    pub(super) status: NodeStatus,
    pub(super) reason: Option<Reason>,
}

impl NodeReadiness {
    fn new(status: NodeStatus, reason: impl Into<Reason>) -> Self {
        Self {
            status,
            reason: Some(reason.into()),
        }
    }

    /// Not ready, for this reason.
    pub(super) fn not_ready(reason: impl Into<Reason>) -> Self {
        Self::new(NodeStatus::NotReady, reason)
    }
}

/// Readiness of `node` for jobs at `now`, reached at `url` and last contacted as `contact` says.
pub(super) fn node_readiness(
    node: &Node,
    url: Option<&str>,
    contact: &LastContact,
    now: Time,
) -> NodeReadiness {
    if let Some(obstacle) = call_obstacle(node, url, contact, now) {
        return obstacle;
    }
    if let Some(reason) = capacity_reason(node) {
        return NodeReadiness::not_ready(reason);
    }
    if contact.is_unready {
        return NodeReadiness::not_ready(WORKER_NOT_READY_REASON);
    }
    NodeReadiness {
        status: NodeStatus::Ready,
        reason: None,
    }
}

/// Readiness of a node that gets no new calls, be they jobs or calls of models; `None` where it does.
pub(super) fn call_obstacle(
    node: &Node,
    url: Option<&str>,
    contact: &LastContact,
    now: Time,
) -> Option<NodeReadiness> {
    if let Some(stopped) = stopped_since(node, now) {
        let jobs = match node.running_jobs {
            0 => String::new(),
            1 => ", 1 job continues".to_owned(),
            jobs => format!(", {jobs} jobs continue"),
        };
        let reason = format!("{stopped}{jobs}");
        return Some(NodeReadiness::new(NodeStatus::Offline, reason));
    }
    let silence = now.since(contact.at);
    if silence > OFFLINE_AFTER {
        let reason = format!("no contact for {} s", silence.as_secs());
        return Some(NodeReadiness::new(NodeStatus::Offline, reason));
    }
    if node.draining {
        let reason = format!("draining; cynode nodes resume {} ends it", node.slug);
        return Some(NodeReadiness::new(NodeStatus::Draining, reason));
    }
    if url.is_none() {
        return Some(NodeReadiness::not_ready(
            "the URL of its Worker API is unknown",
        ));
    }
    config_reason(node).map(NodeReadiness::not_ready)
}

/// Reason of a node that has applied no configuration. Any applied version counts: the node goes on with it
/// until it applies another. Acknowledgements of another token were deleted.
fn config_reason(node: &Node) -> Option<Reason> {
    match node.ack_status {
        Some(AckStatus::Applied) => None,
        Some(AckStatus::Failed) => {
            let stored = node.ack_error.as_deref().unwrap_or_default();
            let (kind, detail) = AckError::parse_stored(stored);
            let kind = kind.unwrap_or("it gave no reason that this release knows");
            let summary = format!("{CONFIG_FAILED_REASON}: {kind}");
            Some(Reason::with_detail(summary, detail))
        }
        None => Some(
            "has not acknowledged its configuration yet; restart it if this does not change".into(),
        ),
    }
}

/// Reason of a node without slots for this orchestrator.
fn capacity_reason(node: &Node) -> Option<Reason> {
    let capability = &node.capability;
    if capability.is_full_with_other_jobs() {
        return Some(
            "all its slots are in use by another orchestrator; it accepts jobs when one of them is free"
                .into(),
        );
    }
    if capability.max_concurrency() > 0 {
        return None;
    }
    let sandbox = capability.sandbox.as_ref();
    let detail = sandbox.and_then(|sandbox| sandbox.reason.as_deref());
    let summary = match detail {
        Some(_) => NO_SANDBOXES_REASON.to_owned(),
        None => format!("{NO_SANDBOXES_REASON}: it gave no reason; run cynode doctor on it"),
    };
    Some(Reason::with_detail(summary, detail))
}

/// Remark on slots of a ready node that other orchestrators use; `None` if there are none.
pub(super) fn foreign_jobs(report: &CapabilityReport) -> Option<String> {
    match report.sandbox.as_ref()?.other_jobs {
        0 => None,
        1 => Some("1 more slot is in use by another orchestrator".to_owned()),
        jobs => Some(format!(
            "{jobs} more slots are in use by another orchestrator"
        )),
    }
}

/// Remark on a node that was shut down, with the time that it reported; `None` while it runs.
pub(super) fn stopped_since(node: &Node, now: Time) -> Option<String> {
    let since = node.capability.node.stopping_since?;
    Some(format!("stopped at {}", since.to_minute_text(now)))
}

/// Readiness of the whole. Fails with the first condition that is not met.
pub(super) fn overall(nodes: &[NodeView], require_inference: bool) -> Result<(), String> {
    if nodes.is_empty() {
        return Err(
            "no node is registered; start one with: cynode node --orchestrator URL --psk-file FILE"
                .to_owned(),
        );
    }
    if nodes.iter().all(|node| node.status == NodeStatus::Draining) {
        return Err("all nodes are draining; cynode nodes resume SLUG ends it".to_owned());
    }
    let ready: Vec<&NodeView> = nodes
        .iter()
        .filter(|node| node.status == NodeStatus::Ready)
        .collect();
    if ready.is_empty() {
        let each = list_nodes(nodes, reason);
        return Err(format!("no node accepts jobs; {each}"));
    }
    let infers = |node: &&NodeView| node.inference.as_ref().is_some_and(Inference::is_serving);
    if require_inference && !ready.iter().any(infers) {
        let could_infer = |node: &&NodeView| {
            let inference = node.inference.as_ref();
            node.status == NodeStatus::Ready || inference.is_some_and(|known| known.supported)
        };
        let each = list_nodes(nodes.iter().filter(could_infer), |node| match node.status {
            NodeStatus::Ready => inference_unavailable(node.inference.as_ref()),
            _ => reason(node),
        });
        return Err(format!(
            "no node has inference running; {each}; --require-inference false makes that optional"
        ));
    }
    Ok(())
}

/// Text on each node, for up to [`MAX_NAMED_NODES`] of them.
pub(super) fn list_nodes<'a>(
    nodes: impl IntoIterator<Item = &'a NodeView>,
    text: impl Fn(&'a NodeView) -> String,
) -> String {
    let mut nodes = nodes.into_iter();
    let named = nodes.by_ref().take(MAX_NAMED_NODES);
    let mut parts: Vec<String> = named
        .map(|node| format!("node {}: {}", node.node_slug, text(node)))
        .collect();
    let more = nodes.count();
    if more > 0 {
        parts.push(format!("and {more} more"));
    }
    parts.join("; ")
}

/// Reason why a node is not ready, from its view for everybody.
pub(super) fn reason(node: &NodeView) -> String {
    let reason = node.reason.as_deref();
    reason.unwrap_or("not ready").to_owned()
}

/// Reason why a node that does not serve models does not, from its view.
pub(super) fn inference_unavailable(inference: Option<&Inference>) -> String {
    match inference.filter(|inference| inference.supported) {
        Some(Inference {
            reason: Some(reason),
            ..
        }) => format!("its model server can't run: {reason}"),
        Some(_) => "its model server does not answer".to_owned(),
        None => "runs no inference (--inference off, or none configured)".to_owned(),
    }
}

/// Reason why the model server of a node can't run, as its report gives it.
pub(super) fn model_server_reason(reported: &str) -> Reason {
    let (kind, detail) = AckError::parse_stored(reported);
    Reason::with_detail(
        kind.unwrap_or("it gave no reason that this release knows"),
        detail,
    )
}

/// Reason why a task that runs on this unreachable node makes no progress, and what happens next.
pub(super) fn unreachable_reason(node: &Node, prospects: JobOutlook, now: Time) -> String {
    let outlook = match prospects {
        JobOutlook {
            is_canceled: true, ..
        } => "is canceled when it is back, or within 30 s in any case",
        JobOutlook { may_move: true, .. } => {
            "continues when it is back, or, after its lease, on another suitable node"
        }
        _ => "continues when it is back; this is the last attempt, so no other node gets it",
    };
    let state = stopped_since(node, now).unwrap_or_else(|| "does not answer".to_owned());
    format!("node {} {state}; the task {outlook}", node.slug)
}

#[cfg(test)]
pub(super) mod tests;
