//! Why we are, or are not, ready. Pure: takes nodes and a time, answers in words.

use crate::{
    api::{
        nodes::{AckStatus, NodeStatus, NodeView},
        time::Time,
    },
    store::Node,
};
use std::time::Duration;

/// A node that was not heard for so long is offline.
pub(super) const HEARD_WITHIN: Duration = Duration::from_secs(30);

/// Where a node stands: whether it may be given jobs, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) status: NodeStatus,
    pub(super) reason: Option<String>,
}

/// Where `node` stands at `now`, reached at `url`.
pub(super) fn standing(node: &Node, url: Option<&str>, now: Time) -> Standing {
    let is = |status, reason: String| Standing {
        status,
        reason: Some(reason),
    };
    let silent = now.since(node.last_seen_at);
    if silent > HEARD_WITHIN {
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
    match (
        node.ack_status,
        node.ack_version == Some(node.config_version),
    ) {
        (Some(AckStatus::Applied), true) => {}
        (Some(AckStatus::Failed), true) => {
            let cause = node.ack_error.as_deref().unwrap_or("it did not say why");
            return is(
                NodeStatus::NotReady,
                format!("could not apply its configuration: {cause}"),
            );
        }
        _ => {
            return is(
                NodeStatus::NotReady,
                "has not acknowledged its configuration yet".to_owned(),
            );
        }
    }
    if node.capability.max_concurrency() == 0 {
        return is(NodeStatus::NotReady, "runs no sandboxes".to_owned());
    }
    Standing {
        status: NodeStatus::Ready,
        reason: None,
    }
}

/// Whether the whole can do work, or the condition that fails.
pub(super) fn overall(nodes: &[NodeView], require_inference: bool) -> Result<(), String> {
    if nodes.is_empty() {
        return Err(
            "no node is registered; start one with: cynode node --orchestrator URL --psk-file FILE"
                .to_owned(),
        );
    }
    let mut ready = nodes
        .iter()
        .filter(|node| node.status == NodeStatus::Ready)
        .peekable();
    if ready.peek().is_none() {
        let each: Vec<String> = nodes
            .iter()
            .map(|node| {
                format!(
                    "node {}: {}",
                    node.node_slug,
                    node.reason.as_deref().unwrap_or("not ready")
                )
            })
            .collect();
        return Err(format!("no node takes jobs; {}", each.join("; ")));
    }
    let infers = |node: &NodeView| {
        node.inference
            .as_ref()
            .is_some_and(|i| i.supported && i.running == Some(true))
    };
    if require_inference && !ready.any(infers) {
        return Err(
            "no node has inference running; --require-inference false makes that optional"
                .to_owned(),
        );
    }
    Ok(())
}

/// Why a task with these labels can't start now; `None` when a node could take it.
pub(super) fn waits_for(labels: &[String], nodes: &[NodeView]) -> Option<String> {
    if let Err(reason) = overall(nodes, false) {
        return Some(reason);
    }
    let mut fitting = nodes
        .iter()
        .filter(|node| {
            node.status == NodeStatus::Ready
                && labels.iter().all(|label| node.labels.contains(label))
        })
        .peekable();
    if fitting.peek().is_none() {
        return Some(format!(
            "no node that takes jobs has the label {}",
            labels.join(" and ")
        ));
    }
    if fitting.all(|node| node.running_jobs >= node.max_concurrency) {
        return Some("all slots are taken; it starts when a job ends".to_owned());
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{NodeId, nodes::CapabilityReport};

    pub(in crate::orchestrator) fn node(slug: &str, concurrency: u32, running_jobs: u32) -> Node {
        let capability: CapabilityReport = serde_json::from_value(serde_json::json!({
            "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": slug},
            "platform": {"os": "linux", "arch": "x86_64"}, "compute": {"cpu_cores": 2, "ram_mb": 1},
            "sandbox": {"supported": concurrency > 0, "max_concurrency": concurrency.max(1)},
        }))
        .unwrap();
        Node {
            id: NodeId::new(),
            slug: slug.to_owned(),
            capability,
            last_seen_at: Time::from_millis(0),
            draining: false,
            worker_url: Some("http://box:1".to_owned()),
            config: None,
            config_version: 2,
            ack_version: Some(2),
            ack_status: Some(AckStatus::Applied),
            ack_error: None,
            running_jobs,
        }
    }

    #[test]
    fn each_missing_condition_is_named() {
        let now = Time::from_millis(0);
        let good = node("a", 1, 0);
        let url = Some("http://box:1");
        assert_eq!(standing(&good, url, now).status, NodeStatus::Ready);
        let later = now.plus(HEARD_WITHIN);
        assert_eq!(standing(&good, url, later).status, NodeStatus::Ready);
        assert_eq!(
            standing(&good, url, later.plus(Duration::from_millis(1))).status,
            NodeStatus::Offline
        );
        let cases: [(Node, Option<&str>, &str); 6] = [
            (
                Node {
                    draining: true,
                    ..good.clone()
                },
                url,
                "draining",
            ),
            (good.clone(), None, "Worker API"),
            (
                Node {
                    ack_version: Some(1),
                    ..good.clone()
                },
                url,
                "not acknowledged",
            ),
            (
                Node {
                    ack_version: None,
                    ack_status: None,
                    ..good.clone()
                },
                url,
                "not acknowledged",
            ),
            (
                Node {
                    ack_status: Some(AckStatus::Failed),
                    ack_error: Some("boom".into()),
                    ..good
                },
                url,
                "boom",
            ),
            (node("a", 0, 0), url, "no sandboxes"),
        ];
        for (node, url, word) in cases {
            let standing = standing(&node, url, now);
            assert_ne!(standing.status, NodeStatus::Ready);
            assert!(standing.reason.unwrap().contains(word), "{word}");
        }
    }
}
