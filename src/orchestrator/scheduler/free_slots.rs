//! Nodes with free slots, and the best of them for a placement.

use super::{
    fit::{RareTraits, could_serve},
    preference::Preference,
};
use crate::{
    api::{
        NodeId,
        jobs::resources::GpuRequest,
        nodes::{CapabilityReport, Inference},
        time::Time,
    },
    orchestrator::{gpu_pool::GpuPool, scheduler::SlotLimits},
    store::{Node, Placement},
};
use std::{cmp::Ordering, collections::HashMap, sync::Arc};

/// Node that may be assigned jobs.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: NodeId,
    pub(super) report: Arc<CapabilityReport>,
    pub(super) running: u32,
    pub(super) slots: u32,
    /// Devices of the node; unknown where no job asks for any.
    pub(super) gpus: Option<GpuPool>,
    /// Whether its devices are held for a job that waits for more of them.
    is_held: bool,
}

impl Candidate {
    /// Candidate with the slots of a node that may be used.
    pub(super) fn new(node: &Node, slots: SlotLimits) -> Self {
        Self {
            id: node.id,
            running: node.running_jobs,
            slots: slots.usable(node.capability.max_concurrency()),
            report: Arc::clone(&node.capability),
            gpus: None,
            is_held: false,
        }
    }

    /// Same, with the devices of these running jobs in use.
    pub(super) fn with_gpus(self, running: &[GpuRequest]) -> Self {
        Self {
            gpus: Some(GpuPool::new(&self.report).with_jobs(running)),
            ..self
        }
    }

    /// Same, without a free slot: a node that gets no job at the moment.
    pub(super) fn backing_off(self) -> Self {
        Self {
            slots: self.running,
            ..self
        }
    }

    pub(super) fn has_free_slot(&self) -> bool {
        self.running < self.slots
    }

    /// Whether the node could run a job with this placement, when it has a slot and devices free.
    pub(super) fn fits(&self, placement: &Placement) -> bool {
        let inference = self.report.inference.as_ref();
        let infers = || inference.is_some_and(Inference::is_serving);
        let has_model = |name: &str| inference.is_some_and(|inference| inference.has_model(name));
        could_serve(self.id, &self.report, placement)
            && (!placement.needs_inference() || infers())
            && placement.model().is_none_or(has_model)
    }

    /// Whether a job that fits could start now.
    pub(super) fn has_room(&self, placement: &Placement) -> bool {
        let has_free = |gpus: &GpuRequest| {
            let pool = self.gpus.as_ref().filter(|_| !self.is_held);
            pool.is_some_and(|pool| pool.has_free(gpus))
        };
        self.has_free_slot() && placement.gpus().is_none_or(has_free)
    }

    fn take(&mut self, placement: &Placement) {
        self.running += 1;
        if let (Some(pool), Some(gpus)) = (&mut self.gpus, placement.gpus()) {
            pool.take(gpus);
        }
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
    traits: RareTraits,
    /// Candidates that fit a placement and had room for it at the last check.
    fitting: HashMap<Placement, Vec<usize>>,
}

impl FreeSlots {
    /// Free slots of these nodes, of which at most `left` may be taken.
    pub(super) fn new(nodes: Vec<Candidate>, left: u32) -> Self {
        let traits = RareTraits::new(nodes.iter().map(|node| &*node.report));
        let free = |node: &Candidate| node.slots.saturating_sub(node.running);
        let free = nodes.iter().map(free).fold(0, u32::saturating_add);
        Self {
            nodes,
            left: free.min(left),
            traits,
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
            fitting.retain(|n| self.nodes[*n].has_room(placement));
            !fitting.is_empty()
        })
    }

    /// Holds the devices of one node for a job, so that no job gets any of them: of those nodes that have a free device
    /// and that at least so many others have to become free of, the one where these are the fewest; never one of
    /// `except`. `None` where there is none.
    pub(super) fn hold(
        &mut self,
        placement: &Placement,
        least_missing: usize,
        except: &HashMap<NodeId, Time>,
    ) -> Option<NodeId> {
        let gpus = placement.gpus()?;
        let missing = |n: usize| {
            if except.contains_key(&self.nodes[n].id) {
                return None;
            }
            let pool = self.nodes[n].gpus.as_ref()?;
            let missing = pool.missing(gpus);
            (pool.free() > 0 && missing >= least_missing).then_some((missing, n))
        };
        let (_, n) = self.find(placement).into_iter().filter_map(missing).min()?;
        self.nodes[n].is_held = true;
        Some(self.nodes[n].id)
    }

    /// Takes a slot for a job that [has room](Self::has_room), at the node that it prefers, of equal ones the least
    /// loaded; never one of `except`.
    pub(super) fn take(
        &mut self,
        placement: &Placement,
        preference: &Preference<'_>,
        except: &[NodeId],
    ) -> Option<NodeId> {
        let fitting = self.fitting.get(placement).into_iter().flatten().copied();
        let fitting = fitting.filter(|n| !except.contains(&self.nodes[*n].id));
        let best = fitting.min_by(|a, b| {
            let [a, b] = [a, b].map(|n| &self.nodes[*n]);
            let by_image = || preference.lacks_image(a).cmp(&preference.lacks_image(b));
            let by_fitness = preference.fitness(a).cmp(&preference.fitness(b));
            by_fitness.then_with(|| a.by_load(b)).then_with(by_image)
        });
        best.map(|n| {
            self.nodes[n].take(placement);
            self.left = self.left.saturating_sub(1);
            self.nodes[n].id
        })
    }

    /// Candidates that fit a placement. A job with a long time limit waits for those that allow it, where there is any:
    /// also for one without a free slot, since the others would cut it.
    fn find(&self, placement: &Placement) -> Vec<usize> {
        let fits = |n: &usize| self.nodes[*n].fits(placement);
        let mut fitting: Vec<usize> = match self.traits.with_rarest(placement) {
            Some(nodes) => nodes.iter().copied().filter(fits).collect(),
            None => (0..self.nodes.len()).filter(fits).collect(),
        };
        if let Some(limit) = placement.time_limit() {
            let allows = |n: &usize| self.nodes[*n].report.max_timeout_seconds() >= limit;
            if fitting.iter().any(allows) {
                fitting.retain(allows);
            }
        }
        fitting
    }
}
