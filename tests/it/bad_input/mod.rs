//! Bad input on every listener: a problem answer as in the contract, never a 5xx, nothing stored and no
//! container started.

mod cases;
mod wrong_types;

use crate::support::{Cluster, Orchestrator, Worker, stand_in::capability, uuid};
use cases::{LIMIT, send_broken_bodies, send_wrong_calls, wrong_fields};
use serde_json::{Value, json};

/// Tasks that are refused, each with the slug of its problem.
fn wrong_tasks() -> Vec<(Value, &'static str)> {
    let invalid = "invalid-request";
    let mut cases: Vec<_> = wrong_fields()
        .into_iter()
        .map(|(field, value, slug)| {
            let mut task = json!({"command": ["true"]});
            task[field] = value;
            (task, slug)
        })
        .collect();
    cases.extend([
        (json!({}), invalid),
        (json!([null, ["true"]]), invalid),
        (json!({"command": ["true"], "script": "true"}), invalid),
        (json!({"command": ["true"], "prompt": "true"}), invalid),
        (json!({"script": ""}), invalid),
        (json!({"script": " \n"}), invalid),
        (json!({"script": "a\u{0}"}), invalid),
        (json!({"script": "x".repeat(257 * 1024)}), invalid),
        (
            json!({"command": ["/bin/sh", "-c", "x".repeat(121 * 1024)]}),
            invalid,
        ),
        (json!({"prompt": "", "input_mode": "script"}), invalid),
        (json!({"prompt": "true", "input_mode": "magic"}), invalid),
        (json!({"script": "true", "input_mode": "prompt"}), invalid),
        (json!({"prompt": " "}), invalid),
        (json!({"prompt": "x".repeat(257 * 1024)}), invalid),
        (json!({"prompt": "x", "model": "a b"}), invalid),
        (json!({"prompt": "x", "model": 7}), invalid),
        (json!({"prompt": "x", "image": "alpine"}), invalid),
        (json!({"prompt": "x", "stdin": "y"}), invalid),
        (json!({"script": "true", "model": "m"}), invalid),
        (
            json!({"script": "true", "task_name": "n".repeat(201)}),
            invalid,
        ),
        (json!({"script": "true", "task_name": 7}), invalid),
        (json!({"script": "true", "node_labels": "gpu"}), invalid),
        (json!({"script": "true", "node_labels": ["-gpu"]}), invalid),
        (json!({"script": "true", "node_labels": [""]}), invalid),
        (json!({"script": "true", "max_attempts": 0}), invalid),
        (json!({"script": "true", "max_attempts": -1}), invalid),
        (json!({"script": "true", "priority": 101}), invalid),
        (
            json!({"script": "true", "attachments": [{"path": "a"}]}),
            invalid,
        ),
    ]);
    cases
}

#[test]
fn invalid_task_field_is_named_nothing_stored() {
    let cluster = Cluster::start();
    let user = &cluster.user;
    for (task, slug) in wrong_tasks() {
        eprintln!("{:.120}", task.to_string());
        user.post("/v1/tasks", &task).problem(400, slug);
    }
    send_broken_bodies(user, &["/v1/tasks"], LIMIT);
    for key in ["", "a\tb", "é", &"k".repeat(256)] {
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key),
        ];
        user.call("POST", "/v1/tasks", &headers, b"{\"script\":\"true\"}")
            .problem(400, "invalid-request");
    }

    assert_eq!(
        user.get("/v1/tasks").json(200)["tasks"],
        json!([]),
        "nothing was stored"
    );
    assert_eq!(cluster.node.containers(), Vec::<String>::new());
    assert!(cluster.node.workspaces().is_empty());
}

#[test]
fn gateway_refuses_malformed_requests() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    // Callers without a login must not fill the orchestrator's memory.
    send_broken_bodies(&user, &["/v1/auth/login", "/v1/auth/refresh"], 16 * 1024);
    for body in [
        json!({"handle": "admin"}),
        json!({"handle": 1, "password": "x"}),
        json!({"password": "x"}),
    ] {
        user.post("/v1/auth/login", &body)
            .problem(400, "invalid-request");
    }
    user.post("/v1/auth/logout", &json!({"refresh_token": 7}))
        .problem(400, "invalid-request");
    let unknown = format!("/v1/tasks/{}", uuid());
    let unknown_parts: Vec<String> = ["", "/result", "/logs"]
        .iter()
        .map(|part| format!("{unknown}{part}"))
        .collect();
    for path in &unknown_parts {
        user.get(path).problem(404, "not-found");
    }
    user.act(&format!("{unknown}/cancel"))
        .problem(404, "not-found");
    let calls = [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v1", 404, "not-found"),
        ("GET", "/v1/tasks/", 404, "not-found"),
        ("GET", "/v2/tasks", 404, "not-found"),
        ("GET", "/v1/nodes/register", 404, "not-found"),
        ("GET", "/v1/worker/jobs", 404, "not-found"),
        ("GET", "/v1/tasks/not-a-uuid", 404, "not-found"),
        ("GET", "/v1/tasks/not-a-uuid/result", 404, "not-found"),
        ("GET", "/v1/tasks/..%2f..%2fetc/logs", 404, "not-found"),
        ("POST", "/v1/tasks/%00/cancel", 404, "not-found"),
        ("GET", "/v1/nodes/nobody", 404, "not-found"),
        ("POST", "/v1/nodes/nobody/drain", 404, "not-found"),
        ("PUT", "/v1/tasks", 405, "method-not-allowed"),
        ("DELETE", "/v1/tasks", 405, "method-not-allowed"),
        ("POST", "/v1/users/me", 405, "method-not-allowed"),
        ("GET", "/v1/auth/login", 405, "method-not-allowed"),
        ("POST", "/healthz", 405, "method-not-allowed"),
        ("BREW", "/v1/tasks", 405, "method-not-allowed"),
        ("GET", "/v1/tasks?limit=0", 400, "invalid-request"),
        ("GET", "/v1/tasks?limit=201", 400, "invalid-request"),
        ("GET", "/v1/tasks?limit=-1", 400, "invalid-request"),
        ("GET", "/v1/tasks?limit=many", 400, "invalid-request"),
        ("GET", "/v1/tasks?limit=", 400, "invalid-request"),
        ("GET", "/v1/tasks?cursor=nonsense", 400, "invalid-request"),
        ("GET", "/v1/tasks?offset=-1", 400, "invalid-request"),
        ("GET", "/v1/tasks?offset=10001", 400, "invalid-request"),
        ("GET", "/v1/tasks?status=done", 400, "invalid-request"),
    ];
    send_wrong_calls(&user, &calls);
}

#[test]
fn unknown_route_lists_known_routes() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let detail = |problem: Value| problem["detail"].as_str().unwrap().to_owned();
    let delete = user.call("DELETE", "/v1/tasks", &[], b"");
    assert_eq!(
        detail(delete.problem(405, "method-not-allowed")),
        "/v1/tasks takes POST, GET, HEAD, not DELETE; GET /openapi.json lists every call"
    );
    let lost = detail(user.get("/v1/jobs").problem(404, "not-found"));
    assert!(lost.contains("GET /openapi.json"), "{lost}");
    // The Node API has no such document.
    let lost = detail(
        orchestrator
            .control
            .get("/v1/jobs")
            .problem(404, "not-found"),
    );
    assert!(lost.contains("docs/api.md"), "{lost}");
}

#[test]
fn wrong_requests_about_existing_task_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let task = user.post("/v1/tasks", &json!({"script": "true"})).json(201);
    let path = format!("/v1/tasks/{}", task["id"].as_str().unwrap());
    for query in ["stream=both", "stream=", "follow=perhaps", "follow=1"] {
        user.get(&format!("{path}/logs?{query}"))
            .problem(400, "invalid-request");
    }
    for place in ["1", "x-1", "1-x", "-1-1", "99999999999999-1", "é"] {
        let headers = [("Accept", "text/event-stream"), ("Last-Event-ID", place)];
        for headers in [&headers[..], &headers[1..]] {
            user.call("GET", &format!("{path}/logs"), headers, b"")
                .problem(400, "invalid-request");
        }
    }
    assert_eq!(
        user.act(&format!("{path}/cancel")).json(200)["canceled"],
        true
    );
}

#[test]
fn control_plane_refuses_malformed_requests() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let control = &orchestrator.control;
    send_broken_bodies(control, &["/v1/nodes/register"], LIMIT);
    for body in [
        json!({"psk": 1}),
        json!({"psk": "x"}),
        json!({"psk": "x", "capability": {}}),
    ] {
        control
            .post("/v1/nodes/register", &body)
            .problem(400, "invalid-request");
    }
    let mut report = capability("box", "http://127.0.0.1:1");
    report["compute"]["cpu_cores"] = json!("two");
    control
        .post(
            "/v1/nodes/register",
            &json!({"psk": "x", "capability": report}),
        )
        .problem(400, "invalid-request");
    let calls = [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v1/tasks", 404, "not-found"),
        ("POST", "/v1/auth/login", 404, "not-found"),
        ("GET", "/v1/nodes/register", 405, "method-not-allowed"),
        ("GET", "/v1/nodes/report", 405, "method-not-allowed"),
        ("DELETE", "/v1/nodes/config", 405, "method-not-allowed"),
    ];
    send_wrong_calls(control, &calls);
    assert_eq!(
        orchestrator.login().get("/v1/nodes").json(200),
        json!({"nodes": [], "next_cursor": ""})
    );
}

/// Jobs that a worker refuses, each with the slug of its problem.
fn wrong_jobs() -> Vec<(Value, &'static str)> {
    let mut cases: Vec<_> = wrong_fields()
        .into_iter()
        .map(|(field, value, slug)| {
            let mut job = Worker::job(&["true"]);
            job["sandbox"][field] = value;
            (job, slug)
        })
        .collect();
    let changes = [
        ("/version", json!(2), "unsupported-payload-version"),
        ("/version", json!(0), "unsupported-payload-version"),
        ("/version", json!("1"), "invalid-request"),
        ("/task_id", json!("x"), "invalid-request"),
        ("/job_id", json!("../../etc"), "invalid-request"),
        ("/job_id", Value::Null, "invalid-request"),
        ("/attempt", json!(-1), "invalid-request"),
        ("/sandbox", json!({}), "invalid-request"),
        ("/sandbox/image", Value::Null, "invalid-request"),
        ("/sandbox/command", Value::Null, "invalid-request"),
        (
            "/sandbox/command",
            json!(["/bin/sh", "-c", "x".repeat(257 * 1024)]),
            "invalid-request",
        ),
        (
            "/sandbox/command",
            json!(["/bin/sh", "-c", "true", "x".repeat(121 * 1024)]),
            "invalid-request",
        ),
        (
            "/sandbox/command",
            json!(["sh", "-c", "x".repeat(121 * 1024)]),
            "invalid-request",
        ),
    ];
    cases.extend(changes.map(|(pointer, value, slug)| {
        let mut job = Worker::job(&["true"]);
        *job.pointer_mut(pointer).unwrap_or(&mut Value::Null) = value.clone();
        if let ("/attempt", Some(object)) = (pointer, job.as_object_mut()) {
            object.insert("attempt".to_owned(), value);
        }
        (job, slug)
    }));
    cases
}

#[test]
fn worker_refuses_malformed_requests() {
    let worker = Worker::start(&[]);
    for (job, slug) in wrong_jobs() {
        eprintln!("{:.240}", job.to_string());
        worker.send(&job).problem(400, slug);
    }
    send_broken_bodies(&worker.api, &["/v1/worker/jobs:run"], LIMIT);
    let calls = [
        ("GET", "/v1/worker", 404, "not-found"),
        ("GET", "/v1/worker/jobs/x", 404, "not-found"),
        ("POST", "/v1/worker/jobs/x:cancel", 404, "not-found"),
        ("DELETE", "/v1/worker/jobs/x", 404, "not-found"),
        ("GET", "/v1/worker/jobs:run", 405, "method-not-allowed"),
        ("POST", "/v1/worker/jobs", 405, "method-not-allowed"),
    ];
    send_wrong_calls(&worker.api, &calls);
    let path = format!("/v1/worker/jobs/{}?after=x", uuid());
    let reply = worker
        .api
        .call("GET", &path, &[("Accept", "application/x-ndjson")], b"");
    assert!([400, 404].contains(&reply.status), "{}", reply.text());
    // The fields of another version are unknown here.
    let problem = worker
        .send(&json!({"version": 2, "jobs": []}))
        .problem(400, "unsupported-payload-version");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains('2') && detail.contains("version 1"),
        "received and supported are named: {detail}"
    );
    assert_eq!(
        worker.api.get("/v1/worker/jobs").json(200),
        json!({"jobs": []})
    );
    assert_eq!(worker.containers(), Vec::<String>::new());
    assert!(worker.workspaces().is_empty());
}
