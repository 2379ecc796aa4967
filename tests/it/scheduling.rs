//! Order of tasks.

use crate::support::{
    Call, Cluster, eventually,
    stage::{Stage, well},
    stand_in::capability,
};
use serde_json::{Value, json};

#[test]
fn user_with_one_task_is_next() {
    let cluster = Cluster::start_with(&["--max-concurrency", "1"]);
    let ann = cluster.orchestrator.add_user(&cluster.user, "ann");
    let first = cluster.script("sleep 600");
    let many: Vec<String> = (0..12).map(|_| cluster.script("true")).collect();
    let one = ann.post("/v1/tasks", &json!({"script": "true"})).json(201);
    cluster
        .user
        .act(&format!("/v1/tasks/{first}/cancel"))
        .expect(200);

    let one = cluster.finish(one["id"].as_str().unwrap());
    assert_eq!(one["status"], "completed");
    let started = |task: &Value| task["started_at"].as_str().unwrap().to_owned();
    for id in many {
        let task = cluster.finish(&id);
        assert_eq!(task["status"], "completed");
        assert!(started(&one) < started(&task), "{one} {task}");
    }
}

/// Maximum number of different label sets of one user in the queue.
const SETS: usize = 1024;

#[test]
fn unmatched_labels_delay_no_other_user() {
    let home = tempfile::tempdir().unwrap();
    let mut stage = Stage::raise(home, &["--user-rate", "0"], |_, call, answer| {
        well(call, answer);
    })
    .joined();
    let ann = stage.orchestrator.add_user(&stage.user, "ann");
    let ask = |label: &str| {
        let task = json!({"command": ["true"], "node_labels": ["stand-in", label]});
        ann.post("/v1/tasks", &task)
    };
    let ids: Vec<String> = (0..SETS)
        .map(|n| {
            ask(&format!("nowhere-{n}")).json(201)["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let refused = ask("one-more");
    let detail = refused.problem(429, "queue-full")["detail"].clone();
    assert!(detail.as_str().unwrap().contains("node_labels"), "{detail}");
    assert!(refused.header("retry-after").is_some());
    ask("nowhere-7").expect(201);
    let other = stage.create(json!({}));
    assert_eq!(stage.finish(&other).0["status"], "completed");

    // A task that waits for labels runs once a node has them, and makes room in the queue.
    let mut report = capability("box", &stage.node.url);
    report["node"]["labels"] = json!(["stand-in", "nowhere-3"]);
    stage.node.report(&report).expect(204);
    assert_eq!(stage.finish(&ids[3]).0["status"], "completed");
    eventually("another set fits", || {
        (ask("one-more").status == 201).then_some(())
    });
    stage.node.register();
}

#[test]
fn users_alternate_and_priorities_order_own_tasks() {
    let mut stage = Stage::set_without_joining(|_, call, answer| well(call, answer));
    let ann = stage.orchestrator.add_user(&stage.user, "ann");
    let create = |user: &crate::support::Api, priority: i64| {
        let task = json!({"command": ["true"], "priority": priority});
        let task = user.post("/v1/tasks", &task).json(201);
        assert_eq!(task["priority"], priority);
        task["id"].as_str().unwrap().to_owned()
    };
    let admins = [0, 0, 5, -1].map(|priority| create(&stage.user, priority));
    // Her hundred queued tasks give her no advantage over other users.
    let anns = [99, 100].map(|priority| create(&ann, priority));

    stage.node.register();
    let mut report = capability("box", &stage.node.url);
    report["sandbox"]["max_concurrency"] = 1.into();
    stage.node.report(&report).expect(204);
    let version = stage.node.config()["config_version"].clone();
    stage.node.ack(&version, "applied").expect(204);
    for id in admins.iter().chain(&anns) {
        assert_eq!(stage.finish(id).0["status"], "completed");
    }
    let calls = stage.node.calls();
    let runs = calls.iter().filter(|call| call.is_run());
    let order: Vec<&str> = runs
        .map(|call: &Call| call.body["task_id"].as_str().unwrap())
        .collect();
    let expected = [
        &admins[2], &anns[1], &admins[0], &anns[0], &admins[1], &admins[3],
    ];
    assert_eq!(order, expected);
    let plain = stage.create(json!({}));
    assert_eq!(stage.finish(&plain).0["priority"], 0);
}
