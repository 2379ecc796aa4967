//! Workers of other implementations: their answers are understood, and an answer that isn't
//! runs no command twice.

use crate::support::{
    Answer, Api, Call, Orchestrator, PeerWorker, StandIn, cluster::finish, eventually, nothing_more,
};
use serde_json::{Value, json};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tempfile::TempDir;

struct Scene {
    user: Api,
    orchestrator: Orchestrator,
    _home: TempDir,
}

impl Scene {
    /// An orchestrator that offers the jobs of a silent node to others after a second.
    fn set() -> Self {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = Orchestrator::start(home.path(), &["--lease", "1s"]);
        Self {
            user: orchestrator.login(),
            orchestrator,
            _home: home,
        }
    }

    fn create(&self, max_attempts: u32) -> String {
        let task = json!({"command": ["true"], "max_attempts": max_attempts});
        let created = self.user.post("/v1/tasks", &task).json(201);
        created["id"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of a task; returns the task and its job.
    fn finish(&self, id: &str) -> (Value, Value) {
        let task = finish(&self.user, id);
        let result = self.user.get(&format!("/v1/tasks/{id}/result")).json(200);
        (task, result["jobs"][0].clone())
    }
}

fn runs(node: &StandIn) -> Vec<u64> {
    let runs = node.calls().into_iter().filter(Call::is_run);
    runs.map(|call| call.body["attempt"].as_u64().unwrap())
        .collect()
}

/// Waits until a node was probed this many times.
fn outlast(node: &StandIn, probes: usize) {
    eventually("the node is probed", || {
        let calls = node.calls();
        let asked = calls.iter().filter(|call| call.path == "/healthz").count();
        (asked >= probes).then_some(())
    });
}

/// Script of a worker that answers nothing more once it was asked to run a job.
fn vanishing(
    run: impl Fn(&Call, Answer) + Send + Sync + 'static,
) -> impl Fn(&Call, Answer) + Send + Sync + 'static {
    let is_gone = AtomicBool::new(false);
    move |call, answer| {
        if call.is_run() {
            is_gone.store(true, Ordering::SeqCst);
            run(call, answer);
        } else if !is_gone.load(Ordering::SeqCst) {
            nothing_more(call, answer);
        }
    }
}

/// Gate that stand-ins wait for until a test opens it.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicUsize>);

impl Gate {
    fn open(&self) {
        self.0.store(1, Ordering::SeqCst);
    }

    fn wait(&self) {
        eventually("the test goes on", || {
            (self.0.load(Ordering::SeqCst) > 0).then_some(())
        });
    }
}

#[test]
fn minimal_results_are_understood() {
    let scene = Scene::set();
    let codes = AtomicUsize::new(0);
    let node = PeerWorker::join(&scene.orchestrator, "peer", move |call, answer| {
        let code = [0, 7][codes.fetch_add(1, Ordering::SeqCst)];
        answer.status(200, &call.plain_result(code, "done\n"));
    });
    for (status, code) in [("completed", 0), ("failed", 7)] {
        let id = scene.create(3);
        let (task, job) = scene.finish(&id);
        assert_eq!(
            (&task["status"], &task["exit_code"], &job["attempt"]),
            (&json!(status), &json!(code), &json!(1)),
            "{task} {job}"
        );
        assert_eq!(job["result_object"]["stdout"], "done\n");
        let logs = scene.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
        assert_eq!(logs["stdout"], "done\n");
        let events = scene.user.events(&format!("/v1/tasks/{id}/logs"), None);
        let printed: Vec<_> = events.filter(|event| event.name == "stdout").collect();
        assert_eq!(printed[0].data["data"], "done\n");
    }
    assert_eq!(runs(&node), [1, 1]);
}

#[test]
fn worker_without_progress_keeps_its_job() {
    let scene = Scene::set();
    let (ends, ended) = (Gate::default(), Gate::default());
    let may_end = ends.clone();
    let node = PeerWorker::join(&scene.orchestrator, "peer", move |call, answer| {
        may_end.wait();
        answer.status(200, &call.plain_result(0, "at last\n"));
    });
    let id = scene.create(3);
    node.call("run", Call::is_run);
    let other = PeerWorker::join(&scene.orchestrator, "other", move |_, _| ended.open());
    // Longer than any stream may be silent, and than a lease.
    outlast(&node, 5);
    let task = scene.user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(
        (&task["status"], task.get("waiting_for")),
        (&json!("running"), None)
    );
    let logs = scene.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
    assert_eq!(logs["stdout"], "");
    ends.open();
    let (task, job) = scene.finish(&id);
    assert_eq!(
        (&task["status"], &job["node_slug"]),
        (&json!("completed"), &json!("peer"))
    );
    assert_eq!((runs(&node), runs(&other)), (vec![1], vec![]));
}

#[test]
fn vanished_worker_loses_its_job() {
    let scene = Scene::set();
    let ends = Gate::default();
    let may_end = ends.clone();
    let script = vanishing(move |call, answer| {
        may_end.wait();
        answer.status(200, &call.plain_result(0, "late\n"));
    });
    let node = PeerWorker::join_with(&scene.orchestrator, "peer", script);
    let id = scene.create(2);
    node.call("run", Call::is_run);
    let other = PeerWorker::join(&scene.orchestrator, "other", |call, answer| {
        answer.status(200, &call.plain_result(0, "done\n"));
    });
    let (task, job) = scene.finish(&id);
    assert_eq!(
        (&task["status"], &job["node_slug"]),
        (&json!("completed"), &json!("other"))
    );
    assert_eq!((runs(&node), runs(&other)), (vec![1], vec![2]));
    ends.open();
}

#[test]
fn handoff_is_accepted_by_worker_without_progress() {
    let scene = Scene::set();
    let script = vanishing(|_, answer| {
        answer
            .stream()
            .send(&json!({"event": "started", "attempt": 1, "seq": 1}));
    });
    let away = PeerWorker::join_with(&scene.orchestrator, "away", script);
    let id = scene.create(2);
    away.call("run", Call::is_run);
    let ends = Gate::default();
    let may_end = ends.clone();
    let peer = PeerWorker::join(&scene.orchestrator, "peer", move |call, answer| {
        may_end.wait();
        answer.status(200, &call.plain_result(0, "done\n"));
    });
    outlast(&peer, 3);
    ends.open();
    let (task, job) = scene.finish(&id);
    assert_eq!(
        (&task["status"], &job["node_slug"], &job["attempt"]),
        (&json!("completed"), &json!("peer"), &json!(2))
    );
    assert_eq!(runs(&peer), [2]);
}

#[test]
fn unreadable_answers_run_nothing_twice() {
    let scene = Scene::set();
    let plain = |changes: Value| {
        move |call: &Call| {
            let mut result = call.plain_result(0, "out");
            let fields = result.as_object_mut().unwrap();
            fields.extend(changes.as_object().unwrap().clone());
            ("application/json", result.to_string())
        }
    };
    type Body = Box<dyn Fn(&Call) -> (&'static str, String) + Send + Sync>;
    let bodies: Vec<Body> = vec![
        Box::new(|_| ("application/json", String::new())),
        Box::new(|_| ("application/json", "{\"status\":".to_owned())),
        Box::new(|_| ("application/json", "[1]".to_owned())),
        Box::new(|_| ("text/html", "<h1>It works!</h1>".to_owned())),
        Box::new(plain(json!({"status": "splendid"}))),
        Box::new(plain(json!({"version": 2}))),
        Box::new(plain(json!({"attempt": 9}))),
        Box::new(plain(
            json!({"job_id": "01900000-0000-7000-8000-000000000000"}),
        )),
        Box::new(plain(json!({"exit_code": 3}))),
        Box::new(|_| {
            (
                "application/x-ndjson",
                "{\"event\":\"started\"\n".to_owned(),
            )
        }),
        Box::new(|call| {
            let mut result = call.result("forged");
            (result["event"], result["seq"], result["exit_code"]) =
                ("result".into(), 1.into(), 7.into());
            ("application/x-ndjson", format!("{result}\n"))
        }),
    ];
    let count = bodies.len();
    let next = AtomicUsize::new(0);
    let node = PeerWorker::join(&scene.orchestrator, "peer", move |call, answer| {
        let (media_type, body) = bodies[next.fetch_add(1, Ordering::SeqCst)](call);
        answer.bytes(200, media_type, &body);
    });
    for n in 0..count {
        let (task, job) = scene.finish(&scene.create(3));
        assert_eq!(
            (&task["status"], &job["status"], &job["attempt"]),
            (&json!("failed"), &json!("lost"), &json!(1)),
            "{n}: {task} {job}"
        );
        let summary = task["summary"].as_str().unwrap();
        assert!(
            summary.contains("invalid answer") && summary.contains("has run"),
            "{n}: {summary}"
        );
    }
    assert_eq!(runs(&node), vec![1; count]);
}

#[test]
fn truncated_result_runs_nothing_twice() {
    let scene = Scene::set();
    let node = PeerWorker::join(&scene.orchestrator, "peer", |call, answer| {
        answer.break_off(&call.plain_result(0, "out").to_string());
    });
    let (task, job) = scene.finish(&scene.create(3));
    assert_eq!(job["status"], "lost", "{task} {job}");
    assert_eq!(runs(&node), [1]);
}

#[test]
fn connection_cut_before_answer_is_retried() {
    let scene = Scene::set();
    let node = PeerWorker::join(&scene.orchestrator, "peer", |call, answer| {
        if call.body["attempt"] == 2 {
            answer.status(200, &call.plain_result(0, "done\n"));
        }
    });
    let (task, job) = scene.finish(&scene.create(2));
    assert_eq!(
        (&task["status"], &job["attempt"]),
        (&json!("completed"), &json!(2))
    );
    assert_eq!(runs(&node), [1, 2]);
}

#[test]
fn worker_that_reports_states_is_polled() {
    let scene = Scene::set();
    let (run, asked) = (Mutex::<Option<Call>>::default(), AtomicUsize::new(0));
    let node = PeerWorker::join_with(&scene.orchestrator, "peer", move |call, answer| {
        if call.is_run() {
            // The connection breaks before any answer.
            *run.lock().unwrap() = Some(call.clone());
        } else if call.method == "GET" && call.path.contains("/jobs/") {
            let mut state = run
                .lock()
                .unwrap()
                .clone()
                .unwrap()
                .plain_result(0, "done\n");
            if asked.fetch_add(1, Ordering::SeqCst) < 3 {
                state = json!({"job_id": state["job_id"], "status": "running"});
            }
            answer.status(200, &state);
        } else {
            nothing_more(call, answer);
        }
    });
    let (task, job) = scene.finish(&scene.create(3));
    assert_eq!(
        (&task["status"], &job["attempt"]),
        (&json!("completed"), &json!(1))
    );
    assert_eq!(job["result_object"]["stdout"], "done\n");
    assert_eq!(runs(&node), [1]);
}

#[test]
fn worker_without_job_list_is_left_alone() {
    let scene = Scene::set();
    let node = PeerWorker::join(&scene.orchestrator, "peer", |call, answer| {
        answer.status(200, &call.plain_result(0, "done\n"));
    });
    for _ in 0..5 {
        scene.finish(&scene.create(1));
    }
    eventually("the last job is deleted at the worker", || {
        let calls = node.calls();
        let forgotten = calls.iter().filter(|call| call.method == "DELETE");
        (forgotten.count() == 5).then_some(())
    });
    let lists = node.calls();
    let lists = lists.iter().filter(|call| call.path == "/v1/worker/jobs");
    let lists = lists.count();
    // One of them is the probe of its address.
    assert!(lists <= 3, "its jobs were listed {lists} times");
    let log = scene.orchestrator.process.stderr();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}
