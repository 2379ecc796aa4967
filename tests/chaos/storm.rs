//! Two hundred jobs on three nodes, with random faults in all processes and in the network.
//!
//! The faults follow from the seed, which is printed; their victims depend on the timing. Tasks are created while
//! faults are injected, so that some jobs are always running.

use crate::{
    conversations::{self, Record, converse},
    jobs::Plan,
    network::Cut,
    random::Random,
    test_bed::{TestBed, end, ms},
};
use rustix::process::geteuid;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const JOBS: u64 = 200;
/// Tasks created before the first fault.
const AT_FIRST: u64 = 28;
const NODES: u8 = 3;
/// Conversations beside the jobs.
const CONVERSATIONS: u64 = 2;
/// Time limit for all jobs, from the start: a guard against a job that never ends, far above the time that they take.
const LIMIT: Duration = Duration::from_secs(400);
/// Time limit for the clean-up after that.
const CLEAN_LIMIT: Duration = Duration::from_secs(60);

/// Fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Orchestrator,
    Node,
    Shim,
    Podman,
    Cut(Cut),
    /// The node accepts connections and does not answer.
    Stall,
}

/// Number of faults of each kind: thirty kills, ten cuts.
const FAULTS: [(Fault, usize); 9] = [
    (Fault::Orchestrator, 6),
    (Fault::Node, 8),
    (Fault::Shim, 8),
    (Fault::Podman, 8),
    (Fault::Cut(Cut::Silent), 4),
    (Fault::Cut(Cut::ToNode), 2),
    (Fault::Cut(Cut::FromNode), 2),
    (Fault::Cut(Cut::Unplugged), 2),
    (Fault::Stall, 3),
];

/// Repair that ends a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    StartOrchestrator,
    StartNode(usize),
    Heal(usize),
    GoOn(usize),
}

/// Open faults, and the time of each one's repair.
struct Storm<'a> {
    bed: &'a mut TestBed,
    random: Random,
    repairs: Vec<(Instant, Repair)>,
}

impl Storm<'_> {
    /// Repairs all faults whose time is over.
    fn repair_due(&mut self, all: bool) {
        let now = Instant::now();
        let (due, later) = self
            .repairs
            .drain(..)
            .partition(|(at, _)| all || *at <= now);
        self.repairs = later;
        let due: Vec<(Instant, Repair)> = due;
        for (_, repair) in due {
            match repair {
                Repair::StartOrchestrator => self.bed.restart_orchestrator(),
                Repair::StartNode(site) => self.bed.restart_node(site),
                Repair::Heal(site) => self.bed.sites[site].segment.heal(),
                Repair::GoOn(site) => self.bed.sites[site].unblock(),
            }
        }
    }

    fn sites_without(&self, repairs: impl Fn(usize) -> Vec<Repair>) -> Vec<usize> {
        let free = |site: &usize| {
            let theirs = repairs(*site);
            !self
                .repairs
                .iter()
                .any(|(_, repair)| theirs.contains(repair))
        };
        (0..self.bed.sites.len()).filter(free).collect()
    }

    /// Injects a fault; returns false where it has no victim now.
    fn inject_fault(&mut self, fault: Fault) -> bool {
        let repair = match fault {
            Fault::Orchestrator => {
                if self
                    .repairs
                    .iter()
                    .any(|(_, m)| *m == Repair::StartOrchestrator)
                {
                    return false;
                }
                self.bed.kill_orchestrator();
                Repair::StartOrchestrator
            }
            Fault::Node | Fault::Stall => {
                let up =
                    self.sites_without(|site| vec![Repair::StartNode(site), Repair::GoOn(site)]);
                let Some(&site) = self.random.pick(&up) else {
                    return false;
                };
                let site_of = &mut self.bed.sites[site];
                site_of.node.process.assert_runs();
                if fault == Fault::Stall {
                    site_of.stall();
                    Repair::GoOn(site)
                } else {
                    site_of.node.process.kill();
                    Repair::StartNode(site)
                }
            }
            Fault::Shim | Fault::Podman => {
                let sites = &self.bed.sites;
                let found: Vec<i32> = match fault {
                    Fault::Shim => sites.iter().flat_map(|site| site.node.shims()).collect(),
                    _ => sites
                        .iter()
                        .flat_map(crate::test_bed::Site::podmans)
                        .collect(),
                };
                let victim = self.random.pick(&found).copied();
                return victim.map(end).is_some();
            }
            Fault::Cut(cut) => {
                let whole = self.sites_without(|site| vec![Repair::Heal(site)]);
                let Some(&site) = self.random.pick(&whole) else {
                    return false;
                };
                self.bed.sites[site].segment.cut(cut);
                Repair::Heal(site)
            }
        };
        let long = matches!(fault, Fault::Cut(Cut::Silent)) && self.random.of(0..2) == 0;
        let time = match fault {
            // Longer than the detection of the silence and a lease.
            Fault::Cut(_) if long => self.random.of(24_000..30_000),
            Fault::Cut(_) | Fault::Stall => self.random.of(1_000..6_000),
            _ => self.random.of(0..2_500),
        };
        self.repairs.push((Instant::now() + ms(time), repair));
        true
    }

    /// Injects all faults, one after the other; calls `done` after each.
    fn inject_all(&mut self, faults: &[Fault], done: impl Fn(usize)) {
        for (n, fault) in faults.iter().enumerate() {
            let next = Instant::now() + ms(self.random.of(200..3_000));
            while Instant::now() < next {
                self.repair_due(false);
                thread::sleep(ms(20));
            }
            let given_up = Instant::now() + Duration::from_secs(30);
            while !self.inject_fault(*fault) {
                assert!(Instant::now() < given_up, "{fault:?} has no victim");
                self.repair_due(false);
                thread::sleep(ms(5));
            }
            eprintln!("fault {n}: {fault:?}");
            done(n + 1);
        }
        self.repair_due(true);
    }
}

fn plans(random: &mut Random) -> Vec<Plan> {
    let plan = |number| Plan {
        number,
        lines: random.of(3..13),
        pause_ms: random.of(50..400),
        flood: if number % 5 == 0 { 10_000 } else { 0 },
        code: if number % 3 == 0 {
            (number % 7) as i64
        } else {
            0
        },
        max_attempts: if number % 4 == 0 { 1 } else { 10 },
        waits: false,
    };
    (1..=JOBS).map(plan).collect()
}

/// Status of all tasks by id; `None` while the orchestrator does not answer.
fn statuses(bed: &TestBed) -> Option<BTreeMap<String, String>> {
    let reply = bed.user.try_call("GET", "/v1/tasks?limit=200", &[], b"");
    let tasks = reply.ok().filter(|reply| reply.status == 200)?.json(200);
    assert_eq!(tasks["next_cursor"], "", "no task was created twice");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let tasks = tasks["tasks"].as_array().unwrap().iter();
    Some(
        tasks
            .map(|task| (text(&task["id"]), text(&task["status"])))
            .collect(),
    )
}

fn is_open(status: &str) -> bool {
    ["queued", "running"].contains(&status)
}

fn wait_for_ends(bed: &TestBed, start: Instant) -> Vec<String> {
    loop {
        let all = statuses(bed).unwrap_or_default();
        let open: Vec<_> = all.iter().filter(|(_, status)| is_open(status)).collect();
        if all.len() as u64 == JOBS && open.is_empty() {
            return Vec::new();
        }
        if start.elapsed() > LIMIT {
            let open = open.iter();
            return open
                .map(|(id, status)| {
                    format!("task {id} is {status}: {}", describe(bed, &bed.result(id)))
                })
                .collect();
        }
        thread::sleep(ms(200));
    }
}

/// Record of a job, and the log lines about it.
fn describe(bed: &TestBed, result: &Value) -> String {
    let job = result["jobs"][0]["id"].as_str().unwrap_or_default();
    let starts = bed.witness.starts(job);
    let starts: String = starts.iter().map(|start| format!("  {start}\n")).collect();
    format!("{result}\n{starts}{}", bed.log_lines_about(job))
}

fn wait_clean(bed: &TestBed) -> Vec<String> {
    let start = Instant::now();
    loop {
        let left = bed.left();
        if left.is_empty() || start.elapsed() > CLEAN_LIMIT {
            return left;
        }
        thread::sleep(ms(200));
    }
}

/// Errors in the records of the tasks that ended; `wait_for_ends` reports the others.
fn check(bed: &TestBed, tasks: &[(Plan, String)]) -> (Vec<String>, BTreeMap<String, usize>) {
    let (mut wrong, mut ends) = (Vec::new(), BTreeMap::new());
    for (plan, task) in tasks {
        let result = bed.result(task);
        let job = &result["jobs"][0];
        if is_open(result["status"].as_str().unwrap()) {
            continue;
        }
        let end = format!("{} in attempt {}", job["status"], job["attempt"]);
        *ends.entry(end).or_default() += 1;
        let checked = plan.check(&result, &bed.witness);
        if let Err(error) = checked.and_then(|()| plan.check_artifacts(&bed.user, &result)) {
            let job = job["id"].as_str().unwrap_or_default();
            wrong.push(format!("{error}{}", bed.log_lines_about(job)));
        }
        let logs = bed.user.get(&format!("/v1/tasks/{task}/logs")).json(200);
        let printed = &job["result_object"]["stdout"];
        if !printed.is_null() && logs["stdout"] != *printed {
            wrong.push(format!("/logs and /result of {task} differ: {logs}"));
        }
    }
    (wrong, ends)
}

/// Injects all faults while jobs are created and conversations go on. Returns the tasks, and the records of the execs.
fn rage(
    bed: &mut TestBed,
    plans: Vec<Plan>,
    faults: &[Fault],
    random: Random,
) -> (Vec<(Plan, String)>, Vec<Record>) {
    let (allowed, tasks) = (AtomicU64::new(AT_FIRST), Mutex::new(Vec::new()));
    let (is_over, records) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (asking, user) = (bed.task_client(), bed.user.clone());
    thread::scope(|scope| {
        scope.spawn(|| {
            for plan in plans {
                while plan.number > allowed.load(Ordering::SeqCst) {
                    thread::sleep(ms(20));
                }
                let task = asking.submit(&plan);
                tasks.lock().unwrap().push((plan, task));
            }
        });
        for number in 1..=CONVERSATIONS {
            let (user, is_over, records) = (&user, &is_over, &records);
            scope.spawn(move || {
                let theirs = converse(user, number, is_over);
                records.lock().unwrap().extend(theirs);
            });
        }
        let mut storm = Storm {
            bed,
            random,
            repairs: Vec::new(),
        };
        let share = |done: usize| AT_FIRST + (JOBS - AT_FIRST) * done as u64 / faults.len() as u64;
        // Otherwise the client would wait forever for faults that failed.
        let raged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            storm.inject_all(faults, |done| allowed.store(share(done), Ordering::SeqCst));
        }));
        allowed.store(JOBS, Ordering::SeqCst);
        is_over.store(true, Ordering::SeqCst);
        if let Err(panic) = raged {
            std::panic::resume_unwind(panic);
        }
    });
    (tasks.into_inner().unwrap(), records.into_inner().unwrap())
}

#[test]
#[ignore = "takes minutes, root, and network namespaces: make test-chaos"]
fn two_hundred_jobs_survive_fault_storm() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can create network namespaces");
        return;
    }
    let seed = Random::seed();
    eprintln!("CHAOS_SEED={seed}");
    let start = Instant::now();
    let mut random = Random::new(seed);
    let plans = plans(&mut random);
    let mut faults: Vec<Fault> = FAULTS
        .iter()
        .flat_map(|(fault, n)| std::iter::repeat_n(*fault, *n))
        .collect();
    random.shuffle(&mut faults);
    let mut bed = TestBed::start(0, NODES);
    let (tasks, records) = rage(&mut bed, plans, &faults, random);
    let raged = start.elapsed().as_secs();
    let mut wrong = wait_for_ends(&bed, start);
    let ended = start.elapsed().as_secs();
    let (false_records, ends) = check(&bed, &tasks);
    wrong.extend(false_records);
    let (false_execs, execs) = conversations::check(&records, &bed.witness);
    wrong.extend(false_execs);
    let left = wait_clean(&bed);
    wrong.extend(left.iter().map(|what| bed.describe_leftover(what)));
    eprintln!(
        "{JOBS} jobs, {FAULTS:?}, {} sandboxes started, ends {ends:?}, {execs:?} execs exited of all; storm over after {raged} s, all ended after {ended} s, in all {} s; CHAOS_SEED={seed}",
        bed.witness.count(),
        start.elapsed().as_secs()
    );
    assert!(
        wrong.is_empty(),
        "CHAOS_SEED={seed}: {} faults of the product\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
