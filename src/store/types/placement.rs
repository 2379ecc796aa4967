//! Placement: what a job requires of its node, in one canonical form.
//!
//! Equal requirements share a lane of the queue, so a placement holds only what decides which nodes fit. An image or
//! an exact time limit would make a lane of almost every job; the scheduler reads those of the jobs that it is about to
//! assign. A snapshot is an exception: no other node can run it.

use crate::api::{
    NodeId,
    jobs::{NetworkPolicy, PullPolicy, SandboxSpec, resources::GpuRequest},
    nodes::features,
    secrets::SecretRef,
    snapshots::is_snapshot,
    tasks::TaskSpec,
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    cmp::Ordering,
    collections::BTreeSet,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

const HOUR_SECONDS: u64 = 3600;
const DAY_SECONDS: u64 = 24 * HOUR_SECONDS;
/// Longest time limit that is left out of a placement: every node allows it, unless its operator has lowered its limit.
const COMMON_TIME_LIMIT_SECONDS: u64 = 3 * HOUR_SECONDS;
/// Longest time limit that is rounded up to whole hours; beyond it whole days will do. Operators allow such limits, so
/// no job waits for a node of which it needs only a part of an hour more.
const LONGEST_IN_HOURS_SECONDS: u64 = 2 * DAY_SECONDS;
/// Time limit that stands for all longer ones.
const LONGEST_TIME_LIMIT_SECONDS: u64 = 30 * DAY_SECONDS;

/// Requirements of a job on its node.
///
/// Immutable and cheap to clone. Equal requirements have one canonical form, by which placements are
/// compared, sorted and stored.
#[derive(Clone)]
pub struct Placement(Arc<Inner>);

struct Inner {
    canonical: Box<str>,
    requirements: Requirements,
}

/// Requirements on a node; none by default. A stored form of an earlier release has fewer fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Requirements {
    /// Labels that the node must have.
    #[serde(default)]
    pub labels: BTreeSet<String>,
    /// Whether the node must serve models.
    #[serde(default)]
    pub inference: bool,
    /// Model that the node must have.
    #[serde(default)]
    pub model: Option<String>,
    /// Slug of the only node that may run the job.
    #[serde(default)]
    pub node: Option<String>,
    /// Image of the snapshot that the node must have.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Features that the node must report.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// Graphics processors that the node must have free.
    #[serde(default)]
    pub gpus: Option<GpuRequest>,
    /// Time limit that the node should allow, in seconds, in few steps. Where no node that could run the job allows it,
    /// any other will do.
    #[serde(default)]
    pub time_limit: Option<u64>,
    /// Nodes that refused the job.
    #[serde(default, rename = "except")]
    pub excluded_nodes: BTreeSet<NodeId>,
}

impl Placement {
    /// Placement with these requirements.
    pub fn new(mut requirements: Requirements) -> Self {
        if let Some(GpuRequest::Ids(ids)) = &mut requirements.gpus {
            ids.sort_unstable();
            ids.dedup();
        }
        Self(Arc::new(Inner {
            canonical: requirements.canonical().into(),
            requirements,
        }))
    }

    /// Placement of the jobs of a task.
    pub(in crate::store) fn from_spec(spec: &TaskSpec) -> Self {
        let sandbox = &spec.sandbox;
        Self::new(Requirements {
            labels: spec.node_labels.iter().cloned().collect(),
            inference: sandbox.use_inference == Some(true) || sandbox.prompt.is_some(),
            model: sandbox
                .prompt
                .as_ref()
                .and_then(|prompt| prompt.model.clone()),
            node: spec.node.clone(),
            snapshot: is_snapshot(&sandbox.image).then(|| sandbox.image.clone()),
            features: needed_features(sandbox).map(str::to_owned).collect(),
            gpus: sandbox.gpus.clone(),
            time_limit: sandbox.timeout_seconds.and_then(time_step),
            excluded_nodes: BTreeSet::new(),
        })
    }

    /// Parses a stored canonical form.
    pub(in crate::store) fn parse(canonical: &str) -> Result<Self, serde_json::Error> {
        Ok(Self(Arc::new(Inner {
            requirements: serde_json::from_str(canonical)?,
            canonical: canonical.into(),
        })))
    }

    /// Canonical form, the same for equal requirements.
    pub(in crate::store) fn canonical(&self) -> &str {
        &self.0.canonical
    }

    /// The same requirements with other excluded nodes.
    pub fn excluding(&self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self::new(Requirements {
            excluded_nodes: nodes.into_iter().collect(),
            ..self.0.requirements.clone()
        })
    }

    /// Labels that the node must have.
    pub fn labels(&self) -> &BTreeSet<String> {
        &self.0.requirements.labels
    }

    /// Whether the node must serve models.
    pub fn needs_inference(&self) -> bool {
        self.0.requirements.inference
    }

    /// Model that the node must have.
    pub fn model(&self) -> Option<&str> {
        self.0.requirements.model.as_deref()
    }

    /// Slug of the only node that may run the job.
    pub fn node(&self) -> Option<&str> {
        self.0.requirements.node.as_deref()
    }

    /// Image of the snapshot that the node must have.
    pub fn snapshot(&self) -> Option<&str> {
        self.0.requirements.snapshot.as_deref()
    }

    /// Features that the node must report.
    pub fn features(&self) -> &BTreeSet<String> {
        &self.0.requirements.features
    }

    /// Graphics processors that the node must have free.
    pub fn gpus(&self) -> Option<&GpuRequest> {
        self.0.requirements.gpus.as_ref()
    }

    /// Time limit that the node should allow, in seconds.
    pub fn time_limit(&self) -> Option<u64> {
        self.0.requirements.time_limit
    }

    /// Nodes that refused the job.
    pub fn excluded_nodes(&self) -> &BTreeSet<NodeId> {
        &self.0.requirements.excluded_nodes
    }
}

impl Requirements {
    /// JSON with fields in a fixed order, without the empty ones.
    fn canonical(&self) -> String {
        let mut fields = Vec::new();
        let mut add = |name: &str, value: Value| fields.push(format!("\"{name}\":{value}"));
        let texts = |texts: &BTreeSet<String>| Value::from_iter(texts.iter().map(String::as_str));
        if !self.labels.is_empty() {
            add("labels", texts(&self.labels));
        }
        if self.inference {
            add("inference", true.into());
        }
        if let Some(model) = &self.model {
            add("model", model.as_str().into());
        }
        if let Some(node) = &self.node {
            add("node", node.as_str().into());
        }
        if let Some(image) = &self.snapshot {
            add("snapshot", image.as_str().into());
        }
        if !self.features.is_empty() {
            add("features", texts(&self.features));
        }
        if let Some(gpus) = &self.gpus {
            add(
                "gpus",
                match gpus {
                    GpuRequest::All => "all".into(),
                    GpuRequest::Count(count) => (*count).into(),
                    GpuRequest::Ids(ids) => ids.iter().map(String::as_str).collect(),
                },
            );
        }
        if let Some(seconds) = self.time_limit {
            add("time_limit", seconds.into());
        }
        if !self.excluded_nodes.is_empty() {
            let nodes = self.excluded_nodes.iter().map(NodeId::to_string);
            add("except", nodes.collect());
        }
        format!("{{{}}}", fields.join(","))
    }
}

/// Features of a node that a sandbox needs. A grace period needs none: an old node stops the command at once.
fn needed_features(sandbox: &SandboxSpec) -> impl Iterator<Item = &'static str> {
    let artifacts = !sandbox.artifacts.is_empty() || sandbox.artifact_limit.is_some();
    let pull = sandbox.pull.is_some_and(|pull| pull != PullPolicy::Missing);
    let egress = sandbox.network_policy == Some(NetworkPolicy::Allowlist);
    let at_edge = sandbox.secrets.iter().any(SecretRef::is_at_edge);
    let opened = sandbox.egress.as_ref();
    let terminate = at_edge || opened.is_some_and(|egress| !egress.terminate.is_empty());
    [
        (!sandbox.files.is_empty(), features::FILES),
        (artifacts, features::ARTIFACTS),
        (
            sandbox.stdin.is_some() || sandbox.interactive,
            features::STDIN,
        ),
        (sandbox.cpus.is_some(), features::LIMIT_CPUS),
        (sandbox.memory.is_some(), features::LIMIT_MEMORY),
        (sandbox.pids.is_some(), features::LIMIT_PIDS),
        (sandbox.shm_size.is_some(), features::LIMIT_SHM_SIZE),
        (sandbox.gpus.is_some(), features::GPUS),
        (pull, features::PULL_POLICY),
        (sandbox.prompt.is_some(), features::PROMPTS),
        (sandbox.use_inference == Some(true), features::INFERENCE),
        (sandbox.session.is_some(), features::SESSIONS),
        (egress, features::EGRESS),
        (terminate, features::EGRESS_TERMINATE),
        (is_snapshot(&sandbox.image), features::SNAPSHOTS),
        (!sandbox.secrets.is_empty(), features::SECRETS),
    ]
    .into_iter()
    .filter_map(|(is_needed, feature)| is_needed.then_some(feature))
}

/// Long time limit, rounded up, so that jobs with similar ones share a lane; `None` for one that every node allows by
/// default.
fn time_step(seconds: u64) -> Option<u64> {
    let step = if seconds <= LONGEST_IN_HOURS_SECONDS {
        HOUR_SECONDS
    } else {
        DAY_SECONDS
    };
    let rounded = seconds.div_ceil(step).saturating_mul(step);
    (seconds > COMMON_TIME_LIMIT_SECONDS).then(|| rounded.min(LONGEST_TIME_LIMIT_SECONDS))
}

impl Default for Placement {
    fn default() -> Self {
        Self::new(Requirements::default())
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.canonical)
    }
}

impl PartialEq for Placement {
    fn eq(&self, other: &Self) -> bool {
        self.0.canonical == other.0.canonical
    }
}

impl Eq for Placement {}

impl PartialOrd for Placement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Placement {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.canonical.cmp(&other.0.canonical)
    }
}

impl Hash for Placement {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.canonical.hash(state);
    }
}

#[cfg(test)]
mod tests;
