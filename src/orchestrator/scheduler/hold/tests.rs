//! Holds on nodes that are full of small jobs, of which new ones come as fast as others end.

use super::*;
use crate::{
    api::{JobId, NodeId},
    orchestrator::{
        gpu_pool,
        readiness::tests::node,
        scheduler::{SlotLimits, free_slots::Candidate, preference::Preference},
    },
    store::{Node, Requirements},
};
use proptest::prelude::*;
use std::{collections::HashMap, sync::Arc};

/// Steps, of one minute each, in which every user has to be served.
const STEPS: i64 = 400;
const MINUTE: i64 = 60_000;

/// Nodes, and what runs on them.
struct Cluster {
    nodes: Vec<Node>,
    /// Node, devices and end of each running job.
    running: Vec<(NodeId, Option<GpuRequest>, i64)>,
    /// Times in steps that jobs take, one after another.
    lengths: std::iter::Cycle<std::vec::IntoIter<i64>>,
    holds: Holds,
}

impl Cluster {
    fn new(devices: &[usize], lengths: Vec<i64>) -> Self {
        let nodes = devices.iter().map(|devices| {
            let mut report = gpu_pool::tests::report(*devices, &[]);
            // One slot more than devices, for a job without any.
            let slots = u32::try_from(*devices + 1).unwrap();
            report.sandbox.as_mut().unwrap().max_concurrency = Some(slots);
            Node {
                capability: Arc::new(report),
                ..node("box", slots, 0)
            }
        });
        Self {
            nodes: nodes.collect(),
            running: Vec::new(),
            lengths: lengths.into_iter().cycle(),
            holds: Holds::default(),
        }
    }

    fn slots(&self) -> FreeSlots {
        let all = SlotLimits {
            per_node: u32::MAX,
            total: u32::MAX,
        };
        let candidates = self.nodes.iter().map(|node| {
            let here = self.running.iter().filter(|(id, ..)| *id == node.id);
            let gpus: Vec<_> = here
                .clone()
                .filter_map(|(_, gpus, _)| gpus.clone())
                .collect();
            let running_jobs = u32::try_from(here.count()).unwrap();
            let node = Node {
                running_jobs,
                ..node.clone()
            };
            Candidate::new(&node, all).with_gpus(&gpus)
        });
        FreeSlots::new(candidates.collect(), u32::MAX)
    }

    fn start(&mut self, placement: &Placement, slots: &mut FreeSlots, step: i64) {
        let node = slots.take(placement, &Preference::default(), &[]).unwrap();
        let length = self.lengths.next().unwrap();
        self.running
            .push((node, placement.gpus().cloned(), step + length));
    }

    /// One decision, in which small jobs take all that is not held; the users whose jobs start.
    fn step(&mut self, heads: &[LaneHead], small: &[Placement], step: i64) -> Vec<UserId> {
        self.running.retain(|(.., end)| *end > step);
        let mut slots = self.slots();
        let due = self.holds.due(heads, &mut slots);
        if let Some((lane, _)) = &due {
            self.start(&lane.placement, &mut slots, step);
            self.holds.end(lane.user);
        }
        let user = due.map(|(lane, _)| lane.user);
        let others = heads.iter().filter(|(lane, _)| Some(lane.user) != user);
        let heads: Vec<_> = others.cloned().collect();
        let now = Time::from_millis(step * MINUTE);
        self.holds.apply(&heads, &mut slots, now);
        let mut served = Vec::from_iter(user);
        // A job that needs no hold has its fair turn.
        for (lane, _) in heads {
            if slots.has_room(&lane.placement) {
                self.start(&lane.placement, &mut slots, step);
                served.push(lane.user);
            }
        }
        for placement in small {
            while slots.has_room(placement) {
                self.start(placement, &mut slots, step);
            }
        }
        served
    }
}

fn placement(gpus: Option<GpuRequest>) -> Placement {
    Placement::new(Requirements {
        gpus,
        ..Requirements::default()
    })
}

fn ids(ids: &[&str]) -> GpuRequest {
    GpuRequest::Ids(ids.iter().map(|id| (*id).to_owned()).collect())
}

/// First job of a new user's lane, which waits since the beginning.
fn head(gpus: GpuRequest) -> LaneHead {
    let lane = Lane {
        user: UserId::new(),
        placement: placement(Some(gpus)),
    };
    let job = QueuedJob {
        rank: 0,
        id: JobId::new(),
        eligible_at: Time::from_millis(0),
    };
    (lane, job)
}

/// Requests that small jobs can keep waiting.
fn wide() -> impl Strategy<Value = GpuRequest> {
    prop_oneof![
        Just(GpuRequest::All),
        Just(GpuRequest::Count(2)),
        Just(ids(&["0", "1"])),
    ]
}

fn small() -> impl Strategy<Value = Vec<Placement>> {
    let requests = [None, Some(GpuRequest::Count(1)), Some(ids(&["0"]))];
    Just(requests.map(placement).to_vec()).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Also while every user has a next job that waits, and no slot is left idle.
    #[test]
    fn every_wide_request_is_served(
        devices in proptest::collection::vec(2..5_usize, 1..4),
        wide in proptest::collection::vec(wide(), 1..4),
        small in small(),
        lengths in proptest::collection::vec(1..6_i64, 1..9),
    ) {
        let mut cluster = Cluster::new(&devices, lengths);
        let mut heads: Vec<_> = wide.into_iter().map(head).collect();
        let mut served: HashMap<UserId, u32> = HashMap::new();
        for step in 0..STEPS {
            for user in cluster.step(&heads, &small, step) {
                *served.entry(user).or_default() += 1;
            }
            // As the fair order of the users has it.
            heads.sort_by_key(|(lane, _)| served.get(&lane.user).copied());
        }
        let times: Vec<_> = heads
            .iter()
            .map(|(lane, _)| served.get(&lane.user).copied().unwrap_or(0))
            .collect();
        prop_assert!(times.iter().all(|times| *times > 0), "{:?}", times);
    }
}

#[test]
fn hold_waits_and_leaves_other_nodes_free() {
    let mut cluster = Cluster::new(&[2, 2], vec![1]);
    let [one, none] = [Some(GpuRequest::Count(1)), None].map(placement);
    let two = [head(GpuRequest::Count(2))];
    let ids: Vec<NodeId> = cluster.nodes.iter().map(|node| node.id).collect();
    // Each node has one free device.
    for id in &ids {
        let job = (*id, Some(GpuRequest::Count(1)), i64::MAX);
        cluster.running.push(job);
    }
    let mut free = |minutes| {
        let mut slots = cluster.slots();
        let now = Time::from_millis(minutes * MINUTE);
        cluster.holds.apply(&two, &mut slots, now);
        let mut free = 0;
        while slots.has_room(&one) {
            slots.take(&one, &Preference::default(), &[]);
            free += 1;
        }
        assert!(
            slots.has_room(&none),
            "jobs without devices aren't affected"
        );
        free
    };
    assert_eq!([free(9), free(10), free(11)], [2, 1, 1]);
    assert!(cluster.holds.due(&two, &mut cluster.slots()).is_none());
    cluster.running.pop();
    assert!(cluster.holds.due(&two, &mut cluster.slots()).is_some());
    // Nothing is held for a job that left the queue, nor for one whose lane needs one device.
    cluster
        .holds
        .apply(&[], &mut cluster.slots(), Time::from_millis(0));
    assert!(cluster.holds.hold.is_none());
    let lanes = [GpuRequest::Count(1), GpuRequest::All].map(|gpus| head(gpus).0);
    assert_eq!(reads(&lanes).len(), 1);
}

#[test]
fn held_devices_are_in_use_half_the_time() {
    let mut cluster = Cluster::new(&[2], vec![1]);
    let one = placement(Some(GpuRequest::Count(1)));
    let all = [head(GpuRequest::All), head(GpuRequest::All)];
    // A job of weeks has one of the two devices.
    let node = cluster.nodes[0].id;
    cluster
        .running
        .push((node, Some(GpuRequest::Count(1)), i64::MAX));
    let mut hours = String::new();
    for minute in (0..16 * 60).step_by(10) {
        let mut slots = cluster.slots();
        let now = Time::from_millis(minute * MINUTE);
        cluster.holds.apply(&all, &mut slots, now);
        if minute % 60 == 30 {
            hours.push(if slots.has_room(&one) { '-' } else { 'H' });
        }
    }
    // Each of the two has one of an hour, then one of two hours.
    assert_eq!(hours, "H-H-HH--HH--HHHH");
    cluster.running.clear();
    assert!(cluster.holds.due(&all, &mut cluster.slots()).is_some());
}
