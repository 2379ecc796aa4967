//! Each fault at each step of a job.
//!
//! | step | state | how it is seen | how it is held |
//! |---|---|---|---|
//! | 1 | the task is stored | its status is `queued` | the node is drained |
//! | 2 | an attempt is claimed | its status is `running` | packets to the node are lost |
//! | 3 | it is sent to the node | unread bytes at its port | the node's process is stopped |
//! | 4 | the node has it on disk (`job.json`) | podman is asked for the image | that podman is held |
//! | 5 | its shim runs | podman is started | that podman is held |
//! | 6 | podman creates the container | the runtime is called to create it | that runtime is held |
//! | 7 | podman has created it | the runtime is called to start it | that runtime is held |
//! | 8 | the command runs | its own record | it waits for a file |
//! | 9 | its end is on disk (`result.json`) | that file | the node's process is stopped, the runtime held before it deletes the container |
//! | 10 | its result is stored | the task has ended, its directory is there | a client reads its log and stops |
//! | 11 | the node has removed it | its directory is gone | not held: the fault follows at once |
//!
//! At each step every process with a part in it is killed in turn, and the network is cut for a short time. A podman
//! that dies at step 7 may have called the runtime or not, and a node that dies before step 4 may have read
//! the request or not: there either attempt is right. Then all is released and restarted. The job must end with a
//! correct record ([`crate::jobs`]), in the same attempt unless its command was lost, and leave nothing.

use crate::{
    jobs::Plan,
    network::{Cut, has_unread},
    support::{DEADLINE, eventually},
    test_bed::{TestBed, WORKER_PORT, end, ms},
    witness::Point,
};
use rustix::process::geteuid;
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

/// Process that is killed, or the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Orchestrator,
    Node,
    Shim,
    /// Node and shim at the same time, as by the OOM killer.
    Both,
    Podman,
    Network,
}
use Victim::{Both, Network, Node, Orchestrator, Podman, Shim};

/// Victim, and the attempt in which the job then ends; 0 where it may be the first or the second.
type Faults = &'static [(Victim, u64)];

const WATCHERS: Faults = &[(Orchestrator, 1), (Node, 1), (Network, 1)];
const ON_ITS_WAY: Faults = &[(Orchestrator, 0), (Node, 0), (Network, 1)];
const ACCEPTED: Faults = &[(Orchestrator, 1), (Node, 1), (Podman, 2), (Network, 1)];

/// All victims; the attempts differ for the shim, both, and podman.
const fn all(shim: u64, both: u64, podman: u64) -> [(Victim, u64); 6] {
    [
        (Orchestrator, 1),
        (Node, 1),
        (Shim, shim),
        (Both, both),
        (Podman, podman),
        (Network, 1),
    ]
}

/// Faults at each step.
const WALK: [(usize, Faults); 11] = [
    (1, WATCHERS),
    (2, ON_ITS_WAY),
    (3, ON_ITS_WAY),
    (4, ACCEPTED),
    (5, &all(1, 1, 2)),
    (6, &all(1, 1, 2)),
    (7, &all(1, 1, 0)),
    (8, &all(2, 2, 1)),
    (9, &all(1, 1, 1)),
    (10, WATCHERS),
    (11, WATCHERS),
];

/// Time limit for all faults, far above the time that they take. A fault that is not tried by then fails the test.
const LIMIT: Duration = Duration::from_secs(400);

/// One job, on a test bed of one node.
struct Walk<'a> {
    bed: &'a mut TestBed,
    plan: Plan,
    task: String,
    /// Client that reads the log and stops.
    reader: Option<TcpStream>,
    held: i32,
}

impl Walk<'_> {
    fn status(&self) -> String {
        let path = format!("/v1/tasks/{}", self.task);
        let task = self.bed.user.get(&path).json(200);
        task["status"].as_str().unwrap().to_owned()
    }

    fn wait_for_status(&self, wanted: &str) {
        eventually(&format!("the task is {wanted}"), || {
            (self.status() == wanted).then_some(())
        });
    }

    fn job(&self) -> String {
        let result = self.bed.result(&self.task);
        result["jobs"][0]["id"].as_str().unwrap().to_owned()
    }

    /// Waits until the command runs.
    fn wait_for_command(&self) {
        let job = self.job();
        eventually("the command runs", || {
            let starts = self.bed.witness.starts(&job);
            starts
                .iter()
                .any(|start| !start.started.is_empty())
                .then_some(())
        });
    }

    /// Lets every command of the job end, also one that starts later.
    fn release_command(&self) {
        self.bed.witness.release_command(&self.job());
    }

    /// Brings the job to a step and holds it there.
    fn reach_step(&mut self, step: usize) {
        let act = |what: &str| {
            let reply = self.bed.user.act(&format!("/v1/nodes/n0/{what}"));
            reply.expect(204);
        };
        let site = &self.bed.sites[0];
        let witness = &self.bed.witness;
        match step {
            1 => act("drain"),
            2 => site.segment.cut(Cut::Silent),
            3 => site.stall(),
            4 => {
                // A new node asks podman for the image of its first job.
                self.bed.sites[0].node.process.kill();
                self.bed.restart_node(0);
                self.bed.wait_for_nodes_listening();
                self.bed.witness.hold(Point::Image);
            }
            5 => witness.hold(Point::Run),
            6 => witness.hold(Point::Create),
            7 => witness.hold(Point::Start),
            9 => witness.hold(Point::Delete),
            _ => {}
        }
        self.task = self.bed.submit(&self.plan);
        let witness = &self.bed.witness;
        match step {
            1 => self.wait_for_status("queued"),
            2 => self.wait_for_status("running"),
            3 => {
                let pid = self.bed.sites[0].node.process.pid();
                eventually("the request is at the node's port", || {
                    has_unread(pid, WORKER_PORT).then_some(())
                });
            }
            4 => self.held = witness.wait_held(Point::Image),
            5 => self.held = witness.wait_held(Point::Run),
            6 => {
                witness.wait_held(Point::Create);
            }
            7 => {
                witness.wait_held(Point::Start);
            }
            8 => self.wait_for_command(),
            9 => self.reach_end(),
            10 => self.reach_record(),
            _ => {
                self.wait_for_command();
                self.release_command();
                eventually("the node has removed the job", || {
                    let gone = self.bed.sites[0].node.spools().is_empty();
                    gone.then_some(())
                });
            }
        }
    }

    /// The end is on disk, and the node is stopped.
    fn reach_end(&self) {
        self.wait_for_command();
        let site = &self.bed.sites[0];
        site.stall();
        self.release_command();
        eventually("its end is on disk", || {
            let spools = site.node.spools();
            spools[0].join("result.json").exists().then_some(())
        });
        self.bed.witness.wait_held(Point::Delete);
    }

    /// The result is stored, and the node keeps it for a reader.
    fn reach_record(&mut self) {
        self.wait_for_command();
        let user = &self.bed.user;
        let mut reader = TcpStream::connect(user.address()).unwrap();
        let (task, token) = (&self.task, user.token());
        write!(
            reader,
            "GET /v1/tasks/{task}/logs?follow=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        .unwrap();
        reader.read_exact(&mut [0]).unwrap();
        self.reader = Some(reader);
        self.release_command();
        eventually("it has ended", || {
            (!["queued", "running"].contains(&self.status().as_str())).then_some(())
        });
        let kept = self.bed.sites[0].node.spools();
        assert_eq!(kept.len(), 1, "the node keeps it for the reader");
    }

    fn inject_fault(&mut self, step: usize, victim: Victim) {
        let site = &mut self.bed.sites[0];
        match victim {
            Orchestrator => {
                self.bed.kill_orchestrator();
                self.bed.restart_orchestrator();
            }
            Node => {
                site.node.process.kill();
                self.bed.restart_node(0);
            }
            Shim | Both => {
                if victim == Both {
                    site.node.process.kill();
                }
                let shims = site.node.shims();
                assert_eq!(shims.len(), 1, "a shim for the job");
                end(shims[0]);
                if victim == Both {
                    self.bed.restart_node(0);
                }
                if victim == Both && step == 5 {
                    // The podman of the first shim and that of the next run at the same time.
                    let first = self.held;
                    eventually("another podman is held", || {
                        (self.bed.witness.wait_held(Point::Run) != first).then_some(())
                    });
                }
            }
            // The wrapper is held, before it executes podman.
            Podman if [4, 5].contains(&step) => end(self.held),
            Podman => {
                let clients = site.podmans();
                assert_eq!(clients.len(), 1, "a podman for the job");
                end(clients[0]);
            }
            Network => {
                site.segment.cut(Cut::Silent);
                thread::sleep(ms(1_500));
                site.segment.heal();
            }
        }
    }

    /// Releases all that is held.
    fn unblock(&mut self, step: usize, victim: Victim) {
        self.reader = None;
        self.bed.witness.release();
        let site = &self.bed.sites[0];
        site.segment.heal();
        site.unblock();
        if [Node, Both].contains(&victim) {
            self.bed.wait_for_nodes_listening();
        }
        if step == 1 {
            let resume = || {
                let user = &self.bed.user;
                user.try_call("POST", "/v1/nodes/n0/resume", &[], b"").ok()
            };
            eventually("the node is resumed", || {
                resume().filter(|reply| reply.status == 204)
            });
        }
    }

    /// Waits for the end; returns the record.
    fn end(&self) -> Value {
        let start = Instant::now();
        loop {
            // A second attempt waits for its release, too.
            self.release_command();
            let result = self.bed.result(&self.task);
            if !["queued", "running"].contains(&result["status"].as_str().unwrap()) {
                return result;
            }
            assert!(start.elapsed() < DEADLINE, "it does not end: {result}");
            thread::sleep(ms(50));
        }
    }
}

/// Injects one fault at a step, and checks the job.
fn fault(bed: &mut TestBed, step: usize, victim: Victim, attempt: u64) -> Result<(), String> {
    let plan = Plan {
        number: step as u64,
        lines: 3,
        pause_ms: 1,
        flood: if step == 10 { 3_000_000 } else { 0 },
        code: 5,
        max_attempts: 10,
        waits: true,
    };
    let mut walker = Walk {
        bed,
        plan,
        task: String::new(),
        reader: None,
        held: 0,
    };
    walker.reach_step(step);
    walker.inject_fault(step, victim);
    walker.unblock(step, victim);
    let result = walker.end();
    let Walk { bed, plan, .. } = walker;
    plan.check(&result, &bed.witness)?;
    plan.check_artifacts(&bed.user, &result)?;
    let made = result["jobs"][0]["attempt"].as_u64().unwrap();
    if made != attempt && !(attempt == 0 && made <= 2) {
        return Err(format!(
            "it ended in attempt {made} and not {attempt}: {result}"
        ));
    }
    let start = Instant::now();
    loop {
        let left = bed.left();
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > ms(30_000) {
            let described = left.iter().map(|what| bed.describe_leftover(what));
            return Err(described.collect::<Vec<_>>().join("\n"));
        }
        thread::sleep(ms(50));
    }
}

#[test]
#[ignore = "takes minutes, root, and network namespaces: make test-chaos"]
fn job_survives_kill_of_any_process_anytime() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can create network namespaces");
        return;
    }
    let (start, mut wrong, mut tried) = (Instant::now(), Vec::new(), 0);
    let mut bed = TestBed::start(10, 1);
    for (step, victims) in WALK {
        // Podman starts a container and has ended when its command runs.
        let has_part = |victim| victim != Podman || step < 8;
        for (victim, attempt) in victims.iter().filter(|(victim, _)| has_part(*victim)) {
            let from = Instant::now();
            if start.elapsed() > LIMIT {
                wrong.push(format!(
                    "step {step}, {victim:?}: not tried, it took too long"
                ));
                continue;
            }
            // A failure at one step must not hide the others.
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                fault(&mut bed, step, *victim, *attempt)
            }));
            tried += 1;
            let outcome = outcome.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                Err(text.unwrap_or_default())
            });
            let took = from.elapsed().as_millis();
            let is_well = outcome.is_ok();
            eprintln!(
                "step {step}, {victim:?}: {} ({took} ms)",
                if is_well { "well" } else { "WRONG" }
            );
            if let Err(error) = outcome {
                wrong.push(format!("step {step}, {victim:?}: {error}"));
                bed.reset();
            }
        }
    }
    eprintln!(
        "{tried} faults at {} steps in {} s",
        WALK.len(),
        start.elapsed().as_secs()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
