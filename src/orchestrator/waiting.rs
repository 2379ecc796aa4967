//! Reason why a queued task can't start now. Pure: takes requirements and nodes, returns a sentence.

use super::{
    gpu_pool::{self, GpuPool},
    readiness::{MAX_NAMED_NODES, list_nodes, overall, reason},
    summary,
};
use crate::{
    api::{
        jobs::resources::GpuRequest,
        nodes::{CapabilityReport, NodeStatus, NodeView},
    },
    store::{Placement, TaskRequirements},
};
use std::sync::Arc;

/// Node as a task sees it that waits.
#[derive(Clone, Debug)]
pub(super) struct NodeOutlook {
    /// View for everybody.
    pub(super) view: NodeView,
    /// Last report.
    pub(super) report: Arc<CapabilityReport>,
    /// Graphics processors, with those in use.
    pub(super) gpus: GpuPool,
}

impl NodeOutlook {
    fn is_ready(&self) -> bool {
        self.view.status == NodeStatus::Ready
    }
}

/// Reason why a task with these requirements can't start now; `None` if a node could accept it.
pub(super) fn waiting_reason(task: &TaskRequirements, nodes: &[NodeOutlook]) -> Option<String> {
    let reason = no_free_node(task, nodes)?;
    let refusals = summary::refusals(&task.refusals);
    Some(if refusals.is_empty() {
        reason
    } else {
        format!("{reason}; it was refused by {refusals}")
    })
}

/// Longest time limit that a node would give a task that asks for `asked` seconds: one that is ready, or any where none
/// is; `None` where no node is suitable.
pub(super) fn expected_timeout(
    task: &TaskRequirements,
    asked: Option<u64>,
    nodes: &[NodeOutlook],
) -> Option<u64> {
    let mut fitting = fitting_nodes(task, nodes).ok()?;
    if fitting.iter().any(|node| node.is_ready()) {
        fitting.retain(|node| node.is_ready());
    }
    let limits = fitting
        .iter()
        .map(|node| node.report.effective_timeout_seconds(asked));
    limits.max()
}

fn no_free_node(task: &TaskRequirements, nodes: &[NodeOutlook]) -> Option<String> {
    let views: Vec<NodeView> = nodes.iter().map(|node| node.view.clone()).collect();
    if let Err(reason) = overall(&views, false) {
        return Some(reason);
    }
    let fitting = match fitting_nodes(task, nodes) {
        Ok(fitting) => fitting,
        Err(reason) => return Some(reason),
    };
    let mut ready: Vec<_> = fitting
        .iter()
        .copied()
        .filter(|node| node.is_ready())
        .collect();
    if ready.is_empty() {
        return Some(not_ready(task, &fitting));
    }
    if let Some(limit) = task.placement.time_limit() {
        let allows = |node: &&NodeOutlook| node.report.max_timeout_seconds() >= limit;
        if ready.iter().any(allows) {
            ready.retain(allows);
        }
    }
    if let Some(gpus) = task.placement.gpus()
        && !ready.iter().any(|node| node.gpus.has_free(gpus))
    {
        return Some(busy_gpus(gpus, &ready));
    }
    let is_full = |node: &&NodeOutlook| node.view.running_jobs >= node.view.max_concurrency;
    let are_full = ready.iter().all(is_full);
    are_full.then(|| "all slots are in use; it starts when a job ends".to_owned())
}

/// Nodes that could run the task when they are ready and free; the reason where there is none.
fn fitting_nodes<'a>(
    task: &TaskRequirements,
    nodes: &'a [NodeOutlook],
) -> Result<Vec<&'a NodeOutlook>, String> {
    let placement = &task.placement;
    let mut fitting: Vec<&NodeOutlook> = nodes.iter().collect();
    if let Some(slug) = placement.node() {
        fitting.retain(|node| node.view.node_slug == slug);
        if fitting.is_empty() {
            return Err(format!("no node named {slug} is registered"));
        }
    }
    let has_label = |node: &NodeOutlook, label| node.view.labels.contains(label);
    fitting.retain(|node| {
        placement
            .labels()
            .iter()
            .all(|label| has_label(node, label))
    });
    if fitting.is_empty() {
        return Err(match placement.node() {
            Some(slug) => format!("node {slug} does not have the label {}", labels(placement)),
            None => format!("no node has the label {}", labels(placement)),
        });
    }
    let has_refused = |node: &NodeOutlook| {
        let mut refusals = task.refusals.values();
        refusals.any(|refusal| refusal.node == node.view.node_slug)
    };
    fitting.retain(|node| !has_refused(node));
    if fitting.is_empty() {
        return Err("no other node is suitable".to_owned());
    }
    with_features(placement, fitting).and_then(|fitting| with_gpus(placement, fitting))
}

fn with_features<'a>(
    placement: &Placement,
    mut fitting: Vec<&'a NodeOutlook>,
) -> Result<Vec<&'a NodeOutlook>, String> {
    let lacking = fitting.clone();
    let has_all = |node: &NodeOutlook| {
        let mut features = placement.features().iter();
        features.all(|feature| node.report.has_feature(feature))
    };
    fitting.retain(|node| has_all(node));
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    let missing = |feature: &&String| !lacking.iter().any(|node| node.report.has_feature(feature));
    let missing: Vec<_> = placement
        .features()
        .iter()
        .filter(missing)
        .cloned()
        .collect();
    let missing = match missing.is_empty() {
        true => placement.features().iter().cloned().collect(),
        false => missing,
    };
    Err(format!(
        "no suitable node supports {} (of {}); upgrade cynode there",
        missing.join(" and "),
        names(&lacking)
    ))
}

fn with_gpus<'a>(
    placement: &Placement,
    mut fitting: Vec<&'a NodeOutlook>,
) -> Result<Vec<&'a NodeOutlook>, String> {
    let Some(gpus) = placement.gpus() else {
        return Ok(fitting);
    };
    let all = fitting.clone();
    fitting.retain(|node| node.gpus.could_serve(gpus));
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    let has = |node: &NodeOutlook| format!("{} has {}", node.view.node_slug, node.gpus.total());
    let wanted = gpu_pool::describe(gpus);
    Err(format!(
        "needs {wanted}, which no suitable node has; {}",
        each(&all, has)
    ))
}

fn busy_gpus(gpus: &GpuRequest, ready: &[&NodeOutlook]) -> String {
    let has = |node: &NodeOutlook| {
        let (free, total) = (node.gpus.free(), node.gpus.total());
        format!("{} has {free} free of {total}", node.view.node_slug)
    };
    format!("needs {}; {}", gpu_pool::describe(gpus), each(ready, has))
}

/// Reason of a task whose suitable nodes accept no jobs now.
fn not_ready(task: &TaskRequirements, fitting: &[&NodeOutlook]) -> String {
    let each = list_nodes(fitting.iter().map(|node| &node.view), reason);
    match (task.placement.node(), labels(&task.placement)) {
        _ if !task.refusals.is_empty() => format!("no other suitable node accepts jobs; {each}"),
        (Some(_), _) => format!("its node accepts no jobs; {each}"),
        (None, labels) if !labels.is_empty() => {
            format!("no node that accepts jobs has the label {labels}; {each}")
        }
        _ => format!("no suitable node accepts jobs; {each}"),
    }
}

fn labels(placement: &Placement) -> String {
    let labels: Vec<_> = placement.labels().iter().map(String::as_str).collect();
    labels.join(" and ")
}

fn names(nodes: &[&NodeOutlook]) -> String {
    each(nodes, |node| node.view.node_slug.clone())
}

/// Text on each node, for some of them.
fn each(nodes: &[&NodeOutlook], text: impl Fn(&NodeOutlook) -> String) -> String {
    let named = nodes.iter().take(MAX_NAMED_NODES);
    let mut parts: Vec<String> = named.map(|node| text(node)).collect();
    if nodes.len() > MAX_NAMED_NODES {
        parts.push(format!("and {} more", nodes.len() - MAX_NAMED_NODES));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        orchestrator::{gpu_pool::tests::report, readiness::tests::view},
        store::Requirements,
    };
    use serde_json::json;

    fn node(slug: &str, status: &str, labels: &[&str], devices: usize) -> NodeOutlook {
        let report = report(devices, &[]);
        NodeOutlook {
            view: view(slug, status, json!({"labels": labels, "reason": "says so"})),
            gpus: GpuPool::new(&report),
            report: report.into(),
        }
    }

    fn reason_of(requirements: Requirements, nodes: &[NodeOutlook]) -> String {
        let task = TaskRequirements {
            placement: Placement::new(requirements),
            ..TaskRequirements::default()
        };
        waiting_reason(&task, nodes).unwrap_or_default()
    }

    #[test]
    fn unmet_requirement_is_named() {
        let mut nodes = vec![
            node("a", "ready", &["fast"], 0),
            node("gpubox", "ready", &["cuda", "eu"], 2),
            node("old", "draining", &["slow"], 0),
        ];
        Arc::make_mut(&mut nodes[0].report).sandbox = None;
        let at = |node: &str| Requirements {
            node: Some(node.to_owned()),
            ..Requirements::default()
        };
        let labels = |labels: &[&str]| Requirements {
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            ..Requirements::default()
        };
        let features = |features: &[&str]| Requirements {
            features: features.iter().map(|name| (*name).to_owned()).collect(),
            ..Requirements::default()
        };
        let gpus = |gpus| Requirements {
            gpus: Some(gpus),
            ..Requirements::default()
        };
        let two = || gpus(GpuRequest::Count(2));
        let cases = [
            (Requirements::default(), ""),
            (two(), ""),
            (at("nowhere"), "no node named nowhere is registered"),
            (at("old"), "its node accepts no jobs; node old: says so"),
            (labels(&["arm"]), "no node has the label arm"),
            (
                labels(&["slow"]),
                "no node that accepts jobs has the label slow; node old: says so",
            ),
            (
                Requirements {
                    labels: labels(&["eu"]).labels,
                    ..at("a")
                },
                "node a does not have the label eu",
            ),
            (
                features(&["files", "gpus"]),
                "no suitable node supports files (of a, gpubox, old); upgrade cynode there",
            ),
            (
                gpus(GpuRequest::Count(3)),
                "needs 3 GPUs, which no suitable node has; a has 0, gpubox has 2, old has 0",
            ),
            (
                gpus(GpuRequest::Ids(vec!["7".to_owned()])),
                "needs GPU 7, which no suitable node has; a has 0, gpubox has 2, old has 0",
            ),
        ];
        for (requirements, expected) in cases {
            assert_eq!(reason_of(requirements, &nodes), expected);
        }
        nodes[1].gpus.take(&GpuRequest::Count(1));
        assert_eq!(
            reason_of(two(), &nodes),
            "needs 2 GPUs; gpubox has 1 free of 2"
        );
        assert_eq!(reason_of(gpus(GpuRequest::Count(1)), &nodes), "");
        nodes[0].view.running_jobs = 1;
        nodes[1].view.running_jobs = 1;
        let full = "all slots are in use; it starts when a job ends";
        assert_eq!(reason_of(Requirements::default(), &nodes), full);
    }

    #[test]
    fn long_task_waits_for_node_that_allows_it() {
        let mut nodes = vec![node("a", "ready", &[], 0), node("b", "ready", &[], 0)];
        let long = || Requirements {
            time_limit: Some(12 * 3600),
            ..Requirements::default()
        };
        assert_eq!(reason_of(long(), &nodes), "");
        let sandbox = Arc::make_mut(&mut nodes[1].report)
            .sandbox
            .as_mut()
            .unwrap();
        sandbox.max_timeout_seconds = Some(12 * 3600);
        nodes[1].view.running_jobs = 1;
        let full = "all slots are in use; it starts when a job ends";
        assert_eq!(reason_of(long(), &nodes), full);
        assert_eq!(reason_of(Requirements::default(), &nodes), "");
    }
}
