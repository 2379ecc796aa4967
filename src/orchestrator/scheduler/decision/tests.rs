//! The decision is held to its rules by a slow look at everything.

use super::*;
use crate::{
    orchestrator::{
        readiness::tests::node,
        scheduler::{SlotLimits, free_slots::Candidate},
    },
    store::Placement,
};
use proptest::prelude::*;
use std::{cell::Cell, sync::Arc};

/// A job in the queue of a test.
#[derive(Clone, Debug)]
struct Job {
    lane: Lane,
    job: QueuedJob,
    image: &'static str,
}

/// A queue in shares, and what runs.
#[derive(Clone, Debug, Default)]
struct World {
    queue: Vec<Job>,
    running: HashMap<UserId, u32>,
    /// Jobs that were read of it.
    read: Cell<usize>,
}

impl Queue for World {
    fn running(&self) -> Result<HashMap<UserId, u32>, StoreError> {
        Ok(self.running.clone())
    }

    fn next(&self, lane: &Lane, last: Option<&QueuedJob>) -> Result<Option<QueuedJob>, StoreError> {
        self.read.set(self.read.get() + 1);
        let lane = self.queue.iter().filter(|job| job.lane == *lane);
        let behind = lane
            .map(|job| job.job)
            .filter(|job| last.is_none_or(|last| job > last));
        Ok(behind.min())
    }

    fn image(&self, job: JobId) -> Result<String, StoreError> {
        let job = self.queue.iter().find(|queued| queued.job.id == job);
        Ok(job.unwrap().image.to_owned())
    }
}

impl World {
    fn lanes(&self) -> Vec<Lane> {
        let lanes = self.queue.iter().map(|job| job.lane.clone());
        lanes
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    fn add(&mut self, user: UserId, labels: &[&str], rank: i32) -> JobId {
        self.add_refused(user, labels, rank, None)
    }

    /// The same for one that this node has refused.
    fn add_refused(
        &mut self,
        user: UserId,
        labels: &[&str],
        rank: i32,
        by: Option<NodeId>,
    ) -> JobId {
        let placement = Placement {
            except: by.into_iter().collect(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            ..Placement::default()
        };
        let placement = serde_json::to_string(&placement).unwrap().into();
        let since = Time::from_millis(self.queue.len() as i64);
        let id = JobId::new();
        self.queue.push(Job {
            lane: Lane { user, placement },
            job: QueuedJob {
                rank,
                id,
                eligible_at: since,
            },
            image: "a",
        });
        id
    }

    /// The job runs now; whose it is.
    fn start(&mut self, job: JobId) -> UserId {
        let at = self
            .queue
            .iter()
            .position(|queued| queued.job.id == job)
            .unwrap();
        let user = self.queue.remove(at).lane.user;
        *self.running.entry(user).or_default() += 1;
        user
    }
}

fn candidate(labels: &[&str], running: u32, slots: u32) -> Candidate {
    let mut node = node("box", slots, running);
    let report = Arc::make_mut(&mut node.capability);
    report.node.labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
    Candidate::new(node, ALL)
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

/// Looks at every user, job and node: whether `job` on `node` is what the rules want next.
fn check(world: &World, nodes: &[Candidate], job: JobId, to: NodeId) -> Result<(), TestCaseError> {
    let could = |job: &&Job| {
        let placement = Placement::parse(&job.lane.placement).unwrap();
        nodes
            .iter()
            .any(|node| node.has_free_slot() && node.fits(&placement))
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
        "the fewest run of this user"
    );
    let own = world
        .queue
        .iter()
        .filter(|other| other.lane.user == job.lane.user);
    let first = own.filter(could).map(|job| job.job).min();
    prop_assert_eq!(Some(job.job), first, "it is this user's first");
    let placement = Placement::parse(&job.lane.placement).unwrap();
    let node = nodes.iter().find(|node| node.id == to).unwrap();
    prop_assert!(node.has_free_slot() && node.fits(&placement));
    prop_assert!(!placement.except.contains(&to), "it has refused it");
    let share = |node: &Candidate| f64::from(node.running) / f64::from(node.slots);
    for other in nodes
        .iter()
        .filter(|other| other.has_free_slot() && other.fits(&placement))
    {
        prop_assert!(share(node) <= share(other), "it is the least loaded");
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
    ) {
        let users = [(); 3].map(|()| UserId::new());
        let mut world = World { running: users.into_iter().zip(running).collect(), ..World::default() };
        let mut nodes: Vec<_> = nodes.into_iter().map(|(labels, running, slots)| candidate(labels, running, slots)).collect();
        for (user, labels, rank, by) in jobs {
            let by = nodes.get(by).map(|node| node.id);
            world.add_refused(users[user], labels, rank, by);
        }
        let assigned = assign_queued(&world, &world.lanes(), FreeSlots::new(nodes.clone(), left), &mut FairShare::default()).unwrap();
        let given = assigned.len() as u32;
        prop_assert!(given <= left, "no more than there may be in all");
        for (job, to) in assigned {
            check(&world, &nodes, job, to)?;
            world.start(job);
            nodes.iter_mut().find(|node| node.id == to).unwrap().running += 1;
        }
        for job in world.queue.iter().filter(|_| given < left) {
            let placement = Placement::parse(&job.lane.placement).unwrap();
            prop_assert!(!nodes.iter().any(|node| node.has_free_slot() && node.fits(&placement)));
        }
    }

    /// Others queue without end; somebody comes with one task.
    #[test]
    fn idle_user_waits_one_turn_each(
        others in 1usize..5,
        slots in 1u32..4,
        before in 0usize..9,
        ends in proptest::collection::vec(any::<proptest::sample::Index>(), 20),
    ) {
        let users: Vec<_> = (0..others).map(|_| UserId::new()).collect();
        let (mut world, mut shares, mut at_nodes) = (World::default(), FairShare::default(), Vec::new());
        let (late, mut turns, mut come) = (UserId::new(), 0, false);
        for (round, end) in ends.iter().enumerate() {
            for user in &users {
                for _ in 0..slots {
                    world.add(*user, &[], 0);
                }
            }
            if round == before {
                // It just had a turn, and is the last in every order.
                shares.record_turn(late);
                world.add(late, &[], 100);
                come = true;
            }
            let free = candidate(&[], at_nodes.len() as u32, slots);
            for (job, _) in assign_queued(&world, &world.lanes(), free_slots(vec![free]), &mut shares).unwrap() {
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
        prop_assert!(false, "it never came to the one task");
    }
}

#[test]
fn scheduler_reads_only_jobs_it_can_place() {
    let (mut world, user) = (World::default(), UserId::new());
    for n in 0..500 {
        world.add(user, if n % 2 == 0 { &[] } else { &["nowhere"] }, 0);
    }
    let given = assign_queued(
        &world,
        &world.lanes(),
        free_slots(vec![candidate(&[], 0, 3)]),
        &mut FairShare::default(),
    );
    assert_eq!(given.unwrap().len(), 3);
    // One for each slot, and the one behind them.
    assert_eq!(world.read.get(), 4);
}

#[test]
fn image_breaks_ties_between_nodes() {
    let nodes = [
        candidate(&[], 0, 4),
        candidate(&[], 0, 4),
        candidate(&[], 1, 4),
    ];
    let ids = nodes.each_ref().map(|node| node.id);
    let (mut world, mut shares) = (World::default(), FairShare::default());
    let job = world.add(UserId::new(), &[], 0);
    let given = |shares: &mut FairShare| {
        assign_queued(&world, &world.lanes(), free_slots(nodes.to_vec()), shares).unwrap()
    };
    shares.record_image("a".to_owned(), ids[1]);
    shares.record_image("b".to_owned(), ids[0]);
    assert_eq!(given(&mut shares), [(job, ids[1])]);
    // An emptier one is better than one that has it.
    let mut shares = FairShare::default();
    shares.record_image("a".to_owned(), ids[2]);
    assert_eq!(given(&mut shares), [(job, ids[0])]);
    assert_eq!(given(&mut shares), [(job, ids[0])]);
    for n in 0..2 * MAX_IMAGES {
        shares.record_image(n.to_string(), ids[0]);
        assert!(shares.images.len() <= MAX_IMAGES);
    }
}

#[test]
fn inference_job_goes_only_to_serving_node() {
    let mut serves = candidate(&[], 0, 1);
    Arc::make_mut(&mut serves.report).inference = Some(crate::api::nodes::Inference {
        supported: true,
        running: Some(true),
        ..Default::default()
    });
    let mut down = serves.clone();
    down.id = NodeId::new();
    Arc::make_mut(&mut down.report)
        .inference
        .as_mut()
        .unwrap()
        .running = Some(false);
    let mut world = World::default();
    for _ in 0..2 {
        world.add(UserId::new(), &[], 0);
    }
    for job in &mut world.queue {
        job.lane.placement = r#"{"inference":true}"#.into();
    }
    let nodes = vec![candidate(&[], 0, 1), down, serves.clone()];
    let given = assign_queued(
        &world,
        &world.lanes(),
        free_slots(nodes),
        &mut FairShare::default(),
    )
    .unwrap();
    assert_eq!(given, [(world.queue[0].job.id, serves.id)]);
}
