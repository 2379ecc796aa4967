//! Why we are, or are not, ready. Pure: takes nodes and a time, answers in words.

use super::liveness::LastContact;
use crate::{
    api::{
        nodes::{AckError, AckStatus, CapabilityReport, Inference, NodeStatus, NodeView},
        time::Time,
    },
    orchestrator::{reason::Reason, summary},
    store::{JobOutlook, Node, TaskRequirements},
};
use std::time::Duration;

/// A node that was not heard for so long is offline.
pub(super) const OFFLINE_AFTER: Duration = Duration::from_secs(30);
/// How the reason of a node whose acknowledgement is `failed` begins; the node's own words follow.
const CONFIG_FAILED_REASON: &str = "could not apply its configuration";
/// How the reason of a node that runs no sandboxes begins; the node's own words follow.
const NO_SANDBOXES_REASON: &str = "runs no sandboxes at present";
/// Reason of a node whose Worker API answers that it is not ready. Its own words stay with it: whoever has
/// its address could say anything to everybody here.
const WORKER_NOT_READY_REASON: &str = "its Worker API answers that it is not ready; see its log";
/// Reason of a node as which two machines call.
pub(super) const DUPLICATE_REASON: &str = "two machines run with the same data directory as this node; stop one of them, \
    or start it with another --data-dir and another --slug; jobs are given to neither until only one has been heard \
    for 30 s";
/// Said of a node that is ready, and for which there is a newer configuration.
pub(super) const STALE_CONFIG_REASON: &str =
    "runs with an older configuration; its next start takes the new one";
/// So many nodes are named one by one.
const MAX_NAMED_NODES: usize = 10;

/// Where a node stands: whether it may be given jobs, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeReadiness {
    pub(super) status: NodeStatus,
    pub(super) reason: Option<Reason>,
}

impl NodeReadiness {
    /// It counts as ready, and doesn't take jobs.
    pub(super) fn not_ready(why: impl Into<Reason>) -> Self {
        Self {
            status: NodeStatus::NotReady,
            reason: Some(why.into()),
        }
    }
}

/// Where `node` stands at `now`, reached at `url` and last heard as `heard` says.
pub(super) fn node_readiness(
    node: &Node,
    url: Option<&str>,
    heard: &LastContact,
    now: Time,
) -> NodeReadiness {
    let is = |status, reason: String| NodeReadiness {
        status,
        reason: Some(reason.into()),
    };
    let refuses = |ours: String, words: Option<&str>| NodeReadiness {
        status: NodeStatus::NotReady,
        reason: Some(Reason::with_detail(ours, words)),
    };
    if let Some(stopped) = stopped_since(node, now) {
        let jobs = match node.running_jobs {
            0 => String::new(),
            1 => ", 1 job goes on".to_owned(),
            jobs => format!(", {jobs} jobs go on"),
        };
        return is(NodeStatus::Offline, format!("{stopped}{jobs}"));
    }
    let silent = now.since(heard.at);
    if silent > OFFLINE_AFTER {
        return is(
            NodeStatus::Offline,
            format!("not heard for {} s", silent.as_secs()),
        );
    }
    if node.draining {
        return is(
            NodeStatus::Draining,
            format!("draining; cynode nodes resume {} ends it", node.slug),
        );
    }
    if url.is_none() {
        return is(
            NodeStatus::NotReady,
            "has not said where its Worker API is".to_owned(),
        );
    }
    // Whichever version it was: it goes on with the last that it applied. Those of another token are gone.
    match node.ack_status {
        Some(AckStatus::Applied) => {}
        Some(AckStatus::Failed) => {
            let (kind, words) =
                AckError::parse_stored(node.ack_error.as_deref().unwrap_or_default());
            let kind = kind.unwrap_or("it did not say why in words that we know");
            return refuses(format!("{CONFIG_FAILED_REASON}: {kind}"), words);
        }
        None => {
            return is(
                NodeStatus::NotReady,
                "has not acknowledged its configuration yet; restart it if it stays so".to_owned(),
            );
        }
    }
    if node.capability.is_full_with_other_jobs() {
        return is(
            NodeStatus::NotReady,
            "all its slots are taken by jobs of another orchestrator; it takes jobs when one ends"
                .to_owned(),
        );
    }
    if node.capability.max_concurrency() == 0 {
        let sandbox = node.capability.sandbox.as_ref();
        let cause = sandbox.and_then(|sandbox| sandbox.reason.as_deref());
        let ours = match cause {
            Some(_) => NO_SANDBOXES_REASON.to_owned(),
            None => format!("{NO_SANDBOXES_REASON}: it did not say why; run cynode doctor there"),
        };
        return refuses(ours, cause);
    }
    if heard.is_unready {
        return is(NodeStatus::NotReady, WORKER_NOT_READY_REASON.to_owned());
    }
    NodeReadiness {
        status: NodeStatus::Ready,
        reason: None,
    }
}

/// Slots of a ready node that are not free for this orchestrator, in words; `None` where all are.
pub(super) fn foreign_jobs(report: &CapabilityReport) -> Option<String> {
    match report.sandbox.as_ref()?.other_jobs {
        0 => None,
        1 => Some("1 more slot is taken by a job of another orchestrator".to_owned()),
        jobs => Some(format!(
            "{jobs} more slots are taken by jobs of another orchestrator"
        )),
    }
}

/// Since when a node is stopped that said so before it left, in words; `None` while it serves.
pub(super) fn stopped_since(node: &Node, now: Time) -> Option<String> {
    let since = node.capability.node.stopping_since?;
    Some(format!("stopped at {}", since.to_minute_text(now)))
}

/// Whether the whole can do work, or the condition that fails.
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
        return Err(format!("no node takes jobs; {each}"));
    }
    let unavailable = |node: &NodeView| inference_unavailable(node.inference.as_ref());
    let infers = |node: &&NodeView| unavailable(node).is_none();
    if require_inference && !ready.iter().any(infers) {
        let why = |node| unavailable(node).unwrap_or_default().to_owned();
        let each = list_nodes(ready, why);
        return Err(format!(
            "no node has inference running; {each}; --require-inference false makes that optional"
        ));
    }
    Ok(())
}

/// What is to be said of each node.
fn list_nodes<'a>(
    nodes: impl IntoIterator<Item = &'a NodeView>,
    say: impl Fn(&'a NodeView) -> String,
) -> String {
    let mut nodes = nodes.into_iter();
    let named = nodes.by_ref().take(MAX_NAMED_NODES);
    let mut said: Vec<String> = named
        .map(|node| format!("node {}: {}", node.node_slug, say(node)))
        .collect();
    let more = nodes.count();
    if more > 0 {
        said.push(format!("and {more} more"));
    }
    said.join("; ")
}

/// Why a node isn't ready, as its view for everybody says it.
fn reason(node: &NodeView) -> String {
    let reason = node.reason.as_deref();
    reason.unwrap_or("not ready").to_owned()
}

/// Why a node that reports this has no inference running; `None` when it has.
pub(super) fn inference_unavailable(inference: Option<&Inference>) -> Option<&'static str> {
    match inference {
        Some(inference) if inference.supported => {
            (inference.running != Some(true)).then_some("its model server does not answer")
        }
        _ => Some("runs no inference (--inference off, or none configured)"),
    }
}

/// Why a task that runs at this node comes to no end.
pub(super) fn unreachable_reason(node: &Node, prospects: JobOutlook, now: Time) -> String {
    let outlook = match prospects {
        JobOutlook {
            is_canceled: true, ..
        } => "is canceled as soon as it is back, and within half a minute in any case",
        JobOutlook { may_move: true, .. } => {
            "goes on as soon as it is back, or, after a lease, at another node that fits"
        }
        _ => "goes on as soon as it is back; this was the last attempt that it may have",
    };
    let state = stopped_since(node, now).unwrap_or_else(|| "does not answer".to_owned());
    format!("node {} {state}; the task {outlook}", node.slug)
}

/// Why a task with these demands can't start now; `None` when a node could take it.
pub(super) fn waiting_reason(demands: &TaskRequirements, nodes: &[NodeView]) -> Option<String> {
    let why = no_free_node(demands, nodes)?;
    let refusals = summary::refusals(&demands.refusals);
    Some(if refusals.is_empty() {
        why
    } else {
        format!("{why}; it was refused by {refusals}")
    })
}

fn no_free_node(demands: &TaskRequirements, nodes: &[NodeView]) -> Option<String> {
    if let Err(reason) = overall(nodes, false) {
        return Some(reason);
    }
    let TaskRequirements { labels, refusals } = demands;
    let has_refused = |node: &NodeView| {
        let mut refusals = refusals.values();
        refusals.any(|refusal| refusal.node == node.node_slug)
    };
    let fitting: Vec<&NodeView> = nodes
        .iter()
        .filter(|node| labels.iter().all(|label| node.labels.contains(label)))
        .filter(|node| !has_refused(node))
        .collect();
    let mut ready = fitting
        .iter()
        .filter(|node| node.status == NodeStatus::Ready)
        .peekable();
    if ready.peek().is_none() {
        let labels = labels.join(" and ");
        return Some(match fitting[..] {
            [] if !refusals.is_empty() => "no other node fits".to_owned(),
            _ if !refusals.is_empty() => {
                let each = list_nodes(fitting, reason);
                format!("no other node that fits takes jobs; {each}")
            }
            [] => format!("no node has the label {labels}"),
            _ => format!(
                "no node that takes jobs has the label {labels}; {}",
                list_nodes(fitting, reason)
            ),
        });
    }
    if ready.all(|node| node.running_jobs >= node.max_concurrency) {
        return Some("all slots are taken; it starts when a job ends".to_owned());
    }
    None
}

#[cfg(test)]
pub(super) mod tests;
