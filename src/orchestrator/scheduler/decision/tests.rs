//! Decisions against a check of every user, job and node.

use super::*;
use crate::{
    api::jobs::resources::GpuRequest,
    orchestrator::{
        gpu_pool,
        readiness::tests::node,
        scheduler::{SlotLimits, free_slots::Candidate},
    },
    store::{JobDetails, Placement, Requirements},
};
use proptest::{option, prelude::*};
use std::{collections::BTreeSet, sync::Arc};

/// Job in the queue of a test.
#[derive(Clone, Debug)]
struct Job {
    lane: Lane,
    job: QueuedJob,
    /// Missing if the job leaves the queue during the decision.
    image: Option<&'static str>,
    timeout_seconds: Option<u64>,
}

/// Queue in memory, and the running jobs.
#[derive(Clone, Debug, Default)]
struct World {
    queue: Vec<Job>,
    running: HashMap<UserId, u32>,
}

/// State between decisions.
#[derive(Default)]
struct History {
    shares: FairShare,
    images: ImageNodes,
}

impl World {
    fn lanes(&self) -> Vec<Lane> {
        let lanes = self.queue.iter().map(|job| job.lane.clone());
        lanes.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn add(&mut self, user: UserId, labels: &[&str], rank: i32) -> JobId {
        self.add_refused(user, labels, rank, None)
    }

    /// Adds a job that asks for devices.
    fn add_with_gpus(&mut self, user: UserId, rank: i32, gpus: Option<GpuRequest>) -> JobId {
        let id = self.add(user, &[], rank);
        let placement = Placement::new(Requirements {
            gpus,
            ..Requirements::default()
        });
        self.queue.last_mut().unwrap().lane.placement = placement;
        id
    }

    /// Adds a job that this node has refused.
    fn add_refused(
        &mut self,
        user: UserId,
        labels: &[&str],
        rank: i32,
        by: Option<NodeId>,
    ) -> JobId {
        let labels = labels.iter().map(|label| (*label).to_owned());
        let placement = Placement::new(Requirements {
            labels: labels.collect(),
            excluded_nodes: by.into_iter().collect(),
            ..Requirements::default()
        });
        let eligible_at = Time::from_millis(self.queue.len() as i64);
        let id = JobId::new();
        self.queue.push(Job {
            lane: Lane { user, placement },
            job: QueuedJob {
                rank,
                id,
                eligible_at,
            },
            image: Some("a"),
            timeout_seconds: None,
        });
        id
    }

    /// Starts a job; its user.
    fn start(&mut self, job: JobId) -> UserId {
        let is_job = |queued: &Job| queued.job.id == job;
        let at = self.queue.iter().position(is_job).unwrap();
        let user = self.queue.remove(at).lane.user;
        *self.running.entry(user).or_default() += 1;
        user
    }

    /// Answer of the store to reads.
    fn read(&self, reads: &[LaneRead]) -> Vec<Vec<QueuedJob>> {
        let jobs = reads.iter().map(|LaneRead { lane, after, limit }| {
            let jobs = self.queue.iter().filter(|job| job.lane == *lane);
            let jobs = jobs.map(|job| job.job);
            let behind: BTreeSet<_> = jobs
                .filter(|job| after.is_none_or(|after| *job > after))
                .collect();
            behind.into_iter().take(*limit as usize).collect()
        });
        jobs.collect()
    }

    fn details(&self, jobs: Vec<JobId>) -> Vec<(JobId, Option<JobDetails>)> {
        let details = |job| {
            let job = self.queue.iter().find(|queued| queued.job.id == job)?;
            Some(JobDetails {
                image: job.image?.to_owned(),
                timeout_seconds: job.timeout_seconds,
                ..JobDetails::default()
            })
        };
        jobs.into_iter().map(|job| (job, details(job))).collect()
    }

    /// Round after its first read, with reads of at most `limit` jobs.
    fn begin<'a>(
        &self,
        mut slots: FreeSlots,
        History { shares, images }: &'a mut History,
        limit: u32,
    ) -> Round<'a> {
        let reads = first_reads(&self.lanes(), &mut slots, limit);
        let heads = LaneHeads {
            running: self.running.clone(),
            jobs: self.read(&reads),
        };
        Round::new(reads, heads, slots, (shares, images), limit)
    }

    fn assign(&self, slots: FreeSlots, history: &mut History, limit: u32) -> Vec<(JobId, NodeId)> {
        let mut round = self.begin(slots, history, limit);
        loop {
            match round.step() {
                Step::ReadJobs(reads) => round.add_jobs(self.read(&reads)),
                Step::ReadDetails(jobs) => round.add_details(self.details(jobs)),
                Step::Done => return round.into_assigned(),
            }
        }
    }
}

fn candidate(labels: &[&str], running: u32, slots: u32) -> Candidate {
    let mut node = node("box", slots, running);
    let report = Arc::make_mut(&mut node.capability);
    report.node.labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
    Candidate::new(&node, ALL)
}

const ALL: SlotLimits = SlotLimits {
    per_node: u32::MAX,
    total: u32::MAX,
};

fn free_slots(nodes: Vec<Candidate>) -> FreeSlots {
    FreeSlots::new(nodes, ALL.total)
}

const LABELS: [&[&str]; 4] = [&[], &["a"], &["b"], &["a", "b"]];

fn labels() -> impl Strategy<Value = &'static [&'static str]> {
    proptest::sample::select(&LABELS[..])
}

/// Whether a job with this placement could start at a node now.
fn is_possible(node: &Candidate, placement: &Placement) -> bool {
    node.fits(placement) && node.has_room(placement)
}

/// Checks against every user, job and node that `job` on `to` is the next assignment by the rules.
fn check(world: &World, nodes: &[Candidate], job: JobId, to: NodeId) -> Result<(), TestCaseError> {
    let could = |job: &&Job| {
        let fits = |node: &Candidate| is_possible(node, &job.lane.placement);
        nodes.iter().any(fits)
    };
    let job = world
        .queue
        .iter()
        .find(|queued| queued.job.id == job)
        .unwrap();
    let running = |user| world.running.get(user).copied().unwrap_or(0);
    let fewest = world
        .queue
        .iter()
        .filter(could)
        .map(|job| running(&job.lane.user))
        .min();
    prop_assert_eq!(
        Some(running(&job.lane.user)),
        fewest,
        "the user has the fewest running jobs"
    );
    let own = world
        .queue
        .iter()
        .filter(|other| other.lane.user == job.lane.user);
    let first = own.filter(could).map(|job| job.job).min();
    prop_assert_eq!(Some(job.job), first, "the job is the first of its user");
    let placement = &job.lane.placement;
    let node = nodes.iter().find(|node| node.id == to).unwrap();
    prop_assert!(is_possible(node, placement));
    prop_assert!(
        !placement.excluded_nodes().contains(&to),
        "the node refused the job"
    );
    let share = |node: &Candidate| f64::from(node.running) / f64::from(node.slots);
    for other in nodes.iter().filter(|other| is_possible(other, placement)) {
        prop_assert!(share(node) <= share(other), "the node is the least loaded");
    }
    Ok(())
}

proptest! {
    #[test]
    fn schedule_is_valid_fair_and_work_conserving(
        jobs in proptest::collection::vec((0usize..3, labels(), -1..2, 0usize..9), 0..14),
        running in proptest::array::uniform3(0u32..3),
        nodes in proptest::collection::vec((labels(), 0u32..4, 0u32..4), 0..5),
        left in 0u32..20,
        limit in 1u32..4,
    ) {
        let users = [(); 3].map(|()| UserId::new());
        let mut world = World { running: users.into_iter().zip(running).collect(), ..World::default() };
        let mut nodes: Vec<_> = nodes.into_iter().map(|(labels, running, slots)| candidate(labels, running, slots)).collect();
        for (user, labels, rank, by) in jobs {
            let by = nodes.get(by).map(|node| node.id);
            world.add_refused(users[user], labels, rank, by);
        }
        let slots = || FreeSlots::new(nodes.clone(), left);
        let assigned = world.assign(slots(), &mut History::default(), LANE_READ_LIMIT);
        let in_small_reads = world.assign(slots(), &mut History::default(), limit);
        prop_assert_eq!(&in_small_reads, &assigned, "the size of reads changes nothing");
        let given = assigned.len() as u32;
        prop_assert!(given <= left, "no more than the total limit");
        for (job, to) in assigned {
            check(&world, &nodes, job, to)?;
            world.start(job);
            nodes.iter_mut().find(|node| node.id == to).unwrap().running += 1;
        }
        for job in world.queue.iter().filter(|_| given < left) {
            prop_assert!(!nodes.iter().any(|node| is_possible(node, &job.lane.placement)));
        }
    }

    /// Devices are given out once, and a job that waits for some delays no other.
    #[test]
    fn devices_are_exclusive_and_delay_no_other_job(
        jobs in proptest::collection::vec((0usize..3, option::of(gpu_pool::tests::request()), -1..2), 0..14),
        nodes in proptest::collection::vec(
            (0usize..4, proptest::collection::vec(gpu_pool::tests::request(), 0..2), 0u32..5), 0..4,
        ),
        limit in 1u32..4,
    ) {
        let users = [(); 3].map(|()| UserId::new());
        let mut world = World::default();
        let mut nodes: Vec<_> = nodes.into_iter().map(|(devices, running, slots)| {
            let mut node = candidate(&[], 0, slots);
            let report = Arc::make_mut(&mut node.report);
            report.gpu = gpu_pool::tests::report(devices, &[]).gpu;
            node.with_gpus(&running)
        }).collect();
        for (user, gpus, rank) in jobs {
            world.add_with_gpus(users[user], rank, gpus);
        }
        let assigned = world.assign(free_slots(nodes.clone()), &mut History::default(), limit);
        for (job, to) in assigned {
            check(&world, &nodes, job, to)?;
            let is_job = |queued: &&Job| queued.job.id == job;
            let placement = world.queue.iter().find(is_job).unwrap().lane.placement.clone();
            world.start(job);
            let node = nodes.iter_mut().find(|node| node.id == to).unwrap();
            node.running += 1;
            let pool = node.gpus.take().unwrap();
            node.gpus = Some(pool.with_jobs(placement.gpus()));
        }
        for job in &world.queue {
            prop_assert!(!nodes.iter().any(|node| is_possible(node, &job.lane.placement)));
        }
    }

    /// Other users queue endlessly; an idle one adds a single job.
    #[test]
    fn idle_user_waits_one_turn_each(
        others in 1usize..5,
        slots in 1u32..4,
        before in 0usize..9,
        ends in proptest::collection::vec(any::<proptest::sample::Index>(), 20),
    ) {
        let users: Vec<_> = (0..others).map(|_| UserId::new()).collect();
        let (mut world, mut history, mut at_nodes) = (World::default(), History::default(), Vec::new());
        let (late, mut turns, mut come) = (UserId::new(), 0, false);
        for (round, end) in ends.iter().enumerate() {
            for user in &users {
                for _ in 0..slots {
                    world.add(*user, &[], 0);
                }
            }
            if round == before {
                // The user just had a turn, and is the last in every order.
                history.shares.record_turn(late);
                world.add(late, &[], 100);
                come = true;
            }
            let free = candidate(&[], at_nodes.len() as u32, slots);
            for (job, _) in world.assign(free_slots(vec![free]), &mut history, LANE_READ_LIMIT) {
                let user = world.start(job);
                at_nodes.push(user);
                if user == late {
                    return Ok(());
                }
                turns += usize::from(come);
                prop_assert!(turns <= others, "{turns} turns of {others} others");
            }
            let ended = at_nodes.swap_remove(end.index(at_nodes.len()));
            *world.running.get_mut(&ended).unwrap() -= 1;
        }
        prop_assert!(false, "the job was never assigned");
    }
}

#[test]
fn scheduler_reads_only_placeable_jobs() {
    let (mut world, user) = (World::default(), UserId::new());
    for n in 0..500 {
        world.add(user, if n % 2 == 0 { &[] } else { &["nowhere"] }, 0);
    }
    let mut slots = free_slots(vec![candidate(&[], 0, 3)]);
    let reads = first_reads(&world.lanes(), &mut slots, LANE_READ_LIMIT);
    let [read] = &reads[..] else {
        panic!("one lane has a node: {reads:?}");
    };
    assert_eq!(read.limit, 4, "one for each slot, and the next one");
    let mut history = History::default();
    let mut round = world.begin(slots, &mut history, LANE_READ_LIMIT);
    let Step::ReadDetails(jobs) = round.step() else {
        panic!("every other job was read");
    };
    assert_eq!(jobs.len(), 3, "one for each slot, at once");
    round.add_details(world.details(jobs));
    assert!(matches!(round.step(), Step::Done));
    assert_eq!(round.into_assigned().len(), 3);
}

/// A job may move to another lane between two reads, when a node is readmitted.
#[test]
fn job_that_changes_lane_is_assigned_once() {
    let (mut world, user, node) = (World::default(), UserId::new(), candidate(&[], 0, 9));
    let (moving, last) = (
        world.add_refused(user, &[], 0, Some(NodeId::new())),
        world.add(user, &[], 2),
    );
    let first = world.add(user, &[], -1);
    let mut history = History::default();
    let mut round = world.begin(free_slots(vec![node]), &mut history, 1);
    loop {
        match round.step() {
            Step::ReadJobs(reads) => {
                // Read from its first lane before, it now is behind the head of the other.
                let placement = Placement::default();
                world.queue[0].lane = Lane { user, placement };
                round.add_jobs(world.read(&reads));
            }
            Step::ReadDetails(jobs) => round.add_details(world.details(jobs)),
            Step::Done => break,
        }
    }
    let assigned: Vec<_> = round
        .into_assigned()
        .into_iter()
        .map(|(job, _)| job)
        .collect();
    assert_eq!(assigned, [first, moving, last]);
}

#[test]
fn vanished_job_costs_no_turn() {
    let (mut world, users) = (World::default(), [(); 2].map(|()| UserId::new()));
    world.add(users[0], &[], 0);
    let [next, other] = users.map(|user| world.add(user, &[], 0));
    world.queue[0].image = None;
    let slots = free_slots(vec![candidate(&[], 0, 2)]);
    let assigned = world.assign(slots, &mut History::default(), LANE_READ_LIMIT);
    let jobs: Vec<_> = assigned.into_iter().map(|(job, _)| job).collect();
    assert_eq!(jobs, [next, other]);
}

mod nodes;
