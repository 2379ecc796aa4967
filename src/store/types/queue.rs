//! The queue as the scheduler sees it: lanes of jobs that ask the same of a node.

use crate::api::{JobId, NodeId, UserId, tasks::TaskSpec, time::Time};
use serde::Deserialize;
use serde_json::Value;
use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

/// Longest pause between two attempts. A stored backoff that is longer doesn't count: the clock was set back.
pub const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// Maximum number of lanes of one user: different sets of labels that the queued tasks of a user may ask
/// for. As many as there are nodes by default.
pub const MAX_LANES_PER_USER: usize = 1024;

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

#[derive(Default, Deserialize)]
struct Requirements {
    #[serde(default)]
    labels: BTreeSet<String>,
    #[serde(default)]
    inference: bool,
    #[serde(default, rename = "except")]
    excluded_nodes: BTreeSet<NodeId>,
}

impl Placement {
    /// Placement on a node that has all `labels`, serves models where `inference` is set, and is not excluded.
    pub fn new(
        labels: impl IntoIterator<Item = String>,
        inference: bool,
        excluded_nodes: impl IntoIterator<Item = NodeId>,
    ) -> Self {
        let requirements = Requirements {
            labels: labels.into_iter().collect(),
            inference,
            excluded_nodes: excluded_nodes.into_iter().collect(),
        };
        let canonical = requirements.canonical().into();
        Self(Arc::new(Inner {
            canonical,
            requirements,
        }))
    }

    /// Placement of the jobs of a task.
    pub(in crate::store) fn from_spec(spec: &TaskSpec) -> Self {
        let inference = spec.sandbox.use_inference == Some(true);
        Self::new(spec.node_labels.iter().cloned(), inference, [])
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
        let Requirements {
            labels, inference, ..
        } = &self.0.requirements;
        Self::new(labels.iter().cloned(), *inference, nodes)
    }

    /// Labels that the node must have.
    pub fn labels(&self) -> &BTreeSet<String> {
        &self.0.requirements.labels
    }

    /// Whether the node must serve models.
    pub fn needs_inference(&self) -> bool {
        self.0.requirements.inference
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
        if !self.labels.is_empty() {
            let labels = Value::from_iter(self.labels.iter().map(String::as_str));
            fields.push(format!("\"labels\":{labels}"));
        }
        if self.inference {
            fields.push("\"inference\":true".to_owned());
        }
        if !self.excluded_nodes.is_empty() {
            let nodes = Value::from_iter(self.excluded_nodes.iter().map(NodeId::to_string));
            fields.push(format!("\"except\":{nodes}"));
        }
        format!("{{{}}}", fields.join(","))
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self::new([], false, [])
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

/// Queued jobs of one user that ask the same of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Owner of the jobs.
    pub user: UserId,
    /// Requirements of the jobs.
    pub placement: Placement,
}

/// Job that waits for a node. Jobs of a lane sort in the order in which they are assigned: by priority, then
/// by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueuedJob {
    /// Minus the priority of the job.
    pub rank: i32,
    /// Id of the job; ids sort by age.
    pub id: JobId,
    /// Earliest time at which the job could have been assigned.
    pub eligible_at: Time,
}

/// Whether any queued job may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Whether some may run now.
    pub has_eligible: bool,
    /// End of the next backoff.
    pub next_at: Option<Time>,
}

/// Request for the next jobs of a lane.
#[derive(Clone, Debug)]
pub struct LaneRead {
    /// Lane to read.
    pub lane: Lane,
    /// Last job that was read before; `None` reads from the head.
    pub after: Option<QueuedJob>,
    /// Maximum number of jobs.
    pub limit: u32,
}

/// Data for one scheduling decision, all of it read at the same time.
#[derive(Clone, Debug, Default)]
pub struct LaneHeads {
    /// Number of running jobs by user; users without any are left out.
    pub running: HashMap<UserId, u32>,
    /// Eligible jobs at the head of each lane, one list for each read, in their order.
    pub jobs: Vec<Vec<QueuedJob>>,
}

/// Position in the history of lanes; by default before its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCursor {
    pub(in crate::store) epoch: u64,
    pub(in crate::store) clock: u64,
}

/// Lanes that were entered since a [`LaneCursor`].
#[derive(Debug)]
pub struct LaneChanges {
    /// Whether these are all lanes, which replace those that were known before.
    pub is_complete: bool,
    /// Lanes that were entered, some of which may have been known.
    pub entered: Vec<Lane>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = BTreeSet<String>> {
        proptest::collection::btree_set(".{0,6}", 0..4)
    }

    proptest! {
        #[test]
        fn canonical_form_parses_back_to_itself(
            labels in text(),
            inference: bool,
            excluded in 0..3_usize,
        ) {
            let excluded: Vec<_> = (0..excluded).map(|_| NodeId::new()).collect();
            let placement = Placement::new(labels.clone(), inference, excluded.clone());
            let parsed = Placement::parse(placement.canonical()).unwrap();
            prop_assert_eq!(&parsed, &placement);
            prop_assert_eq!(parsed.labels(), &labels);
            prop_assert_eq!(parsed.needs_inference(), inference);
            prop_assert_eq!(parsed.excluded_nodes(), &BTreeSet::from_iter(excluded.clone()));
            let excluding = Placement::new(labels, inference, []).excluding(excluded);
            prop_assert_eq!(excluding, placement);
        }
    }

    #[test]
    fn equal_requirements_have_one_canonical_form() {
        let of = |labels: &[&str]| {
            let json = serde_json::json!({
                "sandbox": {"image": "a", "command": ["x"]}, "node_labels": labels, "max_attempts": 3,
            });
            let spec: TaskSpec = serde_json::from_value(json).unwrap();
            Placement::from_spec(&spec).canonical().to_owned()
        };
        assert_eq!(of(&[]), "{}");
        assert_eq!(of(&["b", "a/1", "b"]), r#"{"labels":["a/1","b"]}"#);
        let node = NodeId::new();
        let all = Placement::new(["a".to_owned()], true, [node]);
        let expected = format!(r#"{{"labels":["a"],"inference":true,"except":["{node}"]}}"#);
        assert_eq!(all.canonical(), expected);
    }
}
