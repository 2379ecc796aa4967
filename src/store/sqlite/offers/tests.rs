//! Lifecycle of a job against a model, under writes in any order, also late ones.

use super::*;
use crate::{
    api::{
        UserId,
        audit::{AuditAction, AuditEvent},
        jobs::MAX_TIMEOUT_SECONDS,
        tasks::JobStatus,
    },
    store::{CancelOutcome, FinishedJob, Lane, LaneCursor, Placement},
};
use proptest::{prelude::*, sample::select};
use std::collections::BTreeMap;

const NODES: usize = 3;
const NOW: Time = Time::from_millis(7);

/// Attempt that a write names.
#[derive(Clone, Copy, Debug)]
enum Aim {
    Current,
    Last,
    Number(u32),
}

#[derive(Clone, Copy, Debug)]
enum Write {
    Claim(usize),
    Offer(Aim, usize),
    Accept(Aim),
    Withdraw(Aim, bool),
    Finish(Aim, JobStatus),
    Requeue(Aim, bool),
    Cancel,
}

/// Expected state of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    status: JobStatus,
    attempt: u32,
    last: u32,
    node: Option<usize>,
    offered: Option<usize>,
    is_canceled: bool,
}

impl Model {
    fn aim(&self, aim: Aim) -> u32 {
        match aim {
            Aim::Current => self.attempt,
            Aim::Last => self.last,
            Aim::Number(n) => n,
        }
    }

    fn runs(&self, attempt: u32) -> bool {
        self.status == JobStatus::Running && self.attempt == attempt
    }

    fn is_offered(&self, attempt: u32) -> bool {
        self.offered.is_some() && self.last == attempt
    }

    /// Applies a write; returns whether it is accepted.
    fn write(&mut self, write: Write, max: u32) -> bool {
        let before = self.clone();
        match write {
            Write::Claim(node) if self.status == JobStatus::Queued => {
                self.last += 1;
                (self.status, self.attempt) = (JobStatus::Running, self.last);
                self.node = Some(node);
            }
            Write::Offer(aim, to)
                if self.runs(self.aim(aim))
                    && !self.is_canceled
                    && self.offered.is_none()
                    && self.node != Some(to)
                    && self.last < max =>
            {
                self.last += 1;
                self.offered = Some(to);
            }
            Write::Accept(aim) if self.is_offered(self.aim(aim)) => {
                (self.attempt, self.node) = (self.last, self.offered.take());
            }
            // Accepted a second time.
            Write::Accept(aim) if self.runs(self.aim(aim)) => {}
            Write::Withdraw(aim, refused) if self.is_offered(self.aim(aim)) => {
                self.offered = None;
                self.last -= u32::from(refused);
            }
            Write::Finish(aim, status) if self.runs(self.aim(aim)) => {
                (self.status, self.offered) = (status, None);
            }
            Write::Requeue(aim, refused)
                if self.runs(self.aim(aim))
                    && !self.is_canceled
                    && (self.last < max || refused && self.attempt == self.last) =>
            {
                let is_free = u32::from(refused && self.attempt == self.last);
                (self.attempt, self.last) = (self.attempt - is_free, self.last - is_free);
                (self.status, self.node, self.offered) = (JobStatus::Queued, None, None);
            }
            Write::Cancel if self.status == JobStatus::Queued => self.status = JobStatus::Canceled,
            Write::Cancel if self.status == JobStatus::Running => self.is_canceled = true,
            _ => return false,
        }
        assert!(!before.has_ended(), "an ended job never changes");
        true
    }

    fn has_ended(&self) -> bool {
        !matches!(self.status, JobStatus::Queued | JobStatus::Running)
    }
}

/// Store with one job and three nodes.
struct World {
    store: Store,
    _home: tempfile::TempDir,
    nodes: Vec<NodeId>,
    task: TaskId,
    job: JobId,
}

impl World {
    async fn new(max: u32) -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let nodes: Vec<_> = (0..NODES).map(|_| NodeId::new()).collect();
        let (user, task, job) = (UserId::new(), TaskId::new(), JobId::new());
        let spec = r#"{"sandbox": {"image": "a", "command": ["x"]}, "node_labels": [], "max_attempts": 3}"#;
        let known = nodes.clone();
        let placement = Placement::default();
        store.lanes.enter(Lane { user, placement });
        let written = store.write(move |c| {
            c.execute("INSERT INTO users VALUES (?1, ?1, NULL, '', 1, 0, 0, 0)", [user])?;
            for node in &known {
                c.execute(
                    "INSERT INTO nodes (id, slug, registered_at, last_seen_at, capability, capability_sha256)
                     VALUES (?1, ?1, 0, 0, '{\"version\": 1, \"node\": {\"node_slug\": \"box\"}}', '')",
                    [node],
                )?;
            }
            c.execute(
                "INSERT INTO tasks (id, user_id, status, spec, created_at, updated_at) VALUES (?1, ?2, 'queued', ?3, 0, 0)",
                params![task, user, spec],
            )?;
            c.execute(
                "INSERT INTO jobs (id, task_id, status, max_attempts, not_before, created_at, user_id)
                 VALUES (?1, ?2, 'queued', ?3, 0, 0, ?4)",
                params![job, task, max, user],
            )?;
            Ok(())
        });
        written.await.unwrap();
        Self {
            store,
            _home: home,
            nodes,
            task,
            job,
        }
    }

    /// Executes a write; returns whether it was accepted, and the attempt that it assigned.
    async fn write(&self, write: Write, model: &Model) -> (bool, Option<(u32, NodeId)>) {
        let (store, job) = (&self.store, self.job);
        let given = |job: Option<RunningJob>| {
            let given = job.map(|job| (job.attempt, job.node_id));
            (given.is_some(), given)
        };
        match write {
            Write::Claim(node) => given(claim(store, job, self.nodes[node]).await),
            Write::Offer(aim, to) => {
                let offer = store.job_offer(job, model.aim(aim), self.nodes[to]);
                given(offer.await.unwrap())
            }
            Write::Accept(aim) => {
                let accept = store.job_accept(job, model.aim(aim), NOW);
                (accept.await.unwrap(), None)
            }
            Write::Withdraw(aim, refused) => {
                let withdraw = store.job_withdraw(job, model.aim(aim), refused);
                (withdraw.await.unwrap(), None)
            }
            Write::Finish(aim, status) => {
                let end = FinishedJob {
                    id: job,
                    attempt: model.aim(aim),
                    status,
                    result: None,
                    artifacts: Vec::new(),
                    outline: None,
                    exit_code: None,
                    summary: String::new(),
                };
                (store.job_finish(end, NOW).await.unwrap(), None)
            }
            Write::Requeue(aim, refused) => {
                let again = store.job_requeue(job, model.aim(aim), refused, NOW, NOW);
                (again.await.unwrap(), None)
            }
            Write::Cancel => {
                let canceled = store
                    .task_cancel(
                        self.task,
                        AuditEvent::new(AuditAction::TaskCancel, NOW, None),
                    )
                    .await
                    .unwrap();
                (!matches!(canceled, CancelOutcome::Ended { .. }), None)
            }
        }
    }

    /// Whether the lane of the job is registered.
    fn has_lane(&self) -> bool {
        let changes = self.store.lane_changes(&mut LaneCursor::default());
        !changes.entered.is_empty()
    }

    /// State of the job, read as by a restart, as by the reconciler, and from the row.
    async fn read(&self) -> Model {
        let job = self.job;
        let at =
            |id: Option<NodeId>| id.and_then(|id| self.nodes.iter().position(|node| *node == id));
        let row = self.store.read(move |c| {
            let sql = "SELECT status, cancel_requested, last_attempt FROM jobs WHERE id = ?1";
            Ok(c.query_row(sql, [job], |row| {
                Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
            })?)
        });
        let (status, is_canceled, last): (String, bool, u32) = row.await.unwrap();
        let standing = self.store.job_ownership(vec![job]).await.unwrap()[&job];
        let running = self.store.job_running().await.unwrap();
        assert_eq!(
            running.len(),
            usize::from(standing.is_running),
            "a running job is listed once"
        );
        for job in running {
            assert_eq!((job.attempt, Some(job.node_id)), standing.current);
            let offered = job
                .offered_attempt()
                .map(|next| (next.attempt, next.node_id));
            assert_eq!(offered, standing.offered);
        }
        Model {
            status: serde_json::from_value(status.into()).unwrap(),
            attempt: standing.current.0,
            last,
            node: at(standing.current.1),
            offered: at(standing.offered.map(|(_, node)| node)),
            is_canceled,
        }
    }
}

fn write() -> impl Strategy<Value = Write> {
    let aim = || {
        prop_oneof![
            4 => Just(Aim::Current),
            4 => Just(Aim::Last),
            1 => (0..5_u32).prop_map(Aim::Number),
        ]
    };
    const ENDS: [JobStatus; 3] = [JobStatus::Completed, JobStatus::Failed, JobStatus::Lost];
    prop_oneof![
        4 => (0..NODES).prop_map(Write::Claim),
        6 => (aim(), 0..NODES).prop_map(|(aim, to)| Write::Offer(aim, to)),
        3 => aim().prop_map(Write::Accept),
        3 => (aim(), any::<bool>()).prop_map(|(aim, refused)| Write::Withdraw(aim, refused)),
        1 => (aim(), select(&ENDS[..])).prop_map(|(aim, status)| Write::Finish(aim, status)),
        2 => (aim(), any::<bool>()).prop_map(|(aim, refused)| Write::Requeue(aim, refused)),
        1 => Just(Write::Cancel),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn one_attempt_counts_and_numbers_are_unique(
        writes in proptest::collection::vec(write(), 1..40),
        max in 1..6_u32,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new(max).await;
            let mut model = world.read().await;
            // Numbers that a node may know, and their nodes.
            let mut known = BTreeMap::new();
            for write in writes {
                let (was, expected) = (model.clone(), model.write(write, max));
                let (is_accepted, given) = world.write(write, &was).await;
                prop_assert_eq!(is_accepted, expected, "{:?} of {:?}", write, was);
                prop_assert_eq!(&world.read().await, &model, "{:?} of {:?}", write, was);
                match write {
                    Write::Withdraw(_, true) | Write::Requeue(_, true) if is_accepted => {
                        known.retain(|number, _| *number <= model.last);
                    }
                    _ => {}
                }
                prop_assert!(model.last <= max);
                world.store.assert_cache_is_current().await;
                let is_queued = model.status == JobStatus::Queued;
                prop_assert!(world.has_lane() || !is_queued, "the lane is registered while the job is queued");
                world.store.lane_sweep().await.unwrap();
                prop_assert_eq!(world.has_lane(), is_queued, "a sweep removes it afterwards");
                if let Some((number, node)) = given {
                    prop_assert!(known.insert(number, node).is_none(), "{} was given before", number);
                }
            }
            Ok(())
        })?;
    }
}

/// Claims one job.
async fn claim(store: &Store, job: JobId, node: NodeId) -> Option<RunningJob> {
    let claimed = store.job_claim(&[(job, node)], NOW).await;
    claimed.into_iter().next().unwrap().unwrap()
}

/// A sandbox takes up to 1 MiB, and many jobs run for hours.
#[tokio::test]
async fn running_job_does_not_hold_its_sandbox() {
    let world = World::new(3).await;
    let claimed = claim(&world.store, world.job, world.nodes[0]).await;
    let claimed = claimed.unwrap();
    let running = world.store.job_running().await.unwrap();
    let held = format!("{claimed:?} {running:?}");
    assert!(!held.contains("command"), "{held}");
    let sandbox = world.store.task_sandbox(world.task).await.unwrap();
    assert_eq!(sandbox.command, ["x"]);
}

/// A node lowers a timeout, so users may ask for any. SQLite reads those from 2^63 on as floating-point numbers.
#[tokio::test]
async fn jobs_run_with_any_timeout() {
    let asked = [
        ("null", None),
        ("1", Some(1)),
        ("2592001", Some(MAX_TIMEOUT_SECONDS)),
        ("9223372036854775807", Some(MAX_TIMEOUT_SECONDS)),
        ("9223372036854775808", Some(MAX_TIMEOUT_SECONDS)),
        ("18446744073709551615", Some(MAX_TIMEOUT_SECONDS)),
    ];
    for (asked, expected) in asked {
        let world = World::new(3).await;
        let task = world.task;
        let set = world.store.write(move |c| {
            let sql = "UPDATE tasks SET spec = json_set(spec, '$.sandbox.timeout_seconds', json(?2)) WHERE id = ?1";
            Ok(c.execute(sql, params![task, asked])?)
        });
        assert_eq!(set.await.unwrap(), 1);
        let claimed = claim(&world.store, world.job, world.nodes[0]).await;
        let claimed = claimed.unwrap();
        let offered = world.store.job_offer(world.job, 1, world.nodes[1]);
        let offered = offered.await.unwrap().unwrap();
        let running = world.store.job_running().await.unwrap();
        let timeouts = [&claimed, &offered, &running[0]].map(|job| job.timeout_seconds);
        assert_eq!(timeouts, [expected; 3], "{asked}");
        let sandbox = world.store.task_sandbox(task).await.unwrap();
        assert_eq!(sandbox.timeout_seconds, asked.parse().ok());
    }
}

/// A node or a release may know more fields than this one.
#[tokio::test]
async fn stored_result_is_shown_as_it_is() {
    let world = World::new(3).await;
    let (job, task) = (world.job, world.task);
    let stored = format!(
        r#"{{"later": 1, "version": 1, "task_id": "{task}", "job_id": "{job}", "attempt": 1, "status": "completed",
            "exit_code": 0, "stdout": "x", "stderr": "", "started_at": "2026-01-01T00:00:00Z",
            "ended_at": "2026-01-01T00:00:00Z", "truncated": {{"stdout": false, "stderr": false}}}}"#
    );
    let result = stored.clone();
    let set = world.store.write(move |c| {
        let sql = "UPDATE jobs SET result = ?2 WHERE id = ?1";
        Ok(c.execute(sql, params![job, result])?)
    });
    assert_eq!(set.await.unwrap(), 1);
    let shown = world.store.task_jobs(task).await.unwrap().remove(0);
    assert_eq!(shown.result, Some(stored));
    assert_eq!(shown.result_object.unwrap().stdout, "x");
}
