//! LabelIndex with free slots, and which of them fits what a job asks.

use crate::{
    api::{NodeId, nodes::CapabilityReport},
    orchestrator::{readiness, scheduler::SlotLimits},
    store::{Node, Placement, StoreError},
};
use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// A node that may be given jobs.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: NodeId,
    pub(super) report: Arc<CapabilityReport>,
    pub(super) running: u32,
    pub(super) slots: u32,
}

impl Candidate {
    /// The node with as many of its slots as are used.
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
            .labels
            .iter()
            .all(|label| self.labels().contains(label))
            && !placement.except.contains(&self.id)
            && (!placement.inference || infers())
    }

    /// Which of two has the smaller share of its slots taken, compared without division.
    fn by_load(&self, other: &Self) -> Ordering {
        let crossed = |a: u32, b: u32| u64::from(a) * u64::from(b);
        crossed(self.running, other.slots).cmp(&crossed(other.running, self.slots))
    }
}

/// The nodes with free slots.
pub(super) struct FreeSlots {
    nodes: Vec<Candidate>,
    /// Jobs that may yet be given away, whatever nodes have room.
    left: u32,
    by_label: HashMap<String, Vec<usize>>,
    /// By what is asked, those that fit it and had room when they were last asked.
    fitting: HashMap<String, Vec<usize>>,
}

impl FreeSlots {
    /// These nodes, of whose slots `left` may be taken.
    pub(super) fn new(nodes: Vec<Candidate>, left: u32) -> Self {
        let mut by_label: HashMap<String, Vec<usize>> = HashMap::new();
        for (n, node) in nodes.iter().enumerate() {
            for label in node.labels() {
                by_label.entry(label.clone()).or_default().push(n);
            }
        }
        Self {
            nodes,
            left,
            by_label,
            fitting: HashMap::new(),
        }
    }

    /// Whether a job that asks this of a node could have a slot.
    pub(super) fn has_room(&mut self, placement: &str) -> Result<bool, StoreError> {
        if self.left == 0 {
            return Ok(false);
        }
        if !self.fitting.contains_key(placement) {
            let fitting = self.find(&Placement::parse(placement)?);
            self.fitting.insert(placement.to_owned(), fitting);
        }
        let fitting = self.fitting.get_mut(placement);
        Ok(fitting.is_some_and(|fitting| {
            fitting.retain(|n| self.nodes[*n].has_free_slot());
            !fitting.is_empty()
        }))
    }

    /// Takes a slot of the least loaded node for a job that asks this and [has room](Self::has_room), of
    /// equal ones that of one of the `preferred`; never one of `except`.
    pub(super) fn take(
        &mut self,
        placement: &str,
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

    /// Those that fit. Of all its labels the rarest leads there, so that one that no node bears costs nothing.
    fn find(&self, placement: &Placement) -> Vec<usize> {
        let fits = |n: &usize| self.nodes[*n].fits(placement);
        let bearers = |label| self.by_label.get(label).map_or(&[][..], Vec::as_slice);
        match placement
            .labels
            .iter()
            .map(bearers)
            .min_by_key(|nodes| nodes.len())
        {
            Some(nodes) => nodes.iter().copied().filter(fits).collect(),
            None => (0..self.nodes.len()).filter(fits).collect(),
        }
    }
}
