//! `/metrics`: the values are true, in a form that every scraper reads.

use crate::support::{
    Api, Cluster, Orchestrator, StandIn, Worker, eventually_eq, exposition::Exposition, read, uuid,
};
use rusqlite::Connection;
use serde_json::json;
use std::{path::Path, time::Instant};

const REQUESTS: &str = "cynode_http_request_duration_seconds_count";
const DISPATCHED: &str = "cynode_dispatch_latency_seconds_count";
const QUEUED: &str = "cynode_jobs_queued";
const RUNNING: &str = "cynode_jobs_running";
const HELD: &str = "cynode_worker_jobs_running";

/// Values of these series at a listener.
#[track_caller]
fn values<const N: usize>(api: &Api, series: [&str; N]) -> [f64; N] {
    let exposition = Exposition::of(api);
    series.map(|series| exposition.value(series))
}

/// The numbers of tasks: created, completed, failed, canceled.
fn tasks(api: &Api) -> [f64; 4] {
    let series = ["created", "completed", "failed", "canceled"]
        .map(|status| format!("cynode_tasks_total{{status=\"{status}\"}}"));
    values(api, series.each_ref().map(String::as_str))
}

/// Waits for these numbers of tasks. A user may see an end just before it is counted.
fn eventually_tasks(api: &Api, expected: [f64; 4]) {
    eventually_eq("the tasks are counted", expected, || tasks(api));
}

fn database(home: &Path) -> Connection {
    Connection::open(home.join("orchestrator/cynode.db")).unwrap()
}

#[test]
fn every_listener_serves_metrics_without_login() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    StandIn::idle(&orchestrator, "box").register();
    let worker = Worker::start(&[]);
    let docs = read("docs/api.md");
    let listeners = [
        ("gateway", &orchestrator.gateway),
        ("control", &orchestrator.control),
        ("worker", &worker.api),
    ];
    for (name, api) in listeners {
        let head = api.anonymous().call("HEAD", "/metrics", &[], b"");
        assert_eq!((head.expect(200).body.len(), name), (0, name));
        let refused = api.anonymous().act("/metrics");
        refused.problem(405, "method-not-allowed");
        assert_eq!(refused.header("allow"), Some("GET, HEAD"));
        let metrics = Exposition::of(api);
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            metrics.value(&format!("cynode_build_info{{version=\"{version}\"}}")),
            1.0
        );
        for (method, status) in [("HEAD", 200), ("POST", 405)] {
            let labels = format!(
                "listener=\"{name}\",method=\"{method}\",route=\"/metrics\",status=\"{status}\""
            );
            let count = format!("{REQUESTS}{{{labels}}}");
            assert_eq!(metrics.value(&count), 1.0);
        }
        for (metric, kind) in &metrics.types {
            let row = format!("| `{metric}` | {kind} |");
            assert!(docs.contains(&row), "docs/api.md has no {row}");
        }
    }
    let [gateway, control] = [&orchestrator.gateway, &orchestrator.control].map(Exposition::of);
    assert!(
        gateway.types == control.types,
        "both listeners serve the same metrics"
    );
}

#[test]
fn task_counters_change_by_exactly_one() {
    let cluster = Cluster::start();
    let (gateway, worker) = (&cluster.orchestrator.gateway, Api::new(cluster.node.url()));
    let ended = ["completed", "failed", "timeout", "canceled"]
        .map(|status| format!("cynode_worker_jobs_total{{status=\"{status}\"}}"));
    let worker_ended = || values(&worker, ended.each_ref().map(String::as_str));
    assert_eq!((tasks(gateway), worker_ended()), ([0.0; 4], [0.0; 4]));
    assert_eq!(values(gateway, [DISPATCHED]), [0.0]);

    cluster.finish(&cluster.script("true"));
    eventually_tasks(gateway, [1.0, 1.0, 0.0, 0.0]);
    assert_eq!(worker_ended(), [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(values(gateway, [DISPATCHED]), [1.0]);

    let timed = cluster.create(&json!({"script": "sleep 600", "timeout_seconds": 1}));
    cluster.finish(&timed);
    eventually_tasks(gateway, [2.0, 1.0, 1.0, 0.0]);
    assert_eq!(worker_ended(), [1.0, 0.0, 1.0, 0.0]);

    let running = cluster.script("echo up; sleep 600");
    cluster.printed(&running, "up");
    assert_eq!(values(gateway, [RUNNING, QUEUED]), [1.0, 0.0]);
    assert_eq!(values(&worker, [HELD]), [1.0]);
    let cancel = format!("/v1/tasks/{running}/cancel");
    (0..2).for_each(|_| drop(cluster.user.act(&cancel).json(200)));
    cluster.finish(&running);
    eventually_tasks(gateway, [3.0, 1.0, 1.0, 1.0]);
    assert_eq!(worker_ended(), [1.0, 0.0, 1.0, 1.0]);
    assert_eq!(
        values(gateway, [RUNNING, QUEUED, DISPATCHED]),
        [0.0, 0.0, 3.0]
    );
    assert_eq!(values(&worker, [HELD]), [0.0]);
    let created = "listener=\"gateway\",method=\"POST\",route=\"/v1/tasks\",status=\"201\"";
    assert_eq!(
        values(gateway, [&format!("{REQUESTS}{{{created}}}")]),
        [3.0]
    );
}

#[test]
fn jobs_ended_without_node_count_once() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (gateway, user) = (&orchestrator.gateway, orchestrator.login());
    let key = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "one"),
    ];
    let task = json!({"command": ["true"]}).to_string();
    let create = || {
        user.call("POST", "/v1/tasks", &key, task.as_bytes())
            .json(201)
    };
    let (first, repeated) = (create(), create());
    assert_eq!((&first, tasks(gateway)), (&repeated, [1.0, 0.0, 0.0, 0.0]));
    assert_eq!(values(gateway, [QUEUED]), [1.0]);
    let cancel = format!("/v1/tasks/{}/cancel", first["id"].as_str().unwrap());
    for _ in 0..2 {
        assert_eq!(user.act(&cancel).json(200)["canceled"], true);
    }
    assert_eq!(tasks(gateway), [1.0, 0.0, 0.0, 1.0]);
    assert_eq!(values(gateway, [QUEUED]), [0.0]);

    // The node starts the job and forgets it: lost, first with an attempt left and then without.
    let mut node = StandIn::start(&orchestrator, "box", |call, answer| {
        if call.is_run() {
            let started = json!({"event": "started", "seq": 1, "attempt": call.body["attempt"]});
            answer.stream().send(&started);
        } else {
            answer.problem(404, "not-found");
        }
    });
    node.join();
    let lost = json!({"command": ["true"], "max_attempts": 2});
    let began = Instant::now();
    user.post("/v1/tasks", &lost).expect(201);
    eventually_tasks(gateway, [2.0, 0.0, 1.0, 1.0]);
    let took = began.elapsed().as_secs_f64();
    // At least half a second of backoff lies between the attempts.
    let sum = "cynode_dispatch_latency_seconds_sum";
    let [waited, attempts, running] = values(gateway, [sum, DISPATCHED, RUNNING]);
    assert_eq!((attempts, running), (2.0, 0.0));
    assert!(waited < took - 0.49, "{waited} s of {took} s");
}

#[test]
fn queue_outlives_restart_counters_start_over() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let task = json!({"command": ["true"]});
    orchestrator.login().post("/v1/tasks", &task).expect(201);
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    assert_eq!(tasks(&orchestrator.gateway), [0.0; 4]);
    assert_eq!(values(&orchestrator.gateway, [QUEUED]), [1.0]);
}

#[test]
fn reporting_node_is_online() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let mut node = StandIn::idle(&orchestrator, "box");
    let stands = |status: &str, up: f64| {
        let metrics = Exposition::of(&orchestrator.control);
        assert_eq!(
            metrics.value("cynode_node_up{node=\"box\"}"),
            up,
            "{status}"
        );
        for known in ["ready", "not_ready", "draining", "offline"] {
            let count = metrics.value(&format!("cynode_nodes{{status=\"{known}\"}}"));
            assert_eq!(count, f64::from(known == status), "{known} while {status}");
        }
    };
    node.register();
    stands("not_ready", 1.0);
    node.join();
    stands("ready", 1.0);
    user.act("/v1/nodes/box/drain").expect(204);
    stands("draining", 1.0);
    let database = database(home.path());
    database
        .execute("UPDATE nodes SET last_seen_at = 0", [])
        .unwrap();
    stands("offline", 0.0);
    user.call("DELETE", "/v1/nodes/box", &[], b"").expect(204);
    let metrics = Exposition::of(&orchestrator.control);
    assert!(!metrics.types.contains_key("cynode_node_up"), "{metrics:?}");
}

#[test]
fn strangers_add_no_series() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let worker = Worker::start(&[]);
    let listeners = [
        ("gateway", &orchestrator.gateway),
        ("control", &orchestrator.control),
        ("worker", &worker.api.anonymous()),
    ];
    for (name, api) in listeners {
        let annoy = || {
            let strange = uuid();
            for path in [
                format!("/{strange}"),
                format!("/v1/tasks/{strange}"),
                format!("/v1/tasks/%22%7D%0A{strange}/logs?{strange}=1"),
                format!("/v1/worker/jobs/{strange}:cancel"),
                format!("/metrics?{strange}"),
                format!("/metrics/{strange}"),
            ] {
                for method in ["GET", "POST", "PURGE", &strange] {
                    let headers = [("Content-Type", "application/json")];
                    api.call(method, &path, &headers, b"{}");
                }
            }
        };
        annoy();
        let before = Exposition::of(api);
        (0..5).for_each(|_| annoy());
        let after = Exposition::of(api);
        let part = format!("listener=\"{name}\",method=\"other\"");
        let other = |metrics: &Exposition| metrics.sum(REQUESTS, &part);
        assert_eq!(other(&after), 6.0 * other(&before), "they are counted");
        assert!(after.sum(REQUESTS, "route=\"unmatched\"") > 0.0);
        assert_eq!(after.series(), before.series());
    }
}

#[test]
fn failing_store_is_problem_not_zero() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let database = database(home.path());
    for table in ["jobs", "nodes"] {
        database
            .execute_batch(&format!("ALTER TABLE {table} RENAME TO gone"))
            .unwrap();
        for api in [&orchestrator.gateway, &orchestrator.control] {
            api.get("/metrics").problem(500, "internal");
        }
        database
            .execute_batch(&format!("ALTER TABLE gone RENAME TO {table}"))
            .unwrap();
        Exposition::of(&orchestrator.gateway);
    }
}
