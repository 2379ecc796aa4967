//! Nodes that ask for too much of the orchestrator: slots, file descriptors, rows.

use crate::support::{
    Answer, Api, Call, Orchestrator, StandIn,
    cluster::{PSK, finish},
    eventually,
    stand_in::capability,
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Slots that the node reports.
const CLAIMED: u32 = 100_000;

/// A node that reports [`CLAIMED`] slots, and ends no job before the test asks it to.
struct Greedy {
    node: StandIn,
    may_end: Arc<AtomicBool>,
}

impl Greedy {
    fn join(orchestrator: &Orchestrator) -> Self {
        let may_end = Arc::<AtomicBool>::default();
        let ends = Arc::clone(&may_end);
        let mut node = StandIn::start(orchestrator, "greedy", move |call, answer| {
            run(&ends, call, answer);
        });
        node.join();
        let greedy = Self { node, may_end };
        greedy.claim();
        greedy
    }

    fn claim(&self) {
        let mut report = capability(&self.node.slug, &self.node.url);
        report["sandbox"]["max_concurrency"] = CLAIMED.into();
        self.node.report(&report).expect(204);
    }

    fn runs(&self) -> usize {
        self.node
            .calls()
            .iter()
            .filter(|call| call.is_run())
            .count()
    }

    fn end_jobs(&self) {
        self.may_end.store(true, Ordering::SeqCst);
    }
}

fn run(ends: &AtomicBool, call: &Call, answer: Answer) {
    if !call.is_run() {
        return answer.status(204, &Value::Null);
    }
    let mut events = answer.stream();
    events.send(&json!({"event": "started", "attempt": 1, "seq": 1}));
    eventually("the job may end", || {
        ends.load(Ordering::SeqCst).then_some(())
    });
    events.end(2, &call.result("done\n"));
}

fn create(user: &Api, count: usize) -> Vec<String> {
    let create = |_| {
        let task = user.post("/v1/tasks", &json!({"command": ["true"]}));
        task.json(201)["id"].as_str().unwrap().to_owned()
    };
    (0..count).map(create).collect()
}

/// Waits until the last of these tasks waits for a reason like this, and returns the reason.
fn waits(user: &Api, ids: &[String], like: &str) -> String {
    eventually(&format!("a task waits: {like}"), || {
        let task = user.get(&format!("/v1/tasks/{}", ids.last()?)).json(200);
        let reason = task["waiting_for"].as_str()?;
        reason.contains(like).then(|| reason.to_owned())
    })
}

#[test]
fn slots_beyond_limit_are_not_used() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--max-jobs-per-node", "3"]);
    let (user, greedy) = (orchestrator.login(), Greedy::join(&orchestrator));
    greedy.claim();
    let ids = create(&user, 5);
    waits(&user, &ids, "all slots are in use");
    eventually("three jobs run", || (greedy.runs() == 3).then_some(()));
    let shown = user.get("/v1/nodes/greedy").json(200);
    assert_eq!(
        (&shown["max_concurrency"], &shown["running_jobs"]),
        (&json!(3), &json!(3))
    );
    let reason = shown["reason"].as_str().unwrap();
    assert!(
        reason.contains("100000") && reason.contains("--max-jobs-per-node"),
        "{reason}"
    );
    assert_eq!(shown["status"], "ready");
    let log = orchestrator.process.stderr();
    assert_eq!(log.matches("node offers more slots").count(), 1, "{log}");
    greedy.end_jobs();
    for id in ids {
        assert_eq!(finish(&user, &id)["status"], "completed");
    }
}

#[test]
fn running_jobs_leave_descriptors_for_requests() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--max-jobs-per-node", "100000", "--user-rate", "0"];
    // Fewer descriptors than the jobs of this test need.
    let orchestrator = Orchestrator::start_with_files(home.path(), 320, &flags);
    let (user, greedy) = (orchestrator.login(), Greedy::join(&orchestrator));
    let ids = create(&user, 360);
    let reason = waits(&user, &ids, "open files");
    let running = reason.split(' ').next().unwrap().parse::<usize>().unwrap();
    eventually("the allowed number of jobs runs", || {
        (greedy.runs() == running).then_some(())
    });
    assert!((10..100).contains(&running), "{reason}");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", orchestrator.process.pid()));
    assert!(
        descriptors.unwrap().count() < 200,
        "descriptors are left for other purposes"
    );
    orchestrator.login().get("/v1/users/me").expect(200);
    greedy.claim();
    greedy.end_jobs();
    for id in ids {
        assert_eq!(finish(&user, &id)["status"], "completed");
    }
}

fn register(orchestrator: &Orchestrator, slug: &str) -> crate::support::Reply {
    let body = json!({"psk": PSK, "capability": capability(slug, "http://127.0.0.1:1")});
    orchestrator.control.post("/v1/nodes/register", &body)
}

#[test]
fn new_slug_flood_spares_known_nodes() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    // A rack of machines that start together.
    for n in 0..40 {
        register(&orchestrator, &format!("rack-{n}")).expect(201);
    }
    let refused = (0..2000)
        .map(|n| register(&orchestrator, &format!("flood-{n}")))
        .find(|reply| reply.status != 201)
        .unwrap();
    let detail = refused.problem(429, "too-many-requests")["detail"].clone();
    assert!(refused.header("retry-after").is_some());
    assert!(
        detail.as_str().unwrap().contains("register again"),
        "{detail}"
    );
    for n in 0..100 {
        register(&orchestrator, &format!("rack-{}", n % 40)).expect(200);
    }
    let nodes = user.get("/v1/nodes").json(200)["nodes"].clone();
    assert!(nodes.as_array().unwrap().len() < 150, "{nodes}");
}

#[test]
fn number_of_nodes_is_bounded() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--max-nodes", "2"]);
    let user = orchestrator.login();
    register(&orchestrator, "one").expect(201);
    register(&orchestrator, "two").expect(201);
    let full = register(&orchestrator, "three").problem(409, "conflict");
    let detail = full["detail"].as_str().unwrap();
    assert!(
        detail.contains("--max-nodes") && detail.contains("nodes forget"),
        "{detail}"
    );
    register(&orchestrator, "one").expect(200);
    // No more often than registrations are allowed.
    let insists = (0..200).map(|_| register(&orchestrator, "three").status);
    assert!(insists.filter(|status| *status == 409).count() < 100);
    user.call("DELETE", "/v1/nodes/two", &[], b"").expect(204);
    eventually("registrations are accepted again", || {
        (register(&orchestrator, "three").status == 201).then_some(())
    });
}

#[test]
fn full_pulls_delay_only_pulling_jobs() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::start(&orchestrator, "box", |call, answer| {
        if !call.is_run() {
            return answer.status(204, &Value::Null);
        }
        let image = call.body["sandbox"]["image"].as_str().unwrap();
        if image.contains("/endless/") {
            let problem = json!({
                "type": "https://cynode.ai/problems/pulls-full", "title": "", "status": 429,
                "detail": "wait", "instance": "r1",
            });
            return answer.status(429, &problem);
        }
        answer.stream().end(1, &call.result("done\n"));
    });
    node.join();
    for n in 0..10 {
        let image = format!("registry.example.org/endless/{n}:1");
        let task = json!({"command": ["true"], "image": image});
        user.post("/v1/tasks", &task).expect(201);
    }
    let began = Instant::now();
    for _ in 0..20 {
        for id in create(&user, 1) {
            assert_eq!(finish(&user, &id)["status"], "completed");
        }
    }
    // With backoff, the node would get one job for each pause of up to 15 s.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    node.call("run one that pulls", |call| {
        call.body.to_string().contains("/endless/")
    });
}
