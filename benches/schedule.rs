//! Cost of assigning a slot that became free, by the length of the queue and the number of nodes.
//!
//! A database with [`USERS`] users, nodes without a free slot, and a queue of which a tenth asks
//! for a label that no node has. In each round one job ends, and the scheduler decides (`decide`) and claims
//! (`claim`, a commit). Beside it the cost of a decision without a free slot (`no slot`), and of one with
//! [`LANES`] sets of labels that no node has (`lanes x`).

use crate::figures::Figure;
use cynode::{
    api::{
        JobId, UserId,
        audit::{AuditAction, AuditEvent},
        nodes::{AckStatus, CapabilityReport, ConfigAck},
        tasks::{CreateTask, JobStatus},
        time::Time,
    },
    orchestrator::scheduler::{Availability, SchedulerState, SlotLimits, decide},
    store::{
        AckOutcome, Authority, CreateOutcome, CredentialId, FinishedJob, NewUser, QueueLimits,
        RegisterOutcome, Store,
    },
};
use futures_util::{StreamExt as _, stream};
use std::time::{Duration, Instant};

const USERS: usize = 100;
const SLOTS: usize = 4;
const NODES: [usize; 3] = [10, 100, 1000];
const QUEUED: [usize; 2] = [1_000, 100_000];
const ROUNDS: usize = 300;
/// Concurrent writes, which share commits.
const WRITERS: usize = 256;
const ALL: SlotLimits = SlotLimits {
    per_node: u32::MAX,
    total: u32::MAX,
};
/// Sets of labels that no node has, of all users together.
const LANES: usize = 50_000;
const LIMITS: QueueLimits = QueueLimits {
    all: u64::MAX,
    per_user: u64::MAX,
    bytes: u64::MAX,
    bytes_per_user: u64::MAX,
};

pub fn bench() -> Vec<Figure> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(measure_all())
}

async fn measure_all() -> Vec<Figure> {
    let (mut figures, mut few_nodes) = (Vec::new(), Vec::new());
    for nodes in NODES {
        let stage = Stage::set(nodes).await;
        stage.queue(nodes * SLOTS, |_| None).await;
        let (mut scheduler, mut at_nodes, mut queued) = (SchedulerState::default(), Vec::new(), 0);
        stage.give(&mut scheduler, &mut at_nodes).await;
        let mut decisions = Vec::new();
        for length in QUEUED {
            stage.queue(length - queued, tenth).await;
            queued = length;
            let [decision, claim, full] = stage.measure(&mut scheduler, &mut at_nodes).await;
            for (what, time) in [("decision", decision), ("claim", claim), ("no slot", full)] {
                let name = format!("{what}, {nodes} nodes, {length} queued, in ms");
                figures.push(Figure::plain(name, "ms", time.as_secs_f64() * 1000.0));
            }
            decisions.push(decision.as_secs_f64());
        }
        stage.queue(LANES, |n| Some(format!("nowhere-{n}"))).await;
        let [lanes, ..] = stage.measure(&mut scheduler, &mut at_nodes).await;
        let [short, long] = [decisions[0], decisions[1]];
        let over = |what: &str, by: f64| {
            Figure::lower(format!("decision, {nodes} nodes, {what}"), "×", by)
        };
        figures.push(over("100,000 queued over 1,000", long / short));
        figures.push(over(
            "50,000 sets of labels over few",
            lanes.as_secs_f64() / long,
        ));
        let fewest = *few_nodes.first().unwrap_or(&long);
        if nodes > NODES[0] {
            figures.push(over("over that at 10 nodes", long / fewest).at_most(1.5));
        }
        few_nodes.push(long);
    }
    figures
}

/// Label that no node has, for a tenth of all tasks.
fn tenth(n: usize) -> Option<String> {
    (n % 10 == 9).then(|| "nowhere".to_owned())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A database with users and nodes.
struct Stage {
    store: Store,
    users: Vec<Authority>,
    _home: tempfile::TempDir,
}

impl Stage {
    async fn set(nodes: usize) -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let users = stream::iter(0..USERS).map(|n| add_user(&store, n));
        let users = users.buffer_unordered(WRITERS).collect().await;
        let added = stream::iter(0..nodes).map(|n| add_node(&store, n));
        added.buffer_unordered(WRITERS).collect::<Vec<()>>().await;
        Self {
            store,
            users,
            _home: home,
        }
    }

    /// Queues this many tasks, each with the label of its number, if any.
    async fn queue(&self, count: usize, label: fn(usize) -> Option<String>) {
        let tasks = stream::iter(0..count).map(|n| async move {
            let labels = label(n).map(|label| vec![label]);
            let task = CreateTask {
                command: Some(vec!["true".to_owned()]),
                node_labels: labels,
                ..CreateTask::default()
            };
            let spec = task.resolve("docker.io/library/alpine:latest").unwrap();
            let by = self.users[n / 10 % USERS];
            let created = self
                .store
                .task_create(by, spec, None, LIMITS, None, Time::now());
            assert!(matches!(created.await.unwrap(), CreateOutcome::Created(_)));
        });
        tasks.buffer_unordered(WRITERS).collect::<Vec<()>>().await;
    }

    /// Assigns all free slots; durations of the decision and of the claims.
    async fn give(
        &self,
        scheduler: &mut SchedulerState,
        at_nodes: &mut Vec<JobId>,
    ) -> [Duration; 2] {
        let began = Instant::now();
        let decided = decide(&self.store, scheduler, Vec::new(), Time::now(), ALL, |_| {
            Availability::Ready
        })
        .await
        .unwrap();
        let decided_in = began.elapsed();
        let claims = decided.assigned.into_iter().map(|(job, node)| async move {
            let claimed = self
                .store
                .job_claim(&[(job, node)], Time::now())
                .await
                .pop();
            claimed.unwrap().unwrap().unwrap().id
        });
        let claimed = stream::iter(claims).buffer_unordered(WRITERS);
        at_nodes.extend(claimed.collect::<Vec<_>>().await);
        [decided_in, began.elapsed() - decided_in]
    }

    /// Medians of a decision about one slot, of its claim, and of a decision without a slot.
    async fn measure(
        &self,
        scheduler: &mut SchedulerState,
        at_nodes: &mut Vec<JobId>,
    ) -> [Duration; 3] {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            let job = at_nodes.swap_remove(round * 7919 % at_nodes.len());
            let end = FinishedJob {
                id: job,
                attempt: 1,
                status: JobStatus::Completed,
                result: None,
                outline: None,
                exit_code: Some(0),
                summary: String::new(),
                artifacts: Vec::new(),
            };
            assert!(self.store.job_finish(end, Time::now()).await.unwrap());
            let before = at_nodes.len();
            let [decision, claim] = self.give(scheduler, at_nodes).await;
            assert_eq!(at_nodes.len(), before + 1, "one slot, one claim");
            let [full, _] = self.give(scheduler, at_nodes).await;
            for (times, time) in times.iter_mut().zip([decision, claim, full]) {
                times.push(time);
            }
        }
        times.map(median)
    }
}

fn event(action: AuditAction) -> AuditEvent {
    AuditEvent::new(action, Time::now(), None)
}

async fn add_user(store: &Store, n: usize) -> Authority {
    let user = NewUser {
        handle: format!("user-{n}"),
        password_hash: String::new(),
        email: None,
        is_admin: false,
    };
    let created = store.user_create(user, None, event(AuditAction::UserCreate));
    let user: UserId = created.await.unwrap().unwrap().id;
    let expires = Time::now().plus(Duration::from_hours(1));
    let opened = store.session_open(
        user,
        format!("token {n}"),
        expires,
        None,
        event(AuditAction::Login),
    );
    Authority {
        credential: CredentialId::Session(opened.await.unwrap().unwrap()),
        user,
        admin: false,
    }
}

async fn add_node(store: &Store, n: usize) {
    let report: CapabilityReport = serde_json::from_value(serde_json::json!({
        "version": 1, "reported_at": "2026-01-01T00:00:00Z",
        "node": {"node_slug": format!("box-{n}"), "labels": ["linux", format!("rack={}", n % 20)]},
        "platform": {"os": "linux", "distro": "Debian GNU/Linux 12 (bookworm)", "arch": "amd64"},
        "container_runtime": {"runtime": "podman", "version": "5.0.0"},
        "compute": {"cpu_cores": 8, "ram_mb": 32000, "storage_free_mb": 100_000},
        "gpu": {"present": true, "devices": vec![serde_json::json!({"vendor": "nvidia", "vram_mb": 24000}); 4]},
        "sandbox": {"supported": true, "max_concurrency": SLOTS},
        "worker_api": {"base_url": "http://127.0.0.1:1"},
    }))
    .unwrap();
    let registered = store.node_register(
        report,
        n.to_string(),
        None,
        None,
        u32::MAX,
        event(AuditAction::NodeRegister),
    );
    let RegisterOutcome::Created(id, registration) = registered.await.unwrap() else {
        panic!("the slug is new");
    };
    let content = serde_json::json!({"version": 1, "config_version": ""});
    let content = serde_json::from_value(content).unwrap();
    store
        .node_config_serve(id, registration, content)
        .await
        .unwrap();
    let ack = ConfigAck {
        version: 1,
        node_slug: format!("box-{n}"),
        config_version: "1".to_owned(),
        ack_at: Some(Time::now()),
        status: AckStatus::Applied,
        error: None,
        effective_config_hash: None,
    };
    let acknowledged = store.node_ack(id, registration, 1, ack, Time::now());
    assert!(matches!(
        acknowledged.await.unwrap(),
        AckOutcome::Stored { .. }
    ));
}
