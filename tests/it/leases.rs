//! Nodes that fall silent: what they run goes on where it is, or at another node, and counts once. The
//! nodes are stand-ins that tell how they were asked.

use crate::support::{
    Answer, Call, Orchestrator, StandIn, cluster::finish, eventually, lasting_port,
    stand_in::capability, uuid,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tempfile::TempDir;

/// An orchestrator with a short lease, and where its data is.
struct Scene {
    orchestrator: Orchestrator,
    addresses: [String; 2],
    home: TempDir,
}

/// Something that a test turns on while stand-ins look at it.
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

    /// A node that joins.
    fn join(&self, slug: &str, script: impl Fn(&Call, Answer) + Send + Sync + 'static) -> StandIn {
        let mut node = StandIn::start(&self.orchestrator, slug, script);
        node.join();
        report(&node);
        node
    }

    /// A node that has a job, and answers nothing until the switch is turned on.
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

    /// Waits for a task's end; its attempt, its node, and the whole of its job.
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

/// The last call to run that a stand-in got.
#[derive(Clone, Default)]
struct LastRun(Arc<Mutex<Option<Call>>>);

impl LastRun {
    fn note(&self, call: &Call) {
        *self.0.lock().unwrap() = Some(call.clone());
    }

    /// Whether another call is about its job.
    fn is_about(&self, call: &Call) -> bool {
        let run = self.0.lock().unwrap();
        let job = run.as_ref().and_then(|run| run.body["job_id"].as_str());
        job.is_some_and(|job| call.path.contains(job))
    }

    /// Tells how it ended.
    fn end(&self, answer: Answer, stdout: &str) {
        let run = self.0.lock().unwrap().clone().unwrap();
        answer.stream().end(2, &run.result(stdout));
    }
}

/// A node that takes whatever it is given, and has the result until it may forget it.
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

/// A node that takes an attempt, then is silent until it is back, and has the result by then.
fn silent_until(back: &Switch) -> impl Fn(&Call, Answer) + Send + Sync + use<> {
    let (back, last, canceled) = (back.clone(), LastRun::default(), Switch::default());
    move |call, answer| {
        if call.is_run() {
            last.note(call);
            let started = json!({"event": "started", "attempt": call.body["attempt"], "seq": 1});
            // It is cut, as by a node that is switched off.
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

/// Whether it asks after an attempt: not for what it prints, as a reader would.
fn is_attach(call: &Call) -> bool {
    call.method == "GET" && call.path.contains("output=false")
}

fn attaches(node: &StandIn) -> usize {
    node.calls().into_iter().filter(is_attach).count()
}

/// Waits until a node was asked for what it has for longer than a lease.
fn outlast_lease(node: &StandIn) {
    let first = node.call("attach", is_attach);
    eventually("the lease is over", || {
        let last = node.calls().pop()?;
        (last.at.duration_since(first.at).as_millis() > 2500).then_some(())
    });
}

#[test]
fn silent_nodes_job_moves_and_late_copy_goes() {
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

    // It is back, and still runs what nobody waits for.
    back.turn_on();
    report(&away);
    away.call("cancel the copy", |call| {
        call.path == format!("/v1/worker/jobs/{job_id}:cancel?attempt=1")
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
    assert_eq!(scene.finish(&id).2, job, "what is stored stays");
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
    // All that was owed is known from the database alone.
    scene.restart();
    back.turn_on();
    report(&away);
    away.call("cancel the copy", |call| {
        call.path == format!("/v1/worker/jobs/{job_id}:cancel?attempt=1")
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
    let why = eventually("it is told", || {
        let task = user.get(&path).json(200);
        assert_eq!(task["status"], "running", "there is nobody else");
        task["waiting_for"].as_str().map(str::to_owned)
    });
    assert!(why.contains("node away does not answer"), "{why}");
    let mut events = user.events(&format!("{path}/logs"), None);
    let told = events.find(|event| event.data["reason"] == why.as_str());
    assert_eq!(told.unwrap().data["status"], "running");
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
    eventually("it is told that there is no other", || {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        let why = task["waiting_for"].as_str()?;
        why.contains("the last attempt").then_some(())
    });
    back.turn_on();
    let (attempt, node, _) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (1, "away"));
    assert!(attempts(&other).is_empty());
}

#[test]
fn refused_handoff_costs_no_attempt() {
    let scene = Scene::set();
    let (back, takes) = (Switch::default(), Switch::default());
    let away = scene.join("away", silent_until(&back));
    // With two attempts, one that counted in vain would leave none.
    let id = scene.create(json!({"max_attempts": 2}));
    away.call("run", Call::is_run);
    let (may, taking) = (takes.clone(), willing());
    let other = scene.join("other", move |call, answer| {
        if call.is_run() && !may.is_on() {
            answer.refuse(503);
        } else {
            taking(call, answer);
        }
    });
    eventually("it is offered again", || {
        (attempts(&other).len() >= 2).then_some(())
    });
    takes.turn_on();
    let (attempt, node, _) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (2, "other"));
    assert!(attempts(&other).iter().all(|attempt| *attempt == 2));
}

/// A node that looks for the image of a job after it has answered, and does not have it.
fn without_image() -> impl Fn(&Call, Answer) + Send + Sync + use<> {
    move |call, answer| {
        if call.is_run() {
            let mut refused = call.result("");
            (refused["status"], refused["exit_code"]) = ("failed".into(), Value::Null);
            refused["error"] = json!({"type": "image-not-found", "message": "no such image"});
            let mut events = answer.stream();
            events.send(&json!({"event": "alive"}));
            events.end(1, &refused);
        } else {
            answer.status(204, &Value::Null);
        }
    }
}

#[test]
fn node_without_image_keeps_silent_attempt() {
    let scene = Scene::set();
    let (_away, back, id) = scene.silent_with_job(json!({"max_attempts": 2}));
    let other = scene.join("other", without_image());
    other.call("forget the offer", |call| call.method == "DELETE");
    let shown = scene.orchestrator.login();
    let job = shown.get(&format!("/v1/tasks/{id}/result")).json(200)["jobs"][0].clone();
    assert_eq!(
        (&job["attempt"], &job["status"]),
        (&json!(1), &json!("running"))
    );
    back.turn_on();
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (1, "away"), "{job}");
    assert_eq!(
        (&job["status"], attempts(&other)),
        (&json!("completed"), vec![2])
    );
}

#[test]
fn job_refused_at_handoff_goes_to_third_node() {
    let scene = Scene::set();
    let away = scene.join("away", silent_until(&Switch::default()));
    let id = scene.create(json!({"max_attempts": 2}));
    away.call("run", Call::is_run);
    let other = scene.join("other", without_image());
    other.call("forget the offer", |call| call.method == "DELETE");
    let third = scene.join("third", willing());
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (3, "third"), "{job}");
    assert_eq!((attempts(&other), attempts(&third)), (vec![2], vec![3]));
}

#[test]
fn handoff_is_resolved_after_orchestrator_kill() {
    let mut scene = Scene::set();
    let (away, _back, id) = scene.silent_with_job(json!({}));
    // It takes the offer, and nobody hears of it.
    let hears = Switch::default();
    let (heard, last) = (hears.clone(), LastRun::default());
    let other = scene.join("other", move |call, answer| {
        if call.is_run() {
            last.note(call);
            heard.wait();
        } else if call.method == "GET" && call.path.contains("attempt=2") {
            last.end(answer, "taken\n");
        } else {
            answer.status(204, &Value::Null);
        }
    });
    other.call("take the offer", Call::is_run);
    let shown = scene.orchestrator.login();
    let job = shown.get(&format!("/v1/tasks/{id}/result")).json(200)["jobs"][0].clone();
    assert_eq!(job["attempt"], 1, "it counts only once it is accepted");
    scene.restart();
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (2, "other"));
    assert!(job["result"].as_str().unwrap().contains("taken"), "{job}");
    assert_eq!((attempts(&away), attempts(&other)), (vec![1], vec![2]));
    hears.turn_on();
}

#[test]
fn unresolved_handoff_consumes_its_attempt_number() {
    let scene = Scene::set();
    let (back, forgot) = (Switch::default(), Switch::default());
    let away = scene.join("away", silent_until(&back));
    let id = scene.create(json!({"max_attempts": 3}));
    away.call("run", Call::is_run);
    let (once, taking) = (forgot.clone(), willing());
    let other = scene.join("other", move |call, answer| {
        match (call.is_run(), once.is_on()) {
            // It may have begun, and says later that it knows nothing of it.
            (true, false) => drop(answer),
            (false, false) if call.method == "GET" => {
                once.turn_on();
                answer.problem(404, "not-found");
            }
            _ => taking(call, answer),
        }
    });
    let (attempt, node, _) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (3, "other"));
    assert_eq!(attempts(&other), [2, 3]);
}

#[test]
fn cancel_reaches_silent_node_and_its_replacement() {
    let scene = Scene::set();
    let (away, _back, id) = scene.silent_with_job(json!({}));
    let last = LastRun::default();
    let canceled = Switch::default();
    let heard = canceled.clone();
    let other = scene.join("other", move |call, answer| {
        if call.is_run() {
            last.note(call);
        }
        let run = last.0.lock().unwrap().clone().unwrap();
        if call.path.contains(":cancel") {
            heard.turn_on();
            let state = json!({
                "version": 1, "task_id": run.body["task_id"], "job_id": run.body["job_id"], "attempt": 2,
                "status": "running",
            });
            answer.status(200, &state);
        } else if call.is_run() || call.method == "GET" {
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 2, "seq": 1}));
            heard.wait();
            let mut result = run.result("");
            result["status"] = "canceled".into();
            result["exit_code"] = Value::Null;
            events.end(2, &result);
        } else {
            answer.status(204, &Value::Null);
        }
    });
    other.call("take the offer", Call::is_run);
    let user = scene.orchestrator.login();
    user.post(&format!("/v1/tasks/{id}/cancel"), &json!({}))
        .expect(200);
    eventually("the task is canceled", || {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        (task["status"] == "canceled").then_some(())
    });
    assert!(attaches(&away) > 0);
}

/// The node is back while another one is being asked: with a word first, or with the result at once.
#[test]
fn superseded_copy_is_removed_despite_slow_store() {
    for first_word in [true, false] {
        let scene = Scene::set();
        let (back, ends, over) = (Switch::default(), Switch::default(), Switch::default());
        let (is_back, may_end, last) = (back.clone(), ends.clone(), LastRun::default());
        let away = scene.join("away", move |call, answer| {
            if call.is_run() {
                last.note(call);
            } else if call.method != "GET" {
                answer.status(204, &Value::Null);
            } else if is_back.is_on() && !first_word {
                last.end(answer, "late\n");
            } else if is_back.is_on() {
                let mut events = answer.stream();
                events.send(&json!({"event": "alive"}));
                may_end.wait();
                let run = last.0.lock().unwrap().clone().unwrap();
                events.end(2, &run.result("late\n"));
            }
        });
        let id = scene.create(json!({}));
        away.call("run", Call::is_run);
        let hears = over.clone();
        let other = scene.join("other", move |call, answer| match call.method.as_str() {
            "GET" => answer.problem(404, "not-found"),
            "DELETE" => answer.problem(409, "conflict"),
            _ if call.is_run() => hears.wait(),
            _ => answer.status(204, &Value::Null),
        });
        let run = other.call("take the offer", Call::is_run);
        let copy = json!({
            "version": 1, "task_id": run.body["task_id"], "job_id": run.body["job_id"], "attempt": 2,
            "status": "running",
        });
        *other.jobs.lock().unwrap() = vec![copy];

        // As by a slow disk: nothing is written from here on, and time goes by.
        let database = Connection::open(scene.orchestrator.data_dir.join("cynode.db")).unwrap();
        let user = scene.orchestrator.login();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        let asked = attaches(&away);
        back.turn_on();
        eventually("it is back", || (attaches(&away) > asked).then_some(()));
        for _ in 0..50 {
            user.get(&format!("/v1/tasks/{id}")).json(200);
        }
        drop(database);
        let job = run.body["job_id"].as_str().unwrap();
        other.call("cancel the copy", |call| {
            call.path == format!("/v1/worker/jobs/{job}:cancel?attempt=2")
        });
        ends.turn_on();
        let (attempt, node, _) = scene.finish(&id);
        assert_eq!((attempt, node.as_str()), (1, "away"));
        over.turn_on();
    }
}

#[test]
fn returned_node_without_result_defers_to_replacement() {
    let scene = Scene::set();
    let (back, takes) = (Switch::default(), Switch::default());
    let (is_back, last) = (back.clone(), LastRun::default());
    let away = scene.join("away", move |call, answer| {
        if call.is_run() {
            last.note(call);
        } else if call.method != "GET" {
            answer.status(204, &Value::Null);
        } else if is_back.is_on() {
            // As after the machine went down.
            let mut lost = last.0.lock().unwrap().clone().unwrap().result("");
            (lost["status"], lost["exit_code"]) = ("failed".into(), Value::Null);
            lost["error"] = json!({"type": "lost", "message": "the machine went down"});
            answer.stream().end(2, &lost);
        }
    });
    let id = scene.create(json!({"max_attempts": 2}));
    away.call("run", Call::is_run);
    let (may_take, taking) = (takes.clone(), willing());
    let other = scene.join("other", move |call, answer| {
        if call.is_run() {
            may_take.wait();
        }
        taking(call, answer);
    });
    other.call("take the offer", Call::is_run);
    let user = scene.orchestrator.login();
    let asked = attaches(&away);
    back.turn_on();
    eventually("it is back", || (attaches(&away) > asked).then_some(()));
    for _ in 0..50 {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        assert_eq!(task["status"], "running");
    }
    takes.turn_on();
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (2, "other"), "{job}");
}

#[test]
fn stalled_stream_is_requested_again() {
    let scene = Scene::set();
    let over = Switch::default();
    let (ended, last) = (over.clone(), LastRun::default());
    let node = scene.join("box", move |call, answer| {
        if call.is_run() {
            last.note(call);
            let started = json!({"event": "started", "attempt": 1, "seq": 1});
            let mut stream = answer.stream();
            stream.send(&started);
            // Neither a word nor an end, as of a node whose network is gone.
            ended.wait();
        } else if call.method == "GET" {
            last.end(answer, "done\n");
        } else {
            answer.status(204, &Value::Null);
        }
    });
    let id = scene.create(json!({"max_attempts": 1}));
    let (attempt, ..) = scene.finish(&id);
    assert_eq!(attempt, 1);
    over.turn_on();
    let asked = node.call("attach", is_attach);
    assert!(asked.path.contains("attempt=1&after=1"), "{}", asked.path);
}

#[test]
fn proxy_page_is_no_job_answer() {
    let scene = Scene::set();
    let (last, asked) = (LastRun::default(), AtomicUsize::new(0));
    let node = scene.join("box", move |call, answer| {
        if call.is_run() {
            last.note(call);
            let started = json!({"event": "started", "attempt": 1, "seq": 1});
            // It begins, and the connection is cut.
            answer.stream().send(&started);
        } else if call.method == "GET" {
            match asked.fetch_add(1, Ordering::SeqCst) {
                0 => answer.bytes(200, "text/html", "<html>back soon</html>"),
                1 => answer.bytes(200, "application/x-ndjson", "<html>\n"),
                2 => answer.status(200, &json!({"status": "splendid"})),
                _ => last.end(answer, "done\n"),
            }
        } else {
            answer.status(204, &Value::Null);
        }
    });
    let id = scene.create(json!({}));
    let (attempt, _, job) = scene.finish(&id);
    assert_eq!((attempt, &job["status"]), (1, &json!("completed")), "{job}");
    let ended = |call: &Call| call.path.contains(":cancel");
    assert!(!node.calls().iter().any(ended), "it was left alone");
}

#[test]
fn subscriber_sees_both_attempts() {
    let scene = Scene::set();
    let last = LastRun::default();
    let away = scene.join("away", move |call, answer| {
        let printed = json!({"event": "stdout", "attempt": 1, "seq": 2, "data": "early\n"});
        if call.is_run() {
            last.note(call);
        }
        if call.is_run() || (call.method == "GET" && !is_attach(call)) {
            let started = json!({"event": "started", "attempt": 1, "seq": 1});
            answer.stream().send(&started).send(&printed);
        }
    });
    let id = scene.create(json!({}));
    away.call("run", Call::is_run);
    let user = scene.orchestrator.login();
    let mut events = user.events(&format!("/v1/tasks/{id}/logs?follow=true"), None);
    assert!(events.any(|event| event.data["data"] == "early\n"));
    let last = LastRun::default();
    // The end comes once the reader has seen the output: before, it would be served from the result.
    let seen = Switch::default();
    let is_seen = seen.clone();
    let _other = scene.join("other", move |call, answer| {
        if call.is_run() {
            last.note(call);
        }
        if call.is_run() || call.method == "GET" {
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 2, "seq": 1}));
            events.send(&json!({"event": "stdout", "attempt": 2, "seq": 2, "data": "done\n"}));
            let run = last.0.lock().unwrap().clone().unwrap();
            is_seen.wait();
            events.end(3, &run.result("done\n"));
        } else {
            answer.status(204, &Value::Null);
        }
    });
    let rest: Vec<_> = events
        .map(|event| {
            if event.name == "stdout" {
                seen.turn_on();
            }
            (event.id, event.name)
        })
        .collect();
    let told = [("2-0", "status"), ("2-2", "stdout"), ("2-2", "end")];
    assert_eq!(
        rest,
        told.map(|(id, name)| (id.to_owned(), name.to_owned()))
    );
}
