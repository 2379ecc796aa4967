//! Leases: the job of a silent node goes on there or at another node, and counts once. The nodes are stand-ins
//! that record their calls.

mod growth;
mod offers;
mod streams;

use crate::support::{
    Answer, Call, Orchestrator, StandIn, cluster::finish, eventually, lasting_port,
    stand_in::capability, uuid,
};
use serde_json::{Value, json};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};
use tempfile::TempDir;

/// Orchestrator with a short lease, and its data directory.
struct Scene {
    orchestrator: Orchestrator,
    addresses: [String; 2],
    home: TempDir,
}

/// Flag that a test sets while stand-ins read it.
#[derive(Clone, Default)]
struct Switch(Arc<AtomicBool>);

impl Switch {
    fn turn_on(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn wait(&self) {
        eventually("the test goes on", || self.is_on().then_some(()));
    }
}

impl Scene {
    fn set() -> Self {
        let home = tempfile::tempdir().unwrap();
        let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
        Self {
            orchestrator: Self::start(&home, &addresses),
            addresses,
            home,
        }
    }

    fn start(home: &TempDir, addresses: &[String; 2]) -> Orchestrator {
        let addresses = addresses.each_ref().map(String::as_str);
        Orchestrator::start_at(home.path(), addresses, &["--lease", "1s"])
    }

    fn restart(&mut self) {
        self.orchestrator.process.kill();
        self.orchestrator = Self::start(&self.home, &self.addresses);
    }

    /// Node that joins.
    fn join(&self, slug: &str, script: impl Fn(&Call, Answer) + Send + Sync + 'static) -> StandIn {
        let mut node = StandIn::start(&self.orchestrator, slug, script);
        node.join();
        report(&node);
        node
    }

    /// Node that has a job, and is silent until the switch is on.
    fn silent_with_job(&self, changes: Value) -> (StandIn, Switch, String) {
        let back = Switch::default();
        let away = self.join("away", silent_until(&back));
        let id = self.create(changes);
        away.call("run", Call::is_run);
        (away, back, id)
    }

    fn create(&self, changes: Value) -> String {
        let mut task = json!({"command": ["true"]});
        let fields = task.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        let created = self.orchestrator.login().post("/v1/tasks", &task).json(201);
        created["id"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of a task; returns attempt, node and record of its job.
    fn finish(&self, id: &str) -> (u64, String, Value) {
        let user = self.orchestrator.login();
        finish(&user, id);
        let job = user.get(&format!("/v1/tasks/{id}/result")).json(200)["jobs"][0].clone();
        let node = job["node_slug"].as_str().unwrap().to_owned();
        (job["attempt"].as_u64().unwrap(), node, job)
    }
}

fn report(node: &StandIn) {
    node.report(&capability(&node.slug, &node.url)).expect(204);
}

/// Latest `jobs:run` of a stand-in.
#[derive(Clone, Default)]
struct LastRun(Arc<Mutex<Option<Call>>>);

impl LastRun {
    fn note(&self, call: &Call) {
        *self.0.lock().unwrap() = Some(call.clone());
    }

    /// Whether another call names its job.
    fn is_about(&self, call: &Call) -> bool {
        let run = self.0.lock().unwrap();
        let job = run.as_ref().and_then(|run| run.body["job_id"].as_str());
        job.is_some_and(|job| call.path.contains(job))
    }

    /// Answers with its end.
    fn end(&self, answer: Answer, stdout: &str) {
        let run = self.0.lock().unwrap().clone().unwrap();
        answer.stream().end(2, &run.result(stdout));
    }
}

/// Node that runs every job, and keeps each result until it is removed.
fn willing() -> impl Fn(&Call, Answer) + Send + Sync + use<> {
    let last = LastRun::default();
    move |call, answer| {
        if call.is_run() {
            last.note(call);
        }
        if call.is_run() || call.method == "GET" {
            last.end(answer, "done\n");
        } else {
            answer.status(204, &Value::Null);
        }
    }
}

/// Node that accepts an attempt, then is silent until it is back, with the result.
fn silent_until(back: &Switch) -> impl Fn(&Call, Answer) + Send + Sync + use<> {
    let (back, last, canceled) = (back.clone(), LastRun::default(), Switch::default());
    move |call, answer| {
        if call.is_run() {
            last.note(call);
            let started = json!({"event": "started", "attempt": call.body["attempt"], "seq": 1});
            // The stream is cut, as by a node that is switched off.
            answer.stream().send(&started);
        } else if !back.is_on() {
            drop(answer);
        } else if call.method == "GET" {
            last.end(answer, "late\n");
        } else if call.path.contains(":cancel") {
            canceled.turn_on();
            answer.status(204, &Value::Null);
        } else if last.is_about(call) && !canceled.is_on() {
            answer.problem(409, "conflict");
        } else {
            answer.status(204, &Value::Null);
        }
    }
}

fn attempts(node: &StandIn) -> Vec<u64> {
    let runs = node.calls().into_iter().filter(Call::is_run);
    runs.map(|call| call.body["attempt"].as_u64().unwrap())
        .collect()
}

/// Whether a call follows an attempt, and doesn't read its output.
fn is_attach(call: &Call) -> bool {
    call.method == "GET" && call.path.contains("output=false")
}

fn attaches(node: &StandIn) -> usize {
    node.calls().into_iter().filter(is_attach).count()
}

/// Waits until a node was asked for longer than a lease.
fn outlast_lease(node: &StandIn) {
    let first = node.call("attach", is_attach);
    eventually("the lease is over", || {
        let last = node.calls().pop()?;
        (last.at.duration_since(first.at).as_millis() > 2500).then_some(())
    });
}

#[test]
fn silent_nodes_job_moves_late_copy_ends() {
    let scene = Scene::set();
    let back = Switch::default();
    let away = scene.join("away", silent_until(&back));
    let id = scene.create(json!({}));
    let run = away.call("run", Call::is_run);
    let job_id = run.body["job_id"].as_str().unwrap().to_owned();
    let copy = |status| {
        json!({
            "version": 1, "task_id": run.body["task_id"], "job_id": job_id, "attempt": 1, "status": status,
        })
    };
    let stranger = uuid();
    let unknown = json!({
        "version": 1, "task_id": uuid(), "job_id": stranger, "attempt": 4, "status": "running",
    });
    *away.jobs.lock().unwrap() = vec![copy("running"), unknown];
    let other = scene.join("other", willing());
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (2, "other"));
    assert!(job["result"].as_str().unwrap().contains("done"), "{job}");
    assert_eq!((attempts(&away), attempts(&other)), (vec![1], vec![2]));

    // The node is back, and still runs the superseded attempt.
    back.turn_on();
    report(&away);
    away.call("cancel the copy", |call| {
        call.path == format!("/v1/worker/jobs/{job_id}:cancel?attempt=1&force=true")
    });
    *away.jobs.lock().unwrap() = vec![copy("canceled")];
    away.call("forget the copy", |call| {
        call.method == "DELETE" && call.path == format!("/v1/worker/jobs/{job_id}?attempt=1")
    });
    let about_stranger = |call: &Call| call.path.contains(&stranger);
    assert!(
        !away.calls().iter().any(about_stranger),
        "a job that this database never started is left alone"
    );
    assert_eq!(scene.finish(&id).2, job, "the stored result stays");
}

#[test]
fn jobs_of_deleted_task_are_ended() {
    let mut scene = Scene::set();
    let back = Switch::default();
    let away = scene.join("away", silent_until(&back));
    let id = scene.create(json!({}));
    let run = away.call("run", Call::is_run);
    let job_id = run.body["job_id"].as_str().unwrap().to_owned();
    let _other = scene.join("other", willing());
    scene.finish(&id);
    let user = scene.orchestrator.login();
    user.call("DELETE", &format!("/v1/tasks/{id}"), &[], b"")
        .expect(204);
    *away.jobs.lock().unwrap() = vec![json!({
        "version": 1, "task_id": id, "job_id": job_id, "attempt": 1, "status": "running",
    })];
    // After a restart only the database knows what is superseded.
    scene.restart();
    back.turn_on();
    report(&away);
    away.call("cancel the copy", |call| {
        call.path == format!("/v1/worker/jobs/{job_id}:cancel?attempt=1&force=true")
    });
    away.call("forget the copy", |call| {
        call.method == "DELETE" && call.path == format!("/v1/worker/jobs/{job_id}?attempt=1")
    });
}

#[test]
fn node_back_before_handoff_keeps_its_job() {
    let scene = Scene::set();
    let back = Switch::default();
    let away = scene.join("away", silent_until(&back));
    let id = scene.create(json!({}));
    outlast_lease(&away);
    let user = scene.orchestrator.login();
    let path = format!("/v1/tasks/{id}");
    let why = eventually("the task shows the silent node", || {
        let task = user.get(&path).json(200);
        assert_eq!(task["status"], "running", "no other node exists");
        task["waiting_for"].as_str().map(str::to_owned)
    });
    assert!(why.contains("node away does not answer"), "{why}");
    let mut events = user.events(&format!("{path}/logs"), None);
    let status = events.find(|event| event.data["reason"] == why.as_str());
    assert_eq!(status.unwrap().data["status"], "running");
    back.turn_on();
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (1, "away"));
    assert!(job["result"].as_str().unwrap().contains("late"), "{job}");
    assert_eq!(attempts(&away), [1]);
}

#[test]
fn last_attempt_is_never_handed_off() {
    let scene = Scene::set();
    let (away, back, id) = scene.silent_with_job(json!({"max_attempts": 1}));
    let other = scene.join("other", willing());
    outlast_lease(&away);
    let user = scene.orchestrator.login();
    eventually("the task shows that no attempt is left", || {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        let why = task["waiting_for"].as_str()?;
        why.contains("the last attempt").then_some(())
    });
    back.turn_on();
    let (attempt, node, _) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (1, "away"));
    assert!(attempts(&other).is_empty());
}
