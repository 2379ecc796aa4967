//! Dispatch of jobs to nodes. The nodes are stand-ins that record their calls.

use crate::support::{
    Call, IMAGE, Node, Orchestrator, StandIn,
    cluster::wait_ready,
    eventually, lasting_port,
    link::Link,
    stage::{Stage, well},
    stand_in::capability,
};
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

#[test]
fn no_job_before_configuration_is_applied() {
    let applied = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&applied);
    let mut stage = Stage::set_without_joining(move |_, call, answer| {
        // An early call is refused, and the task shows it.
        if call.is_run() && !seen.load(Ordering::SeqCst) {
            answer.refuse(400);
        } else {
            well(call, answer);
        }
    });
    let id = stage.create(json!({}));
    stage.node.register();
    stage
        .node
        .report(&capability("box", &stage.node.url))
        .expect(204);
    let version = stage.node.config()["config_version"].clone();
    stage
        .node
        .report(&capability("box", &stage.node.url))
        .expect(204);
    stage
        .node
        .ack(&json!("7"), "applied")
        .problem(409, "conflict");
    stage.node.ack(&version, "failed").expect(204);
    stage
        .node
        .report(&capability("box", &stage.node.url))
        .expect(204);
    assert_eq!(
        stage.user.get(&format!("/v1/tasks/{id}")).json(200)["status"],
        "queued"
    );
    assert!(stage.attempts().is_empty());
    applied.store(true, Ordering::SeqCst);
    stage.node.ack(&version, "applied").expect(204);
    assert_eq!(stage.finish(&id).0["status"], "completed");
    assert_eq!(stage.attempts(), [1]);
}

#[test]
fn damaged_task_fails_and_is_never_sent() {
    let mut stage = Stage::set_without_joining(|_, call, answer| well(call, answer));
    let (damaged, whole) = (stage.create(json!({})), stage.create(json!({})));
    let database = stage.orchestrator.data_dir.join("cynode.db");
    let damage = "UPDATE tasks SET spec = json_set(spec, '$.sandbox.env', 7) WHERE id = ?1";
    let database = rusqlite::Connection::open(database).unwrap();
    assert_eq!(database.execute(damage, [&damaged]).unwrap(), 1);
    stage = stage.joined();
    // No call can show a task that is damaged.
    let end = "SELECT summary FROM tasks WHERE id = ?1 AND status = 'failed'";
    let summary: String = eventually("it has failed", || {
        database.query_row(end, [&damaged], |row| row.get(0)).ok()
    });
    assert_eq!(
        summary,
        "the task is damaged in the database, so no node can run it"
    );
    assert_eq!(stage.finish(&whole).0["status"], "completed");
    assert_eq!(stage.attempts(), [1]);
}

#[test]
fn each_node_is_called_with_own_token() {
    let stage = Stage::set(|_, call, answer| well(call, answer));
    let mut other = StandIn::start(&stage.orchestrator, "other", well);
    other.register();
    let mut report = capability("other", &other.url);
    report["node"]["labels"] = json!(["other", "stand-in"]);
    other.report(&report).expect(204);
    other
        .ack(&other.config()["config_version"], "applied")
        .expect(204);
    let token = |node: &StandIn| {
        node.config()["worker_api"]["orchestrator_bearer_token"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_ne!(token(&stage.node), token(&other));

    let id =
        stage.create(json!({"node_labels": ["other"], "env": {"A": "b"}, "timeout_seconds": 5}));
    let (_, job) = stage.finish(&id);
    assert_eq!(job["node_slug"], "other");
    let run = other.call("run", Call::is_run);
    assert_eq!(
        (&run.body["task_id"], &run.body["job_id"]),
        (&json!(id), &job["id"])
    );
    assert_eq!(run.body["version"], 1);
    assert!(
        run.path.ends_with("?output=false"),
        "no log reader exists: {}",
        run.path
    );
    let sandbox = &run.body["sandbox"];
    assert_eq!(
        (&sandbox["command"], &sandbox["env"]),
        (&json!(["true"]), &json!({"A": "b"}))
    );
    assert_eq!(
        (&sandbox["image"], &sandbox["timeout_seconds"]),
        (&json!("localhost/cynode-test:latest"), &json!(5))
    );
    other.call("forget the job", |call| {
        call.method == "DELETE" && call.path.contains(job["id"].as_str().unwrap())
    });
    assert!(
        other.calls().iter().all(|call| call.token == token(&other)),
        "{:?}",
        other.calls()
    );
    assert!(
        stage.attempts().is_empty(),
        "the label of the other node doesn't match"
    );
    let both = stage.create(json!({"node_labels": ["stand-in"]}));
    assert_eq!(stage.finish(&both).0["status"], "completed");
}

#[test]
fn new_address_applies_unless_operator_set_one() {
    let stage = Stage::set(|_, _, answer| answer.refuse(400));
    let moved = StandIn::start(&stage.orchestrator, "box", well);
    stage
        .node
        .report(&capability("box", &moved.url))
        .expect(204);
    let view = stage.user.get("/v1/nodes/box").json(200);
    assert_eq!(
        (&view["status"], &view["worker_api_target_url"]),
        (&json!("ready"), &json!(moved.url))
    );
    let id = stage.create(json!({}));
    assert_eq!(stage.finish(&id).0["status"], "completed");

    let Stage {
        user,
        mut node,
        orchestrator,
        home,
    } = stage;
    drop(orchestrator);
    let said = format!("box={}", moved.url);
    let orchestrator = Orchestrator::start(home.path(), &["--worker-url", &said]);
    node.control = orchestrator.control.clone();
    node.join();
    let user = orchestrator.gateway.with_token(user.token());
    assert_eq!(
        user.get("/v1/nodes/box").json(200)["worker_api_target_url"],
        moved.url
    );
    let stage = Stage {
        user,
        node,
        orchestrator,
        home,
    };
    let id = stage.create(json!({}));
    assert_eq!(stage.finish(&id).0["status"], "completed");
}

#[test]
fn drained_node_and_unmatched_labels_hold_jobs() {
    let stage = Stage::set(|_, call, answer| well(call, answer));
    let nowhere = stage.create(json!({"node_labels": ["stand-in", "nowhere"]}));
    let first = stage.create(json!({}));
    assert_eq!(stage.finish(&first).0["status"], "completed");
    stage.user.act("/v1/nodes/box/drain").expect(204);
    let waiting = stage.create(json!({}));
    stage
        .node
        .report(&capability("box", &stage.node.url))
        .expect(204);
    let status = |id: &str| stage.user.get(&format!("/v1/tasks/{id}")).json(200)["status"].clone();
    assert_eq!(
        (status(&waiting), stage.attempts()),
        (json!("queued"), vec![1])
    );
    stage.user.act("/v1/nodes/box/resume").expect(204);
    assert_eq!(stage.finish(&waiting).0["status"], "completed");
    assert_eq!(status(&nowhere), "queued");
    assert_eq!(
        stage
            .user
            .act(&format!("/v1/tasks/{nowhere}/cancel"))
            .json(200)["canceled"],
        true
    );
    assert_eq!(status(&nowhere), "canceled");
    assert_eq!(
        stage
            .user
            .act(&format!("/v1/tasks/{first}/cancel"))
            .json(200)["canceled"],
        false
    );
}

#[test]
fn unreachable_node_is_named_with_reason() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let nowhere = format!("http://127.0.0.1:{}", lasting_port());
    let place = ["--advertise-url", &nowhere, "--connect", "listen"];
    let flags = [&place[..], &["--label", "attic"]].concat();
    let _node = Node::start(home.path(), "box", &orchestrator.control_url, &flags);
    let task = json!({"script": "true", "node_labels": ["attic"]});
    let id = user.post("/v1/tasks", &task).json(201)["id"].clone();
    let id = id.as_str().unwrap();
    let reason = eventually("the task shows the error", || {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        let reason = task["waiting_for"].as_str()?.to_owned();
        // Until the probe has failed, the node is starting.
        reason.contains("can't reach it").then_some(reason)
    });
    assert!(reason.contains("cynode nodes show box"), "{reason}");
    // Address and advice are for admins.
    assert!(!reason.contains(&nowhere), "{reason}");
    let node = user.get("/v1/nodes/box").json(200);
    assert_eq!(node["status"], "not_ready", "{node}");
    let reason = node["reason"].as_str().unwrap();
    assert!(
        reason.contains(&nowhere) && reason.contains("--advertise-url"),
        "{reason}"
    );
    user.act(&format!("/v1/tasks/{id}/cancel")).expect(200);
}

#[test]
fn job_waits_for_node_without_disk_space() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let flags = ["--min-free-disk", "100000TiB"];
    let _node = Node::start(home.path(), "box", &orchestrator.control_url, &flags);
    let user = orchestrator.login();
    let task = user
        .post("/v1/tasks", &json!({"script": "true", "image": IMAGE}))
        .json(201);
    let path = format!("/v1/tasks/{}", task["id"].as_str().unwrap());
    let waiting = eventually("the task shows the reason", || {
        let task = user.get(&path).json(200);
        let why = task["waiting_for"].as_str()?.to_owned();
        why.contains("cynode nodes show box").then_some(why)
    });
    assert!(!waiting.contains("--advertise-url"), "{waiting}");
    // The fix at the node is for admins.
    assert!(!waiting.contains("--min-free-disk"), "{waiting}");
    let node = user.get("/v1/nodes/box").json(200);
    let reason = node["reason"].as_str().unwrap();
    assert!(reason.contains("--min-free-disk"), "{reason}");
    user.act(&format!("{path}/cancel")).json(200);
}

#[test]
fn node_connections_are_reused() {
    let (home, port) = (tempfile::tempdir().unwrap(), lasting_port());
    let link = Link::to(&format!("http://127.0.0.1:{port}"), usize::MAX);
    let worker_url = format!("--worker-url=box={}", link.url);
    let orchestrator = Orchestrator::start(home.path(), &[&worker_url]);
    let listen = format!("--worker-listen=127.0.0.1:{port}");
    let _node = Node::start(home.path(), "box", &orchestrator.control_url, &[&listen]);
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    let jobs = 8;
    for _ in 0..jobs {
        let task = json!({"command": ["true"], "image": IMAGE});
        let task = user.post("/v1/tasks", &task).json(201);
        let path = format!("/v1/tasks/{}", task["id"].as_str().unwrap());
        eventually("the task ends", || {
            let status = user.get(&path).json(200)["status"].clone();
            (status == "completed").then_some(())
        });
    }
    let connections = link.connections();
    assert!(connections < jobs, "{connections} connections");
}
