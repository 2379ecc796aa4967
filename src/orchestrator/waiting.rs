//! Reason why a queued task can't start now. Pure: takes requirements and nodes, returns a sentence.

use super::{
    gpu_pool::{self, GpuPool},
    readiness::{MAX_NAMED_NODES, inference_unavailable, list_nodes, overall, reason},
    summary,
};
use crate::{
    api::{
        jobs::resources::GpuRequest,
        nodes::{CapabilityReport, Inference, NodeStatus, NodeView, features},
        snapshots::shown_image,
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
    // The node of a snapshot is named also where no other one is ready.
    let is_bound = nodes
        .iter()
        .any(|node| has_own_image(node, &task.placement));
    if !is_bound && let Err(reason) = overall(&views, false) {
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
    let fitting = with_snapshot(placement, fitting, nodes)?;
    let fitting = with_features(placement, fitting)?;
    let fitting = with_inference(placement, fitting)?;
    with_gpus(placement, fitting)
}

/// Whether a node has the snapshot that a placement asks for; false where it asks for none.
fn has_own_image(node: &NodeOutlook, placement: &Placement) -> bool {
    let image = placement.snapshot();
    image.is_some_and(|image| node.report.has_local_image(image))
}

/// Nodes that have the snapshot that is asked for; of `all` nodes, the reason names those that are not suitable.
fn with_snapshot<'a>(
    placement: &Placement,
    mut fitting: Vec<&'a NodeOutlook>,
    all: &'a [NodeOutlook],
) -> Result<Vec<&'a NodeOutlook>, String> {
    let Some(image) = placement.snapshot() else {
        return Ok(fitting);
    };
    fitting.retain(|node| has_own_image(node, placement));
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    let image = shown_image(image.to_owned());
    let others = all.iter().filter(|node| has_own_image(node, placement));
    let others: Vec<_> = others.collect();
    Err(if others.is_empty() {
        format!("no node has {image} at present; list what there is with: cynode sandbox snapshots")
    } else {
        format!(
            "{image} is on node {}, which is not suitable",
            names(&others)
        )
    })
}

/// Nodes that serve models now, and have the one that is asked for.
fn with_inference<'a>(
    placement: &Placement,
    mut fitting: Vec<&'a NodeOutlook>,
) -> Result<Vec<&'a NodeOutlook>, String> {
    if !placement.needs_inference() {
        return Ok(fitting);
    }
    let all = fitting.clone();
    fitting.retain(|node| {
        let inference = node.report.inference.as_ref();
        inference.is_some_and(Inference::is_serving)
    });
    if fitting.is_empty() {
        let reason = |node: &NodeOutlook| {
            let reason = inference_unavailable(node.report.inference.as_ref());
            format!("{}: {reason}", node.view.node_slug)
        };
        return Err(format!(
            "no suitable node serves models; {}",
            each(&all, reason)
        ));
    }
    let Some(model) = placement.model() else {
        return Ok(fitting);
    };
    fitting.retain(|node| {
        let inference = node.report.inference.as_ref();
        inference.is_some_and(|inference| inference.has_model(model))
    });
    if fitting.is_empty() {
        return Err(format!(
            "no suitable node has the model {model}; an admin adds it with: cynode models pull {model}"
        ));
    }
    Ok(fitting)
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
    let can_be_upgraded = |node: &&NodeOutlook| {
        let mut missing = missing_features(placement, node);
        missing.any(|feature| !node.report.lacks_means(feature))
    };
    let (old, unable): (Vec<_>, Vec<_>) = lacking.into_iter().partition(can_be_upgraded);
    if unable.is_empty() {
        return Err(old_nodes(placement, &old));
    }
    let upgrade = match old.is_empty() {
        true => String::new(),
        false => format!(", or upgrade cynode on {}", names(&old)),
    };
    let unable = each(&unable, |node| inability(placement, node));
    Err(format!("{unable}; see cynode doctor there{upgrade}"))
}

fn missing_features<'a>(
    placement: &'a Placement,
    node: &'a NodeOutlook,
) -> impl Iterator<Item = &'a str> {
    let features = placement.features().iter().map(String::as_str);
    features.filter(|feature| !node.report.has_feature(feature))
}

/// Reason of a task that needs features of a later release than that of these nodes.
fn old_nodes(placement: &Placement, nodes: &[&NodeOutlook]) -> String {
    let is_missing = |feature: &&String| !nodes.iter().any(|node| node.report.has_feature(feature));
    let needed = placement.features();
    let mut missing: Vec<_> = needed.iter().filter(is_missing).cloned().collect();
    if missing.is_empty() {
        missing = needed.iter().cloned().collect();
    }
    format!(
        "no suitable node supports {} (of {}); upgrade cynode there",
        missing.join(" and "),
        names(nodes)
    )
}

/// Requirements of a task that a node can't meet, though its release knows how.
fn inability(placement: &Placement, node: &NodeOutlook) -> String {
    let slug = &node.view.node_slug;
    let (gpus, limits): (Vec<_>, Vec<_>) =
        missing_features(placement, node).partition(|feature| *feature == features::GPUS);
    let limits: Vec<_> = limits
        .into_iter()
        .map(|feature| features::limit_name(feature).unwrap_or("all limits"))
        .collect();
    match (limits.is_empty(), gpus.is_empty()) {
        (true, _) => format!("{slug} has no GPU for jobs"),
        (false, true) => format!("{slug} can't enforce {}", limits.join(" and ")),
        (false, false) => format!(
            "{slug} has no GPU for jobs and can't enforce {}",
            limits.join(" and ")
        ),
    }
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
        _ if task.placement.snapshot().is_some() => {
            let slugs = names(fitting);
            format!("its snapshot is on node {slugs}, which is not ready; {each}")
        }
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
mod tests;
