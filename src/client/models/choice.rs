//! Choice of a node where the user names none. Pure.

use super::absence::explain;
use crate::{
    api::nodes::{NodeStatus, NodeView},
    client::print::clean,
    exit::{Exit, Failure},
};

/// The only node that runs a model server.
pub(super) fn serving(nodes: &[NodeView]) -> Result<String, Failure> {
    only(nodes.iter().filter(|node| is_serving(node)), || {
        explain(nodes)
    })
}

/// The only node that has a model.
pub(super) fn with_model(nodes: &[NodeView], model: &str) -> Result<String, Failure> {
    let has_model = |node: &&NodeView| {
        let inference = node.inference.as_ref();
        let mut names = inference.into_iter().flat_map(|known| known.known_models());
        is_serving(node) && names.any(|known| is_same(&known.name, model))
    };
    only(nodes.iter().filter(has_model), || {
        format!(
            "no node has the model {}; list those that there are with: cynode models list",
            clean(model)
        )
    })
}

fn is_serving(node: &NodeView) -> bool {
    let inference = node.inference.as_ref();
    node.status != NodeStatus::Offline && inference.is_some_and(|known| known.is_serving())
}

/// Whether a model has this name, which means `latest` where it has no tag.
fn is_same(name: &str, wanted: &str) -> bool {
    let last = wanted.rsplit('/').next().unwrap_or_default();
    name == wanted || (!last.contains(':') && name.strip_suffix(":latest") == Some(wanted))
}

fn only<'a>(
    nodes: impl Iterator<Item = &'a NodeView>,
    none: impl FnOnce() -> String,
) -> Result<String, Failure> {
    let slugs: Vec<&str> = nodes.map(|node| node.node_slug.as_str()).collect();
    match slugs.as_slice() {
        [] => Err(Failure::new(Exit::NotFound, none())),
        [slug] => Ok((*slug).to_owned()),
        several => Err(Failure::usage(format!(
            "several nodes come into question; choose one with --node: {}",
            clean(&several.join(", "))
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::node, *};
    use serde_json::json;

    #[test]
    fn only_suitable_node_is_chosen() {
        let with = |models: &[&str]| json!({"supported": true, "running": true, "models": models});
        let plain = node("plain", "ready", json!({"supported": false}));
        let off = node("off", "offline", with(&["a:latest"]));
        let one = node("one", "ready", with(&["a:latest", "x/b:7b"]));
        let two = node("two", "draining", with(&["a:latest"]));
        let choose = |nodes: &[&NodeView]| -> Vec<NodeView> {
            nodes.iter().map(|node| (*node).clone()).collect()
        };
        let single = choose(&[&plain, &off, &one]);
        assert_eq!(serving(&single).unwrap(), "one");
        for name in ["a", "a:latest", "x/b:7b"] {
            assert_eq!(with_model(&single, name).unwrap(), "one", "{name}");
        }
        for name in ["x/b", "b:7b", "a:7b"] {
            assert_eq!(
                with_model(&single, name).unwrap_err().exit,
                Exit::NotFound,
                "{name}"
            );
        }
        let both = choose(&[&one, &two]);
        for failure in [serving(&both), with_model(&both, "a")] {
            let failure = failure.unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains("one, two"), "{}", failure.message);
        }
        assert_eq!(with_model(&both, "x/b:7b").unwrap(), "one");
        assert_eq!(
            serving(&choose(&[&plain])).unwrap_err().exit,
            Exit::NotFound
        );
    }
}
