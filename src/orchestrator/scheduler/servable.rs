//! The lines of the queue that some node could serve.
//!
//! A line whose labels no registered node bears is looked at when it comes into being and when a node's
//! labels change, and at no turn in between: however many there are, they cost a decision nothing.

use crate::{
    api::{NodeId, UserId, nodes::CapabilityReport},
    store::{Line, LineChanges, Node, Placement, StoreError},
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// Lines by whether some node could serve them.
#[derive(Debug, Default)]
pub(super) struct Servable {
    placements: HashMap<Arc<str>, Known>,
    nodes: Nodes,
    lines: BTreeSet<Line>,
    /// `lines` for who reads them, since it last changed.
    shown: Option<Arc<[Line]>>,
}

/// A placement, and whose jobs ask for it.
#[derive(Debug)]
struct Known {
    placement: Placement,
    is_servable: bool,
    users: HashSet<UserId>,
}

/// What is known of the nodes: who bears which label.
#[derive(Debug, Default)]
struct Nodes {
    reports: Vec<(NodeId, Arc<CapabilityReport>)>,
    bearers: HashMap<String, HashSet<NodeId>>,
}

impl Nodes {
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
    fn are(&self, nodes: &[Node]) -> bool {
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

impl Servable {
    /// Takes up which lines came into being, and which nodes there are now.
    pub(super) fn update(
        &mut self,
        changes: LineChanges,
        nodes: &[Node],
    ) -> Result<(), StoreError> {
        if changes.is_whole {
            self.placements.clear();
            self.lines.clear();
            self.shown = None;
        }
        if !self.nodes.are(nodes) {
            self.nodes = Nodes::new(nodes);
            self.sort();
        }
        for line in changes.entered {
            self.enter(line)?;
        }
        Ok(())
    }

    /// The lines that some node could serve.
    pub(super) fn lines(&mut self) -> Arc<[Line]> {
        let lines = &self.lines;
        let shown = self
            .shown
            .get_or_insert_with(|| lines.iter().cloned().collect());
        Arc::clone(shown)
    }

    fn enter(&mut self, line: Line) -> Result<(), StoreError> {
        if !self.placements.contains_key(&line.placement) {
            let placement = Placement::read(&line.placement)?;
            let known = Known {
                is_servable: self.nodes.could_serve(&placement),
                placement,
                users: HashSet::new(),
            };
            self.placements.insert(Arc::clone(&line.placement), known);
        }
        let Some(known) = self.placements.get_mut(&line.placement) else {
            return Ok(());
        };
        if known.users.insert(line.user) && known.is_servable {
            self.lines.insert(line);
            self.shown = None;
        }
        Ok(())
    }

    /// Finds out anew which placements the nodes could serve.
    fn sort(&mut self) {
        self.lines.clear();
        self.shown = None;
        for (text, known) in &mut self.placements {
            known.is_servable = self.nodes.could_serve(&known.placement);
            if known.is_servable {
                self.lines.extend(known.users.iter().map(|user| Line {
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
            scheduler::{Slots, places::Candidate},
        },
        store::Line,
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
        /// Whatever comes in whatever order: the lines are those that a look at everything finds.
        #[test]
        fn servable_lines_are_those_that_a_node_fits(steps in proptest::collection::vec(step(), 1..30)) {
            let users = [(); 2].map(|()| UserId::new());
            let (mut nodes, mut all, mut servable) = (Vec::new(), Vec::new(), Servable::default());
            for step in steps {
                let mut changes = LineChanges { is_whole: false, entered: Vec::new() };
                match step {
                    Step::Enter(user, labels, by) => {
                        let by = by.and_then(|by| nodes.get(by)).map(|node: &Node| node.id);
                        let placement = Placement {
                            labels: labels.into_iter().map(str::to_owned).collect(),
                            except: by.into_iter().collect(),
                            ..Placement::default()
                        };
                        let placement = serde_json::to_string(&placement).unwrap();
                        let line = Line { user: users[user], placement: placement.into() };
                        all.push(line.clone());
                        changes.entered.push(line);
                    }
                    Step::Join(labels) => nodes.push(bearer(&labels)),
                    Step::Leave(n) if n < nodes.len() => drop(nodes.remove(n)),
                    Step::Relabel(n, labels) if n < nodes.len() => {
                        nodes[n].capability = bearer(&labels).capability;
                    }
                    Step::Leave(_) | Step::Relabel(..) => {}
                    Step::StartOver => changes = LineChanges { is_whole: true, entered: all.clone() },
                }
                servable.update(changes, &nodes).unwrap();
                let slots = Slots { per_node: 1, in_all: 1 };
                let fits = |line: &&Line| {
                    let placement = Placement::read(&line.placement).unwrap();
                    nodes.iter().any(|node| Candidate::new(node.clone(), slots).fits(&placement))
                };
                let expected: BTreeSet<_> = all.iter().filter(fits).cloned().collect();
                let found = servable.lines().iter().cloned().collect();
                prop_assert_eq!(expected, found);
            }
        }
    }
}
