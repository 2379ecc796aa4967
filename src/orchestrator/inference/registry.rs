//! Models of the nodes that can serve now, as the nodes report them. Pure.

use crate::{
    api::{
        NodeId,
        nodes::{INFERENCE_PROXY, ModelDetails},
    },
    store::Node,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

/// Models at one time.
#[derive(Default)]
pub(super) struct Registry {
    nodes: Vec<ServingNode>,
    /// Models of nodes that can't serve at present, each with a node and the reason.
    absent: BTreeMap<String, Absent>,
    /// Number of nodes, serving or not.
    count: usize,
    /// List of the models as JSON, made when it is first asked for.
    pub(super) list: OnceLock<Bytes>,
}

/// Node that can serve now.
pub(super) struct ServingNode {
    pub(super) node: Arc<Node>,
    /// Models, and whether each is loaded.
    models: BTreeMap<String, bool>,
}

/// Node that has a model and can't serve it.
#[derive(Clone)]
pub(super) struct Absent {
    pub(super) slug: String,
    pub(super) reason: String,
}

impl Registry {
    /// Registry of these nodes. `obstacle` is the reason for which a node can't serve now.
    pub(super) fn new(nodes: Vec<Node>, obstacle: impl Fn(&Node) -> Option<String>) -> Self {
        let mut registry = Self {
            count: nodes.len(),
            ..Self::default()
        };
        for node in nodes {
            let models = models_of(&node);
            let obstacle = obstacle(&node).or_else(|| server_obstacle(&node).map(str::to_owned));
            let Some(reason) = obstacle else {
                let node = Arc::new(node);
                registry.nodes.push(ServingNode { node, models });
                continue;
            };
            for model in models.into_keys() {
                let absent = Absent {
                    slug: node.slug.clone(),
                    reason: reason.clone(),
                };
                registry.absent.entry(model).or_insert(absent);
            }
        }
        registry
    }

    /// Nodes that can serve now.
    pub(super) fn nodes(&self) -> &[ServingNode] {
        &self.nodes
    }

    /// Number of nodes, serving or not.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Serving nodes that have a model, and whether it is loaded there.
    pub(super) fn find(&self, model: &str) -> impl Iterator<Item = (&ServingNode, bool)> {
        self.nodes
            .iter()
            .filter_map(move |serving| Some((serving, serving.has(model)?)))
    }

    /// Whether a serving node other than these has a model.
    pub(super) fn has_other(&self, model: &str, except: &[NodeId]) -> bool {
        self.find(model)
            .any(|(serving, _)| !except.contains(&serving.node.id))
    }

    /// Node that has a model and can't serve it at present.
    pub(super) fn absent(&self, model: &str) -> Option<&Absent> {
        let name = with_tag(model);
        self.absent.get(model).or_else(|| self.absent.get(&name))
    }

    /// Models that can be served, each with the slugs of its nodes.
    pub(super) fn models(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut models = BTreeMap::<_, BTreeSet<_>>::new();
        for serving in &self.nodes {
            for model in serving.models.keys() {
                let nodes = models.entry(model.as_str()).or_default();
                nodes.insert(serving.node.slug.as_str());
            }
        }
        models
    }
}

impl ServingNode {
    /// Whether the node has a model loaded; `None` where it does not have it at all.
    fn has(&self, model: &str) -> Option<bool> {
        let exact = self.models.get(model);
        exact.or_else(|| self.models.get(&with_tag(model))).copied()
    }
}

/// Name that a model has at a node; as it was asked for where the node does not have it any more.
pub(super) fn resolve(node: &Node, model: &str) -> String {
    let tagged = with_tag(model);
    let inference = node.capability.inference.as_ref();
    let reported = |name: &str| {
        inference.is_some_and(|known| {
            let mut details = known.model_details.iter().flatten();
            let mut names = known.models.iter().flatten();
            names.any(|known| known == name) || details.any(|known| known.name == name)
        })
    };
    if !reported(model) && reported(&tagged) {
        tagged
    } else {
        model.to_owned()
    }
}

/// Models of a report, and whether each is loaded. Of names alone, none counts as loaded.
fn models_of(node: &Node) -> BTreeMap<String, bool> {
    let Some(inference) = &node.capability.inference else {
        return BTreeMap::new();
    };
    let names = inference.models.iter().flatten();
    let mut models: BTreeMap<_, _> = names.map(|name| (name.clone(), false)).collect();
    let details = inference.model_details.iter().flatten();
    models.extend(details.map(|model| (model.name.clone(), model.loaded)));
    // A name that a terminal would obey is nobody's to ask for.
    models.retain(|name, _| ModelDetails::is_valid_name(name));
    models
}

/// Reason for which a node in good order can't serve models. A peer that reports no features at all may well serve them;
/// one whose sandboxes have features is of a release that names the proxy where it has it.
fn server_obstacle(node: &Node) -> Option<&'static str> {
    let Some(inference) = &node.capability.inference else {
        return Some("runs no model server");
    };
    if !inference.supported {
        Some("runs no model server")
    } else if inference.running == Some(false) {
        Some("its model server does not answer at present")
    } else if (inference.features.is_some() || !node.capability.features().is_empty())
        && !inference.has_feature(INFERENCE_PROXY)
    {
        Some("its release of cynode does not pass calls of models on; update it")
    } else {
        None
    }
}

/// Name with its tag: without one it means `latest`.
fn with_tag(model: &str) -> String {
    let last = model.rsplit('/').next().unwrap_or(model);
    if last.contains(':') {
        model.to_owned()
    } else {
        format!("{model}:latest")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{api::time::Time, store::StoredConfig};
    use serde_json::json;

    /// Node with this part of a report.
    pub(in crate::orchestrator::inference) fn node(
        slug: &str,
        inference: serde_json::Value,
    ) -> Node {
        let report = json!({
            "version": 1, "reported_at": "2026-01-01T00:00:00Z",
            "node": {"node_slug": slug}, "platform": {"os": "linux"},
            "compute": {"cpu_cores": 1, "ram_mb": 1}, "inference": inference,
        });
        Node {
            id: NodeId::new(),
            slug: slug.to_owned(),
            capability: Arc::new(serde_json::from_value(report).unwrap()),
            last_seen_at: Time::now(),
            draining: false,
            worker_url: None,
            config: StoredConfig::default(),
            config_version: 0,
            ack_version: None,
            ack_status: None,
            ack_error: None,
            running_jobs: 0,
            registration: 0,
        }
    }

    fn registry(nodes: Vec<Node>) -> Registry {
        Registry::new(nodes, |node| {
            (node.slug == "off").then(|| "is offline".to_owned())
        })
    }

    fn found(registry: &Registry, model: &str) -> Vec<(String, bool)> {
        let found = registry.find(model);
        found
            .map(|(serving, is_loaded)| (serving.node.slug.clone(), is_loaded))
            .collect()
    }

    #[test]
    fn models_of_serving_nodes_are_found() {
        let registry = registry(vec![
            node(
                "a",
                json!({"models": ["m:latest", "n:7b"], "running": true, "features": ["proxy"],
                    "model_details": [{"name": "m:latest", "loaded": true}, {"name": "n:7b"}]}),
            ),
            node("peer", json!({"models": ["m:latest"]})),
            node("off", json!({"models": ["m:latest", "x:1"]})),
        ]);
        let both = [("a".to_owned(), true), ("peer".to_owned(), false)];
        assert_eq!(found(&registry, "m"), both);
        assert_eq!(found(&registry, "m:latest"), both);
        assert_eq!(found(&registry, "n"), []);
        assert_eq!(found(&registry, "x:1"), []);
        assert_eq!(registry.absent("x:1").unwrap().slug, "off");
        assert!(registry.absent("y").is_none());
        let names: Vec<_> = registry.models().into_keys().collect();
        assert_eq!(names, ["m:latest", "n:7b"]);
    }

    #[test]
    fn names_are_those_of_nodes() {
        let node = node(
            "a",
            json!({"models": ["m:latest", "bare"], "model_details": [{"name": "n:latest"}]}),
        );
        for (asked, name) in [
            ("m", "m:latest"),
            ("m:latest", "m:latest"),
            ("n", "n:latest"),
            ("bare", "bare"),
            ("gone", "gone"),
        ] {
            assert_eq!(resolve(&node, asked), name);
        }
    }

    #[test]
    fn nodes_without_server_serve_nothing() {
        for inference in [
            json!(null),
            json!({"supported": false, "models": ["m:latest"]}),
            json!({"running": false, "models": ["m:latest"]}),
            json!({"models": ["m:latest"], "features": []}),
        ] {
            let registry = registry(vec![node("a", inference.clone())]);
            assert_eq!(found(&registry, "m"), [], "{inference}");
            assert!(registry.nodes().is_empty(), "{inference}");
        }
    }

    #[test]
    fn previous_release_serves_nothing() {
        let mut old = node("a", json!({"models": ["m:latest"], "running": true}));
        let mut report = serde_json::to_value(&*old.capability).unwrap();
        report["sandbox"] = json!({"supported": true, "features": ["files"]});
        old.capability = Arc::new(serde_json::from_value(report).unwrap());
        let registry = registry(vec![old]);
        assert_eq!(found(&registry, "m"), []);
        assert!(registry.absent("m").unwrap().reason.contains("update it"));
    }

    #[test]
    fn tag_follows_last_part() {
        assert_eq!(with_tag("a"), "a:latest");
        assert_eq!(with_tag("a:7b"), "a:7b");
        assert_eq!(with_tag("host:5000/a"), "host:5000/a:latest");
    }
}
