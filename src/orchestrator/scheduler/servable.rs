//! The lanes of the queue that some node could serve.
//!
//! A lane whose labels no registered node bears is looked at when it comes into being and when a node's
//! labels change, and at no turn in between: however many there are, they cost a decision nothing.

use crate::{
    api::{NodeId, UserId, nodes::CapabilityReport},
    store::{Lane, LaneChanges, Node, Placement, StoreError},
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// Lines by whether some node could serve them.
#[derive(Debug, Default)]
pub(super) struct ServableLanes {
    placements: HashMap<Arc<str>, PlacementUsers>,
    nodes: LabelIndex,
    lanes: BTreeSet<Lane>,
    /// `lanes` for who reads them, since it last changed.
    snapshot: Option<Arc<[Lane]>>,
}

/// A placement, and whose jobs ask for it.
#[derive(Debug)]
struct PlacementUsers {
    placement: Placement,
    is_servable: bool,
    users: HashSet<UserId>,
}

/// What is known of the nodes: who bears which label.
#[derive(Debug, Default)]
struct LabelIndex {
    reports: Vec<(NodeId, Arc<CapabilityReport>)>,
    bearers: HashMap<String, HashSet<NodeId>>,
}

impl LabelIndex {
    fn new(nodes: &[Node]) -> Self {
        let mut bearers: HashMap<String, HashSet<NodeId>> = HashMap::new();
        for node in nodes {
            for label in node.capability.node.labels.iter().flatten() {
                bearers.entry(label.clone()).or_default().insert(node.id);
            }
        }
        let reports = nodes
            .iter()
            .map(|node| (node.id, Arc::clone(&node.capability)));
        Self {
            reports: reports.collect(),
            bearers,
        }
    }

    /// Whether these are the same nodes with the same labels. A report that says the same is the same.
    fn matches(&self, nodes: &[Node]) -> bool {
        let labels = |report: &CapabilityReport| report.node.labels.clone().unwrap_or_default();
        self.reports.len() == nodes.len()
            && self.reports.iter().zip(nodes).all(|((id, report), node)| {
                *id == node.id
                    && (Arc::ptr_eq(report, &node.capability)
                        || labels(report) == labels(&node.capability))
            })
    }

    /// Whether one of them bears all labels that are asked for, and has not refused the job. Whether it
    /// serves models changes too often to be looked at here.
    fn could_serve(&self, placement: &Placement) -> bool {
        let nobody = HashSet::new();
        let bearers = |label| self.bearers.get(label).unwrap_or(&nobody);
        let fits = |node: &NodeId| {
            !placement.except.contains(node)
                && placement
                    .labels
                    .iter()
                    .all(|label| bearers(label).contains(node))
        };
        let rarest = placement.labels.iter().map(bearers);
        match rarest.min_by_key(|bearers| bearers.len()) {
            Some(bearers) => bearers.iter().any(fits),
            None => self.reports.iter().any(|(node, _)| fits(node)),
        }
    }
}

impl ServableLanes {
    /// Takes up which lanes came into being, and which nodes there are now.
    pub(super) fn update(
        &mut self,
        changes: LaneChanges,
        nodes: &[Node],
    ) -> Result<(), StoreError> {
        if changes.is_whole {
            self.placements.clear();
            self.lanes.clear();
            self.snapshot = None;
        }
        if !self.nodes.matches(nodes) {
            self.nodes = LabelIndex::new(nodes);
            self.recompute();
        }
        for lane in changes.entered {
            self.enter(lane)?;
        }
        Ok(())
    }

    /// The lanes that some node could serve.
    pub(super) fn lanes(&mut self) -> Arc<[Lane]> {
        let lanes = &self.lanes;
        let snapshot = self
            .snapshot
            .get_or_insert_with(|| lanes.iter().cloned().collect());
        Arc::clone(snapshot)
    }

    fn enter(&mut self, lane: Lane) -> Result<(), StoreError> {
        if !self.placements.contains_key(&lane.placement) {
            let placement = Placement::parse(&lane.placement)?;
            let known = PlacementUsers {
                is_servable: self.nodes.could_serve(&placement),
                placement,
                users: HashSet::new(),
            };
            self.placements.insert(Arc::clone(&lane.placement), known);
        }
        let Some(known) = self.placements.get_mut(&lane.placement) else {
            return Ok(());
        };
        if known.users.insert(lane.user) && known.is_servable {
            self.lanes.insert(lane);
            self.snapshot = None;
        }
        Ok(())
    }

    /// Finds out anew which placements the nodes could serve.
    fn recompute(&mut self) {
        self.lanes.clear();
        self.snapshot = None;
        for (text, known) in &mut self.placements {
            known.is_servable = self.nodes.could_serve(&known.placement);
            if known.is_servable {
                self.lanes.extend(known.users.iter().map(|user| Lane {
                    user: *user,
                    placement: Arc::clone(text),
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        orchestrator::{
            readiness::tests::node,
            scheduler::{SlotLimits, free_slots::Candidate},
        },
        store::Lane,
    };
    use proptest::prelude::*;

    fn bearer(labels: &[&str]) -> Node {
        let mut node = node("box", 1, 0);
        let report = Arc::make_mut(&mut node.capability);
        report.node.labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
        node
    }

    fn labels() -> impl Strategy<Value = Vec<&'static str>> {
        proptest::sample::subsequence(vec!["a", "b", "c"], 0..=3)
    }

    /// What happens between two looks.
    #[derive(Clone, Debug)]
    enum Step {
        Enter(usize, Vec<&'static str>, Option<usize>),
        Join(Vec<&'static str>),
        Leave(usize),
        Relabel(usize, Vec<&'static str>),
        StartOver,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..2_usize, labels(), proptest::option::of(0..3_usize))
                .prop_map(|(user, labels, by)| Step::Enter(user, labels, by)),
            1 => labels().prop_map(Step::Join),
            1 => (0..3_usize).prop_map(Step::Leave),
            1 => (0..3_usize, labels()).prop_map(|(node, labels)| Step::Relabel(node, labels)),
            1 => Just(Step::StartOver),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: the lanes are those that a look at everything finds.
        #[test]
        fn servable_lines_are_those_that_a_node_fits(steps in proptest::collection::vec(step(), 1..30)) {
            let users = [(); 2].map(|()| UserId::new());
            let (mut nodes, mut all, mut servable) = (Vec::new(), Vec::new(), ServableLanes::default());
            for step in steps {
                let mut changes = LaneChanges { is_whole: false, entered: Vec::new() };
                match step {
                    Step::Enter(user, labels, by) => {
                        let by = by.and_then(|by| nodes.get(by)).map(|node: &Node| node.id);
                        let placement = Placement {
                            labels: labels.into_iter().map(str::to_owned).collect(),
                            except: by.into_iter().collect(),
                            ..Placement::default()
                        };
                        let placement = serde_json::to_string(&placement).unwrap();
                        let lane = Lane { user: users[user], placement: placement.into() };
                        all.push(lane.clone());
                        changes.entered.push(lane);
                    }
                    Step::Join(labels) => nodes.push(bearer(&labels)),
                    Step::Leave(n) if n < nodes.len() => drop(nodes.remove(n)),
                    Step::Relabel(n, labels) if n < nodes.len() => {
                        nodes[n].capability = bearer(&labels).capability;
                    }
                    Step::Leave(_) | Step::Relabel(..) => {}
                    Step::StartOver => changes = LaneChanges { is_whole: true, entered: all.clone() },
                }
                servable.update(changes, &nodes).unwrap();
                let slots = SlotLimits { per_node: 1, total: 1 };
                let fits = |lane: &&Lane| {
                    let placement = Placement::parse(&lane.placement).unwrap();
                    nodes.iter().any(|node| Candidate::new(node.clone(), slots).fits(&placement))
                };
                let expected: BTreeSet<_> = all.iter().filter(fits).cloned().collect();
                let found = servable.lanes().iter().cloned().collect();
                prop_assert_eq!(expected, found);
            }
        }
    }
}
