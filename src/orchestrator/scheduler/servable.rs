//! Lanes of the queue that some node could serve.
//!
//! A lane whose labels no registered node has is checked when it is entered and when the labels, features, devices or
//! snapshots of a node change, but not at the turns in between. So the cost of a decision doesn't depend on the number of such lanes.

use super::fit::{RareTraits, could_serve, serve_alike};
use crate::{
    api::{NodeId, UserId, nodes::CapabilityReport},
    store::{Lane, LaneChanges, Node, Placement},
};
use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// All lanes, and those that some node could serve.
#[derive(Debug, Default)]
pub(super) struct ServableLanes {
    placements: HashMap<Placement, PlacementUsers>,
    nodes: NodeIndex,
    lanes: BTreeSet<Lane>,
    /// Copy of `lanes` for readers, since their last change.
    snapshot: Option<Arc<[Lane]>>,
}

/// Users whose jobs have a placement.
#[derive(Debug)]
struct PlacementUsers {
    is_servable: bool,
    users: HashSet<UserId>,
}

/// Reports of the nodes, by what is rare among them.
#[derive(Debug, Default)]
struct NodeIndex {
    reports: Vec<(NodeId, Arc<CapabilityReport>)>,
    traits: RareTraits,
}

impl NodeIndex {
    fn new<N: Borrow<Node>>(nodes: &[N]) -> Self {
        let nodes = nodes.iter().map(Borrow::borrow);
        let reports = nodes
            .clone()
            .map(|node| (node.id, Arc::clone(&node.capability)));
        Self {
            reports: reports.collect(),
            traits: RareTraits::new(nodes.map(|node| &*node.capability)),
        }
    }

    /// Whether these are the same nodes and could serve the same placements. An equal report is the same object.
    fn matches<N: Borrow<Node>>(&self, nodes: &[N]) -> bool {
        self.reports.len() == nodes.len()
            && self.reports.iter().zip(nodes).all(|((id, report), node)| {
                let node: &Node = node.borrow();
                *id == node.id
                    && (Arc::ptr_eq(report, &node.capability)
                        || serve_alike(report, &node.capability))
            })
    }

    /// Whether a node could serve a placement. Inference is left out, since it comes and goes too often.
    fn could_serve(&self, placement: &Placement) -> bool {
        let fits =
            |(id, report): &(NodeId, Arc<CapabilityReport>)| could_serve(*id, report, placement);
        match self.traits.with_rarest(placement) {
            Some(nodes) => nodes.iter().any(|n| fits(&self.reports[*n])),
            None => self.reports.iter().any(fits),
        }
    }
}

impl ServableLanes {
    /// Applies the lanes that were entered, and the current nodes.
    pub(super) fn update<N: Borrow<Node>>(&mut self, changes: LaneChanges, nodes: &[N]) {
        if changes.is_complete {
            self.placements.clear();
            self.lanes.clear();
            self.snapshot = None;
        }
        if !self.nodes.matches(nodes) {
            self.nodes = NodeIndex::new(nodes);
            self.recompute();
        }
        for lane in changes.entered {
            self.enter(lane);
        }
    }

    /// Whether some node could serve a lane with a placement of this kind.
    pub(super) fn any(&mut self, is_of_kind: impl Fn(&Placement) -> bool) -> bool {
        let lanes = self.lanes();
        lanes.iter().any(|lane| is_of_kind(&lane.placement))
    }

    /// Lanes that some node could serve.
    pub(super) fn lanes(&mut self) -> Arc<[Lane]> {
        let lanes = &self.lanes;
        let snapshot = self
            .snapshot
            .get_or_insert_with(|| lanes.iter().cloned().collect());
        Arc::clone(snapshot)
    }

    fn enter(&mut self, lane: Lane) {
        let nodes = &self.nodes;
        let known = self.placements.entry(lane.placement.clone());
        let known = known.or_insert_with_key(|placement| PlacementUsers {
            is_servable: nodes.could_serve(placement),
            users: HashSet::new(),
        });
        if known.users.insert(lane.user) && known.is_servable {
            self.lanes.insert(lane);
            self.snapshot = None;
        }
    }

    /// Checks all placements again, after a change of the nodes.
    fn recompute(&mut self) {
        self.lanes.clear();
        self.snapshot = None;
        for (placement, known) in &mut self.placements {
            known.is_servable = self.nodes.could_serve(placement);
            if known.is_servable {
                self.lanes.extend(known.users.iter().map(|user| Lane {
                    user: *user,
                    placement: placement.clone(),
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
        store::{Lane, Requirements},
    };
    use proptest::prelude::*;

    fn labeled_node(labels: &[&str]) -> Node {
        let mut node = node("box", 1, 0);
        let report = Arc::make_mut(&mut node.capability);
        report.node.labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
        node
    }

    fn labels() -> impl Strategy<Value = Vec<&'static str>> {
        proptest::sample::subsequence(vec!["a", "b", "c"], 0..=3)
    }

    /// Event between two turns of the scheduler.
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

    #[test]
    fn reported_snapshot_makes_lane_servable() {
        let image = "localhost/cynode-snapshots/u:a".to_owned();
        let lane = Lane {
            user: UserId::new(),
            placement: Placement::new(Requirements {
                snapshot: Some(image.clone()),
                ..Requirements::default()
            }),
        };
        let (mut servable, mut nodes) = (ServableLanes::default(), vec![node("box", 1, 0)]);
        let entered = |entered| LaneChanges {
            is_complete: false,
            entered,
        };
        servable.update(entered(vec![lane.clone()]), &nodes);
        assert!(servable.lanes().is_empty());
        let report = Arc::make_mut(&mut nodes[0].capability);
        report.sandbox.as_mut().unwrap().local_images = Some(vec![image]);
        servable.update(entered(Vec::new()), &nodes);
        assert_eq!(servable.lanes().to_vec(), [lane]);
    }

    proptest! {
        /// Against a check of every lane and node, after any sequence of events.
        #[test]
        fn servable_lanes_match_full_check(steps in proptest::collection::vec(step(), 1..30)) {
            let users = [(); 2].map(|()| UserId::new());
            let (mut nodes, mut all, mut servable) = (Vec::new(), Vec::new(), ServableLanes::default());
            for step in steps {
                let mut changes = LaneChanges { is_complete: false, entered: Vec::new() };
                match step {
                    Step::Enter(user, labels, by) => {
                        let by = by.and_then(|by| nodes.get(by)).map(|node: &Node| node.id);
                        let placement = Placement::new(Requirements {
                            labels: labels.into_iter().map(str::to_owned).collect(),
                            excluded_nodes: by.into_iter().collect(),
                            ..Requirements::default()
                        });
                        let lane = Lane { user: users[user], placement };
                        all.push(lane.clone());
                        changes.entered.push(lane);
                    }
                    Step::Join(labels) => nodes.push(labeled_node(&labels)),
                    Step::Leave(n) if n < nodes.len() => drop(nodes.remove(n)),
                    Step::Relabel(n, labels) if n < nodes.len() => {
                        nodes[n].capability = labeled_node(&labels).capability;
                    }
                    Step::Leave(_) | Step::Relabel(..) => {}
                    Step::StartOver => changes = LaneChanges { is_complete: true, entered: all.clone() },
                }
                servable.update(changes, &nodes);
                let slots = SlotLimits { per_node: 1, total: 1 };
                let fits = |lane: &&Lane| {
                    nodes.iter().any(|node| Candidate::new(node, slots).fits(&lane.placement))
                };
                let expected: BTreeSet<_> = all.iter().filter(fits).cloned().collect();
                let found = servable.lanes().iter().cloned().collect();
                prop_assert_eq!(expected, found);
            }
        }
    }
}
