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
    use serde_json::{Value, json};

    fn server(models: &[&str]) -> Value {
        json!({"supported": true, "running": true, "models": models})
    }

    fn because(mut node: NodeView, reason: &str) -> NodeView {
        node.reason = Some(reason.to_owned());
        node
    }

    fn plain() -> NodeView {
        node("plain", "ready", json!({"supported": false}))
    }

    #[test]
    fn each_reason_has_its_remedy() {
        let broken =
            json!({"supported": true, "running": false, "reason": "port-in-use: \u{1b}[2J"});
        let (with_model, empty) = (|| server(&["a"]), || server(&[]));
        let pull = "it has no model; an admin adds one with: cynode models pull MODEL --node box";
        let not_asked = "its models can't be asked; try again in a moment, or update cynode there";
        for (node, text) in [
            (
                plain(),
                "it runs no model server; cynode nodes show box says why",
            ),
            (
                because(node("box", "draining", with_model()), "draining; resume it"),
                "draining; resume it",
            ),
            (
                node("box", "draining", empty()),
                "draining; cynode nodes resume box ends it",
            ),
            (
                because(node("box", "offline", with_model()), "no contact for 31 s"),
                "offline, no contact for 31 s",
            ),
            (node("box", "offline", empty()), "offline"),
            (node("box", "ready", empty()), pull),
            (
                node("box", "ready", broken),
                "its model server does not run: port-in-use:  [2J",
            ),
            (
                because(node("box", "not_ready", with_model()), "has no URL"),
                "has no URL",
            ),
            (
                because(node("box", "ready", with_model()), "1 more slot is in use"),
                not_asked,
            ),
        ] {
            let named = NodeView {
                node_slug: "box".to_owned(),
                ..node
            };
            assert_eq!(explain_node(&named), format!("node box: {text}"));
        }
    }

    #[test]
    fn nodes_with_model_server_are_named() {
        let off = || node("off", "offline", server(&[]));
        for (nodes, text) in [
            (
                vec![],
                "no node is registered; start one with: cynode node ",
            ),
            (vec![plain()], "no node runs a model server; "),
            (
                vec![plain(), off()],
                "no node serves a model now\nnode off: offline",
            ),
            (vec![off(); 9], "\ncynode nodes list shows the other nodes"),
        ] {
            let shown = explain(&nodes);
            assert!(shown.contains(text), "{shown}");
            assert!(!shown.contains("models pull"), "{shown}");
        }
    }
}
