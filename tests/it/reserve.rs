//! Reserve on the orchestrator's disk: new tasks respect it, and on a full disk a cancel still stops
//! its job and a start still succeeds.

use crate::support::{
    Answer, Call, Orchestrator, Process, Reply,
    cluster::{PASSWORD, PSK, secret_file},
    disk::Disk,
    eventually, lasting_port,
    server::role,
    stage::{Stage, well},
};
use serde_json::{Value, json};
use std::{
    fs,
    sync::{Arc, Mutex, mpsc},
};

/// Permits to end a job: each `jobs:run` at the stand-in waits for one.
type Ends = Arc<Mutex<mpsc::Receiver<&'static str>>>;

/// A node that runs each job until a cancel or the sender ends it.
fn held() -> (
    mpsc::Sender<&'static str>,
    impl Fn(usize, &Call, Answer) + Send + Sync + 'static,
) {
    let (sender, receiver) = mpsc::channel();
    let (by_cancel, ends) = (Mutex::new(sender.clone()), Ends::new(Mutex::new(receiver)));
    let script = move |_, call: &Call, answer: Answer| {
        if call.is_run() {
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 1, "seq": 1}));
            let how = ends.lock().unwrap().recv().unwrap();
            let mut result = call.result("printed\n");
            result["status"] = how.into();
            if how == "canceled" {
                result["exit_code"] = Value::Null;
            }
            events.end(2, &result);
        } else if call.path.contains(":cancel") {
            by_cancel.lock().unwrap().send("canceled").unwrap();
            answer.status(200, &json!({"status": "running"}));
        } else {
            well(call, answer);
        }
    };
    (sender, script)
}

/// Creates a task, waits until its node has the job, and returns the task's id.
fn running(stage: &Stage) -> String {
    let id = stage.create(json!({"max_attempts": 3}));
    stage.node.call("run", |call| {
        call.is_run() && call.body["task_id"] == id.as_str()
    });
    id
}

fn login(orchestrator: &Orchestrator) -> Reply {
    let login = json!({"handle": "admin", "password": PASSWORD});
    orchestrator.gateway.post("/v1/auth/login", &login)
}

fn detail(problem: &Value) -> &str {
    problem["detail"].as_str().unwrap()
}

#[test]
fn reserve_refuses_new_tasks_and_nothing_else() {
    let Some(disk) = Disk::of_kib(32 * 1024) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    disk.hold_orchestrator(home.path());
    let (end, script) = held();
    let flags = ["--reserve-disk", "16MiB"];
    let stage = Stage::raise(home, &flags, script).joined();
    let ended = running(&stage);
    disk.fill_but(12 * 1024);

    let task = json!({"command": ["true"]});
    let problem = stage
        .user
        .post("/v1/tasks", &task)
        .problem(507, "insufficient-storage");
    assert!(detail(&problem).contains("--reserve-disk"), "{problem}");
    let ready = stage.orchestrator.gateway.get("/readyz");
    let problem = ready.problem(503, "unavailable");
    assert!(detail(&problem).contains("16 MiB"), "{problem}");
    login(&stage.orchestrator).expect(200);
    end.send("completed").unwrap();
    let (task, job) = stage.finish(&ended);
    assert_eq!(task["status"], "completed");
    assert_eq!(job["result_object"]["stdout"], "printed\n");

    disk.free();
    let canceled = running(&stage);
    disk.fill_but(12 * 1024);
    let answer = stage
        .user
        .act(&format!("/v1/tasks/{canceled}/cancel"))
        .json(200);
    assert_eq!(answer["canceled"], true);
    disk.free();
}

#[test]
fn queued_tasks_wait_for_half_of_reserve() {
    let Some(disk) = Disk::of_kib(32 * 1024) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    disk.hold_orchestrator(home.path());
    let flags = ["--reserve-disk", "16MiB"];
    let mut stage = Stage::raise(home, &flags, |_, call, answer| well(call, answer));
    let id = stage.create(json!({}));
    disk.fill_but(4 * 1024);
    stage.node.join();
    let task = eventually("the task shows the reason for its wait", || {
        let task = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
        task["waiting_for"].is_string().then_some(task)
    });
    assert!(
        task["waiting_for"].as_str().unwrap().contains("8 MiB"),
        "{task}"
    );
    assert!(stage.attempts().is_empty());
    disk.free();
    assert_eq!(stage.finish(&id).0["status"], "completed");
}

#[test]
fn cancel_on_full_disk_stops_job() {
    let Some(disk) = Disk::of_kib(16 * 1024) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    disk.hold_orchestrator(home.path());
    let (_end, script) = held();
    let stage = Stage::raise(home, &["--reserve-disk", "0"], script).joined();
    let id = running(&stage);
    disk.fill_but(0);
    // Fills the log, too.
    let path = format!("/v1/users/{}/revoke_sessions", crate::support::uuid());
    eventually("writes fail", || {
        (stage.user.act(&path).status == 503).then_some(())
    });
    let problem = stage
        .user
        .act(&format!("/v1/tasks/{id}/cancel"))
        .problem(503, "unavailable");
    for words in ["being stopped", "full"] {
        assert!(detail(&problem).contains(words), "{problem}");
    }
    stage
        .node
        .call("cancel", |call| call.path.contains(":cancel"));
    disk.free();
    let (task, _) = stage.finish(&id);
    assert_eq!(task["status"], "canceled");
    assert_eq!(stage.attempts(), [1]);
}

#[test]
fn orchestrator_starts_on_full_disk() {
    let Some(disk) = Disk::of_kib(16 * 1024) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    disk.hold_orchestrator(home.path());
    let ports = [lasting_port(), lasting_port()].map(|port| format!("127.0.0.1:{port}"));
    let ports = ports.each_ref().map(String::as_str);
    for orderly in [true, false] {
        let mut orchestrator = Orchestrator::start_at(home.path(), ports, &[]);
        let admin = orchestrator.login();
        if orderly {
            assert_eq!(orchestrator.process.terminate(), 0);
        } else {
            orchestrator.process.kill();
        }
        fs::remove_file(disk.path().join("addresses.json")).unwrap();
        disk.fill_but(0);
        let orchestrator = Orchestrator::start_blind(home.path(), ports, &[]);
        let problem = orchestrator
            .gateway
            .get("/readyz")
            .problem(503, "unavailable");
        assert!(detail(&problem).contains("disk"), "{problem}");
        admin.get("/v1/users/me").expect(200);
        admin.get("/v1/tasks").expect(200);
        disk.free();
        eventually("logins are written again", || {
            (login(&orchestrator).status == 200).then_some(())
        });
    }
}

#[test]
fn damaged_address_file_does_not_stop_start() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = Orchestrator::start(home.path(), &[]);
    let data_dir = orchestrator.data_dir.clone();
    assert_eq!(orchestrator.process.terminate(), 0);
    let path = data_dir.join("addresses.json");
    fs::write(&path, b"\xff\xfe{").unwrap();
    let mut command = role(home.path(), "serve-orchestrator", &data_dir);
    let psk = secret_file(home.path(), "psk", PSK);
    let command = command.args([
        "--gateway-listen=127.0.0.1:0",
        "--control-listen=127.0.0.1:0",
        "--psk-file",
        &psk,
    ]);
    let mut process = Process::start("again", home.path(), command);
    eventually("the addresses are written again", || {
        process.assert_runs();
        let addresses = serde_json::from_slice::<Value>(&fs::read(&path).unwrap());
        addresses.ok()?["gateway"].is_string().then_some(())
    });
    assert_eq!(process.terminate(), 0);
}

#[test]
fn queue_is_bounded_in_bytes() {
    let home = tempfile::tempdir().unwrap();
    let flags = [
        "--max-queued-bytes",
        "300KiB",
        "--max-queued-bytes-per-user",
        "200KiB",
    ];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let admin = orchestrator.login();
    let users = ["ann", "bob"].map(|handle| orchestrator.add_user(&admin, handle));
    let task = json!({"script": "x".repeat(80_000)});
    let first = users[0].post("/v1/tasks", &task).json(201);
    users[0].post("/v1/tasks", &task).expect(201);
    let full = users[0].post("/v1/tasks", &task);
    let problem = full.problem(429, "queue-full");
    assert!(
        detail(&problem).starts_with("your queue") && detail(&problem).contains("bytes"),
        "{problem}"
    );
    assert!(full.header("retry-after").is_some());
    users[1].post("/v1/tasks", &task).expect(201);
    let problem = users[1].post("/v1/tasks", &task).problem(429, "queue-full");
    assert!(detail(&problem).contains("all users"), "{problem}");
    // A small task still fits, and so does a large one when another has left the queue.
    users[1]
        .post("/v1/tasks", &json!({"command": ["true"]}))
        .expect(201);
    let path = format!("/v1/tasks/{}/cancel", first["id"].as_str().unwrap());
    users[0].act(&path).expect(200);
    users[0].post("/v1/tasks", &task).expect(201);
}
