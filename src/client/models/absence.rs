//! Reasons for which no node serves a model. Pure.

use crate::{
    api::nodes::{NodeStatus, NodeView},
    client::print::clean,
};

/// Most nodes that are named.
const MAX_NAMED_NODES: usize = 8;

/// Text where these are all nodes and none serves a model: why not, node by node, and what to do.
pub(super) fn explain(nodes: &[NodeView]) -> String {
    if nodes.is_empty() {
        return "no node is registered; start one with: cynode node --orchestrator URL --psk-file FILE".to_owned();
    }
    let infers = |node: &&NodeView| node.inference.as_ref().is_some_and(|known| known.supported);
    let able: Vec<_> = nodes.iter().filter(infers).collect();
    if able.is_empty() {
        return "no node runs a model server; cynode nodes list shows the nodes, and cynode nodes show NODE why one runs none"
            .to_owned();
    }
    let mut text = "no node serves a model now".to_owned();
    for node in able.iter().take(MAX_NAMED_NODES) {
        text.push_str(&format!("\n{}", explain_node(node)));
    }
    if able.len() > MAX_NAMED_NODES {
        text.push_str("\ncynode nodes list shows the other nodes");
    }
    text
}

/// Same of one node.
pub(super) fn explain_node(node: &NodeView) -> String {
    clean(&format!("node {}: {}", node.node_slug, obstacle(node)))
}

/// Reason of one node, and the remedy.
fn obstacle(node: &NodeView) -> String {
    let (slug, reason) = (&node.node_slug, node.reason.as_deref());
    match (node.status, reason) {
        (NodeStatus::Offline, Some(reason)) => return format!("offline, {reason}"),
        (NodeStatus::Offline, None) => return "offline".to_owned(),
        (NodeStatus::Draining, Some(reason)) => return reason.to_owned(),
        (NodeStatus::Draining, None) => {
            return format!("draining; cynode nodes resume {slug} ends it");
        }
        _ => {}
    }
    let Some(inference) = node.inference.as_ref().filter(|known| known.supported) else {
        return format!("it runs no model server; cynode nodes show {slug} says why");
    };
    if !inference.is_serving() {
        let reason = inference.reason.as_deref();
        let reason = reason.map(|reason| format!(": {reason}"));
        let reason = reason.unwrap_or_default();
        return format!("its model server does not run{reason}");
    }
    if inference.known_models().is_empty() {
        return format!(
            "it has no model; an admin adds one with: cynode models pull MODEL --node {slug}"
        );
    }
    let unknown = "its models can't be asked; try again in a moment, or update cynode there";
    // That of a node that is ready is only a remark.
    let reason = reason.filter(|_| node.status == NodeStatus::NotReady);
    reason.unwrap_or(unknown).to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::node, *};
    use serde_json::json;

    #[test]
    fn each_reason_has_its_remedy() {
        let server =
            |models: &[&str]| json!({"supported": true, "running": true, "models": models});
        let because = |mut node: NodeView, reason: &str| {
            node.reason = Some(reason.to_owned());
            node
        };
        let plain = || node("plain", "ready", json!({"supported": false}));
        let broken =
            json!({"supported": true, "running": false, "reason": "port-in-use: \u{1b}[2J"});
        for (nodes, text) in [
            (
                vec![],
                "no node is registered; start one with: cynode node ",
            ),
            (vec![plain()], "no node runs a model server; "),
            (
                vec![
                    plain(),
                    because(
                        node("box", "draining", server(&["a"])),
                        "draining; resume it",
                    ),
                ],
                "no node serves a model now\nnode box: draining; resume it",
            ),
            (
                vec![node("box", "draining", server(&[]))],
                "cynode nodes resume box ends it",
            ),
            (
                vec![because(
                    node("box", "offline", server(&["a"])),
                    "no contact for 31 s",
                )],
                "\nnode box: offline, no contact for 31 s",
            ),
            (
                vec![
                    node("off", "offline", server(&[])),
                    node("box", "ready", server(&[])),
                ],
                "\nnode off: offline\nnode box: it has no model; an admin adds one with: cynode models pull MODEL --node box",
            ),
            (
                vec![node("box", "ready", broken)],
                "\nnode box: its model server does not run: port-in-use:  [2J",
            ),
            (
                vec![because(
                    node("box", "not_ready", server(&["a"])),
                    "has no URL",
                )],
                "\nnode box: has no URL",
            ),
            (
                vec![node("box", "ready", server(&["a"]))],
                "update cynode there",
            ),
            (
                vec![node("n", "offline", server(&[])); 9],
                "shows the other nodes",
            ),
        ] {
            let shown = explain(&nodes);
            assert!(shown.contains(text), "{shown}");
            assert_eq!(
                shown.contains("models pull"),
                text.contains("models pull"),
                "{shown}"
            );
        }
        let shown = explain_node(&plain());
        assert!(
            shown.starts_with("node plain: it runs no model server; "),
            "{shown}"
        );
    }
}
