//! Races and hostile jobs: concurrent requests, workspaces built to break removal, jobs that block others.

use crate::support::{
    Cluster, Orchestrator, Process, Worker, cynode, eventually, image::NO_USER_IMAGE, process,
};
use serde_json::{Value, json};
use std::{net::TcpListener, thread};

#[test]
fn short_commands_lose_no_output() {
    let worker = Worker::start(&["--max-concurrency", "4"]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..15 {
                    let result = worker.run(&Worker::script("echo out; echo err >&2"));
                    assert_eq!(
                        (&result["stdout"], &result["stderr"]),
                        (&json!("out\n"), &json!("err\n"))
                    );
                }
            });
        }
    });
}

#[test]
fn cancel_works_at_any_time() {
    let cluster = Cluster::start();
    let ids: Vec<String> = (0..25)
        .map(|_| {
            let id = cluster.script("sleep 600");
            let answer = cluster
                .user
                .act(&format!("/v1/tasks/{id}/cancel"))
                .json(200);
            assert_eq!(answer["canceled"], true);
            id
        })
        .collect();
    for id in ids {
        assert_eq!(cluster.finish(&id)["status"], "canceled");
    }
}

#[test]
fn very_deep_workspace_is_removed() {
    let worker = Worker::start(&[]);
    // Each round puts the whole tree into a new directory: depth grows, paths stay short.
    let script = "i=0; while [ $i -lt 1500 ]; do mkdir b; [ -e a ] && mv a b/a; mv b a; i=$((i+1)); done; echo done";
    assert_eq!(worker.run(&Worker::script(script))["stdout"], "done\n");
    assert_eq!(
        worker.run(&Worker::script("echo alive"))["stdout"],
        "alive\n"
    );
}

#[test]
fn failed_container_leaves_no_workspace() {
    let worker = Worker::start(&[]);
    let mut job = Worker::script("true");
    job["sandbox"]["image"] = json!(NO_USER_IMAGE);
    let result = worker.run(&job);
    // A retry would not find the user either.
    assert_eq!(result["error"]["type"], "image-not-runnable", "{result}");
    let words = result["error"]["message"].as_str().unwrap();
    assert!(words.contains("nobody-knows-them"), "{words}");
    // The worker's shutdown at the end of this test fails if anything is left.
}

#[test]
fn unplaceable_jobs_delay_no_other_job() {
    let cluster = Cluster::start();
    let nowhere = json!({"command": ["true"], "node_labels": ["nowhere"]});
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..275).for_each(|_| drop(cluster.create(&nowhere))));
        }
    });
    assert_eq!(
        cluster.finish(&cluster.script("true"))["status"],
        "completed"
    );
    let page = cluster
        .user
        .get("/v1/tasks?status=queued&limit=1")
        .json(200);
    let waiting = page["tasks"][0]["id"].as_str().unwrap();
    let reason = cluster.task(waiting)["waiting_for"].clone();
    assert!(reason.as_str().unwrap().contains("nowhere"), "{reason}");
}

#[test]
fn failed_start_stores_no_unseen_password() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let start = |control: &str| {
        let mut command = cynode(home.path());
        command.args([
            "serve-orchestrator",
            "--gateway-listen=127.0.0.1:0",
            "--control-listen",
            control,
        ]);
        command.arg("--data-dir").arg(home.path().join("data"));
        command
    };
    let failed = process::run(&mut start(&taken));
    assert!(
        failed.code != 0 && failed.stderr.contains("--control-listen"),
        "{failed:?}"
    );
    let mut process = Process::start("second", home.path(), &mut start("127.0.0.1:0"));
    eventually("the second start shows the password", || {
        process.assert_runs();
        process.stdout().contains("password").then_some(())
    });
    assert_eq!(process.terminate(), 0);
}

#[test]
fn idempotency_key_creates_one_task() {
    let cluster = Cluster::start();
    let create = |body: &Value| {
        let body = serde_json::to_vec(body).unwrap();
        let headers = [
            ("content-type", "application/json"),
            ("idempotency-key", "one"),
        ];
        cluster.user.call("POST", "/v1/tasks", &headers, &body)
    };
    let body = json!({"command": ["true"]});
    let answers: Vec<Value> = thread::scope(|scope| {
        (0..8)
            .map(|_| scope.spawn(|| create(&body).json(201)))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect()
    });
    let id = answers[0]["id"].as_str().unwrap();
    assert!(
        answers.iter().all(|answer| answer == &answers[0]),
        "{answers:?}"
    );
    assert_eq!(cluster.finish(id)["status"], "completed");
    assert_eq!(create(&body).json(201), answers[0]);
    create(&json!({"command": ["false"]})).problem(409, "idempotency-key-reused");
}

#[test]
fn orderly_shutdown_always_exits_0() {
    let home = tempfile::tempdir().unwrap();
    for _ in 0..8 {
        let mut orchestrator = Orchestrator::start(home.path(), &[]);
        assert_eq!(orchestrator.process.terminate(), 0);
    }
}
