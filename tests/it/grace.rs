//! Stop of a command: TERM for its process group, time to end, then KILL for all that is left.

use crate::{
    shims::last,
    support::{Cluster, Process, Worker, eventually, worker::printed},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longest time for a stop that leaves a command no time.
const AT_ONCE: Duration = Duration::from_secs(4);
/// Script that goes on after TERM.
const DEAF: &str = "trap 'echo term' TERM; echo before; while :; do sleep 0.1; done";
/// Script that takes half a second to end after TERM.
const TIDY: &str =
    "trap 'sleep 0.5; echo saved; exit 7' TERM; echo before; while :; do sleep 0.1; done";

/// Job of a script that prints `before`, with this grace, once it has printed.
fn start(worker: &Worker, script: &str, grace: Value) -> Value {
    let job = Worker::script_with(script, json!({"grace_seconds": grace}));
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "before\n"));
    job
}

fn cancel(worker: &Worker, job: &Value, query: &str) {
    let path = format!("{}:cancel{query}", Worker::path(job));
    worker.api.act(&path).json(200);
}

/// Result of a job, its stdout, and the time until it has ended.
fn end(worker: &Worker, job: &Value) -> (Value, String, Duration) {
    let began = Instant::now();
    let events: Vec<Value> = worker.attach(job, 0).collect();
    let result = events.last().unwrap().clone();
    (result, printed(&events, "stdout"), began.elapsed())
}

#[test]
fn command_that_handles_term_ends_by_itself() {
    let worker = Worker::start(&[]);
    let job = start(&worker, TIDY, json!(60));
    cancel(&worker, &job, "");
    let (result, stdout, took) = end(&worker, &job);
    assert_eq!(result["status"], "canceled", "{result}");
    assert_eq!(result["exit_code"], Value::Null, "{result}");
    assert_eq!(stdout, "before\nsaved\n");
    assert!(took < Duration::from_secs(20), "{took:?}");
    worker.assert_clean();
}

#[test]
fn time_limit_leaves_the_same_grace() {
    let worker = Worker::start(&[]);
    let limited = |script: &str, grace: u32| {
        let more = json!({"timeout_seconds": 1, "grace_seconds": grace});
        worker.run(&Worker::script_with(script, more))
    };
    let tidy = limited(TIDY, 60);
    assert_eq!(
        (&tidy["status"], &tidy["exit_code"]),
        (&json!("timeout"), &Value::Null)
    );
    assert_eq!(tidy["stdout"], "before\nsaved\n");
    let deaf = limited(DEAF, 1);
    assert_eq!(
        (&deaf["status"], &deaf["stdout"]),
        (&json!("timeout"), &json!("before\nterm\n"))
    );
    let none = limited(DEAF, 0);
    assert_eq!(
        (&none["status"], &none["stdout"]),
        (&json!("timeout"), &json!("before\n"))
    );
}

#[test]
fn deaf_command_is_killed_after_grace() {
    let worker = Worker::start(&[]);
    let job = start(&worker, DEAF, json!(2));
    cancel(&worker, &job, "");
    let (result, stdout, took) = end(&worker, &job);
    assert_eq!(
        (&result["status"], stdout.as_str()),
        (&json!("canceled"), "before\nterm\n")
    );
    assert!(took >= Duration::from_millis(1500), "{took:?}");
}

#[test]
fn command_without_handler_ends_within_a_second() {
    let worker = Worker::start(&[]);
    // The shell waits for its child: TERM is for both. A child in a session of its own is killed at the end.
    let script = "setsid sleep 1000 & echo before; sleep 1000";
    let job = start(&worker, script, json!(300));
    let began = Instant::now();
    cancel(&worker, &job, "");
    let (result, ..) = end(&worker, &job);
    assert_eq!(result["status"], "canceled");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    worker.assert_clean();
    // A stopped command handles TERM, too.
    let job = start(
        &worker,
        "echo before; kill -STOP $$; sleep 1000",
        json!(300),
    );
    let began = Instant::now();
    cancel(&worker, &job, "");
    assert_eq!(end(&worker, &job).0["status"], "canceled");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[test]
fn forced_cancel_kills_during_grace() {
    let mut worker = Worker::start(&[]);
    let job = start(&worker, DEAF, json!(300));
    cancel(&worker, &job, "");
    cancel(&worker, &job, "");
    let mut events = worker.attach(&job, 0);
    assert!(events.any(|event| event["data"] == "term\n"));
    // The grace goes on under the shim, and another worker can end it.
    worker.restart();
    let began = Instant::now();
    cancel(&worker, &job, "?force=true");
    let result = last(worker.attach(&job, 0));
    assert_eq!(result["status"], "canceled", "{result}");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    let job = start(&worker, DEAF, json!(300));
    cancel(&worker, &job, "?force=true");
    assert_eq!(end(&worker, &job).1, "before\n");
}

#[test]
fn exit_before_cancel_counts() {
    let worker = Worker::start(&[]);
    let job = Worker::script("exit 3");
    worker.run(&job);
    cancel(&worker, &job, "");
    assert_eq!(end(&worker, &job).0["exit_code"], 3);
}

#[test]
fn shutdown_bounds_grace() {
    let mut worker = Worker::start(&["--shutdown-grace", "1s"]);
    let job = start(&worker, DEAF, json!(300));
    let began = Instant::now();
    assert_eq!(worker.process.terminate(), 0);
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    worker.start_again();
    let (result, stdout, _) = end(&worker, &job);
    assert_eq!(
        (&result["status"], stdout.as_str()),
        (&json!("canceled"), "before\nterm\n")
    );
}

#[test]
fn second_cancel_of_a_task_kills() {
    let cluster = Cluster::start();
    let create = json!({"script": DEAF, "grace_seconds": 300});
    let created = cluster.user.post("/v1/tasks", &create).json(201);
    let id = created["id"].as_str().unwrap().to_owned();
    eventually("it runs", || {
        let logs = cluster.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
        (logs["stdout"] == "before\n").then_some(())
    });
    let path = format!("/v1/tasks/{id}/cancel");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| cluster.user.act(&path).json(200));
        eventually("it has its grace", || {
            let logs = cluster.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
            (logs["stdout"] == "before\nterm\n").then_some(())
        });
        assert_eq!(cluster.user.act(&path).json(200)["canceled"], true);
        assert_eq!(first.join().unwrap()["canceled"], true);
    });
    cluster
        .user
        .post(
            "/v1/tasks",
            &json!({"script": "true", "grace_seconds": 301}),
        )
        .expect(400);
}

#[test]
fn second_interrupt_of_run_kills() {
    let cluster = Cluster::start();
    let mut command = cluster.cli(&["run", "--grace", "5m", "--", "sh", "-c", DEAF]);
    let mut client = Process::start("client", cluster.home(), &mut command);
    for printed in ["before\n", "before\nterm\n"] {
        eventually(printed, || (client.stdout() == printed).then_some(()));
        client.signal(rustix::process::Signal::INT);
    }
    assert_eq!(client.code(), 130, "{}", client.stderr());
    let tasks = cluster.user.get("/v1/tasks?limit=1").json(200);
    assert_eq!(tasks["tasks"][0]["status"], "canceled");
}
