//! Nodes with free slots, and the best of them for a placement.

use crate::{
    api::{NodeId, nodes::CapabilityReport},
    orchestrator::{readiness, scheduler::SlotLimits},
    store::{Node, Placement},
};
use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// Node that may be assigned jobs.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: NodeId,
    pub(super) report: Arc<CapabilityReport>,
    pub(super) running: u32,
    pub(super) slots: u32,
}

impl Candidate {
    /// Candidate with the slots of a node that may be used.
    pub(super) fn new(node: Node, slots: SlotLimits) -> Self {
        Self {
            id: node.id,
            running: node.running_jobs,
            slots: slots.usable(node.capability.max_concurrency()),
            report: node.capability,
        }
    }

    pub(super) fn has_free_slot(&self) -> bool {
        self.running < self.slots
    }

    pub(super) fn labels(&self) -> &[String] {
        self.report.node.labels.as_deref().unwrap_or_default()
    }

    pub(super) fn fits(&self, placement: &Placement) -> bool {
        let inference = self.report.inference.as_ref();
        let infers = || readiness::inference_unavailable(inference).is_none();
        placement
            .labels()
            .iter()
            .all(|label| self.labels().contains(label))
            && !placement.excluded_nodes().contains(&self.id)
            && (!placement.needs_inference() || infers())
    }

    /// Order by the share of slots in use, compared without division.
    fn by_load(&self, other: &Self) -> Ordering {
        let crossed = |a: u32, b: u32| u64::from(a) * u64::from(b);
        crossed(self.running, other.slots).cmp(&crossed(other.running, self.slots))
    }
}

/// Free slots of all candidates.
pub(super) struct FreeSlots {
    nodes: Vec<Candidate>,
    /// Number of slots that may still be taken.
    left: u32,
    by_label: HashMap<String, Vec<usize>>,
    /// Candidates that fit a placement and had a free slot at the last check.
    fitting: HashMap<Placement, Vec<usize>>,
}

impl FreeSlots {
    /// Free slots of these nodes, of which at most `left` may be taken.
    pub(super) fn new(nodes: Vec<Candidate>, left: u32) -> Self {
        let mut by_label: HashMap<String, Vec<usize>> = HashMap::new();
        for (n, node) in nodes.iter().enumerate() {
            for label in node.labels() {
                by_label.entry(label.clone()).or_default().push(n);
            }
        }
        let free = |node: &Candidate| node.slots.saturating_sub(node.running);
        let free = nodes.iter().map(free).fold(0, u32::saturating_add);
        Self {
            nodes,
            left: free.min(left),
            by_label,
            fitting: HashMap::new(),
        }
    }

    /// Number of slots that may still be taken.
    pub(super) fn left(&self) -> u32 {
        self.left
    }

    /// Whether a job with this placement could have a slot.
    pub(super) fn has_room(&mut self, placement: &Placement) -> bool {
        if self.left == 0 {
            return false;
        }
        if !self.fitting.contains_key(placement) {
            let fitting = self.find(placement);
            self.fitting.insert(placement.clone(), fitting);
        }
        let fitting = self.fitting.get_mut(placement);
        fitting.is_some_and(|fitting| {
            fitting.retain(|n| self.nodes[*n].has_free_slot());
            !fitting.is_empty()
        })
    }

    /// Takes a slot of the least loaded node for a job that [has room](Self::has_room), of equally loaded ones
    /// that of a `preferred` one; never one of `except`.
    pub(super) fn take(
        &mut self,
        placement: &Placement,
        preferred: Option<&HashSet<NodeId>>,
        except: &[NodeId],
    ) -> Option<NodeId> {
        let lacks_image =
            |node: &Candidate| preferred.is_none_or(|nodes| !nodes.contains(&node.id));
        let fitting = self.fitting.get(placement).into_iter().flatten().copied();
        let fitting = fitting.filter(|n| !except.contains(&self.nodes[*n].id));
        let best = fitting.min_by(|a, b| {
            let [a, b] = [a, b].map(|n| &self.nodes[*n]);
            let by_image = || lacks_image(a).cmp(&lacks_image(b));
            a.by_load(b).then_with(by_image)
        });
        best.map(|n| {
            self.nodes[n].running += 1;
            self.left = self.left.saturating_sub(1);
            self.nodes[n].id
        })
    }

    /// Candidates that fit a placement. Only those with its rarest label are checked, so that a label that no node
    /// has costs nothing.
    fn find(&self, placement: &Placement) -> Vec<usize> {
        let fits = |n: &usize| self.nodes[*n].fits(placement);
        let labeled = |label| self.by_label.get(label).map_or(&[][..], Vec::as_slice);
        match placement
            .labels()
            .iter()
            .map(labeled)
            .min_by_key(|nodes| nodes.len())
        {
            Some(nodes) => nodes.iter().copied().filter(fits).collect(),
            None => (0..self.nodes.len()).filter(fits).collect(),
        }
    }
}
