//! Jobs that one node can never run, and another node can.

use crate::support::{
    Answer, Call, IMAGE, Node, Orchestrator, StandIn,
    cluster::{finish, wait_ready},
    eventually,
    stage::{Stage, well},
    stand_in::capability,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Refuses a job in one of the ways in which a node can.
fn refuse(how: &str, call: &Call, answer: Answer) {
    if !call.is_run() {
        return answer.status(204, &Value::Null);
    }
    if let Ok(status) = how.parse() {
        return answer.refuse(status);
    }
    let mut result = call.result("");
    (result["status"], result["exit_code"]) = (json!("failed"), Value::Null);
    result["error"] = json!({"type": how, "message": "on purpose"});
    answer.stream().end(1, &result);
}

/// A node that runs nothing until the switch is on, and refuses then.
fn stage(how: &'static str) -> (Stage, Arc<AtomicBool>) {
    let on = Arc::new(AtomicBool::new(false));
    let waits = Arc::clone(&on);
    let stage = Stage::set(move |_, call, answer| {
        if call.is_run() {
            eventually("the node may refuse", || {
                waits.load(Ordering::SeqCst).then_some(())
            });
        }
        refuse(how, call, answer);
    });
    (stage, on)
}

/// A node that refuses its first job once the switch is on, and runs every other job.
fn stage_that_changes() -> (Stage, Arc<AtomicBool>) {
    let on = Arc::new(AtomicBool::new(false));
    let waits = Arc::clone(&on);
    let stage = Stage::set(move |run, call, answer| {
        if run != 1 {
            return well(call, answer);
        }
        eventually("the node may refuse", || {
            waits.load(Ordering::SeqCst).then_some(())
        });
        refuse("image-not-found", call, answer);
    });
    (stage, on)
}

fn join(
    stage: &Stage,
    slug: &str,
    script: impl Fn(&Call, Answer) + Send + Sync + 'static,
) -> StandIn {
    let mut node = StandIn::start(&stage.orchestrator, slug, script);
    node.join();
    node.report(&capability(slug, &node.url)).expect(204);
    node
}

/// Creates a task that one node refuses while the only other suitable node is drained; returns both and its id.
fn refused_beside_a_drained_node() -> (Stage, StandIn, String) {
    let (stage, on) = stage("image-not-found");
    let id = stage.create(json!({"node_labels": ["stand-in"]}));
    stage.node.call("run", Call::is_run);
    let other = join(&stage, "other", well);
    stage.user.act("/v1/nodes/other/drain").expect(204);
    on.store(true, Ordering::SeqCst);
    (stage, other, id)
}

#[test]
fn refused_job_runs_at_another_node() {
    for how in ["image-not-allowed", "image-not-found", "400", "413", "415"] {
        let (stage, on) = stage(how);
        let id = stage.create(json!({"max_attempts": 1}));
        let run = stage.node.call("run", Call::is_run);
        let other = join(&stage, "other", well);
        on.store(true, Ordering::SeqCst);
        let (task, job) = stage.finish(&id);
        assert_eq!(
            (&task["status"], &job["node_slug"]),
            (&json!("completed"), &json!("other")),
            "{how}: {task}"
        );
        assert_eq!(stage.attempts(), [1], "{how}");
        assert!(other.calls().iter().any(Call::is_run));
        if how.starts_with("image") {
            let record = format!(
                "/v1/worker/jobs/{}?attempt=1",
                run.body["job_id"].as_str().unwrap()
            );
            stage.node.call("forget what it refused", |call| {
                call.method == "DELETE" && call.path == record
            });
        }
    }
}

#[test]
fn restarted_node_is_asked_for_running_job() {
    let (mut stage, on) = stage_that_changes();
    let id = stage.create(json!({"node_labels": ["stand-in"]}));
    stage.node.call("run", Call::is_run);
    let released = Arc::new(AtomicBool::new(false));
    let waits = Arc::clone(&released);
    let other = join(&stage, "other", move |call, answer| {
        if call.is_run() {
            eventually("the node may refuse", || {
                waits.load(Ordering::SeqCst).then_some(())
            });
        }
        refuse("image-not-found", call, answer);
    });
    on.store(true, Ordering::SeqCst);
    other.call("run what the first one refused", Call::is_run);
    stage.node.join();
    released.store(true, Ordering::SeqCst);
    let (task, job) = stage.finish(&id);
    assert_eq!(
        (&task["status"], &job["node_slug"]),
        (&json!("completed"), &json!("box")),
        "{task}"
    );
}

#[test]
fn job_refused_by_all_fails_with_each_reason() {
    let (stage, on) = stage("image-not-allowed");
    let id = stage.create(json!({"node_labels": ["stand-in"]}));
    stage.node.call("run", Call::is_run);
    let other = join(&stage, "other", |call, answer| {
        refuse("image-not-found", call, answer);
    });
    let third = join(&stage, "third", well);
    let mut report = capability("third", &third.url);
    report["node"]["labels"] = json!(["elsewhere"]);
    third.report(&report).expect(204);
    on.store(true, Ordering::SeqCst);
    let (task, job) = stage.finish(&id);
    assert_eq!(task["status"], "failed");
    let summary = task["summary"].as_str().unwrap();
    for words in [
        "node box (image-not-allowed: on purpose)",
        "node other (image-not-found:",
    ] {
        assert!(summary.contains(words), "{summary}");
    }
    assert_eq!(job["result_object"]["error"]["type"], "image-not-found");
    assert_eq!(stage.attempts(), [1]);
    assert_eq!(other.calls().iter().filter(|call| call.is_run()).count(), 1);
}

#[test]
fn refused_job_waits_for_recent_node() {
    let (mut stage, _other, id) = refused_beside_a_drained_node();
    let path = format!("/v1/tasks/{id}");
    let why = eventually("the task shows the reason for its wait", || {
        let task = stage.user.get(&path).json(200);
        assert!(
            ["queued", "running"].contains(&task["status"].as_str().unwrap()),
            "{task}"
        );
        task["waiting_for"].as_str().map(str::to_owned)
    });
    for words in [
        "node other: draining",
        "refused by node box (image-not-found: on purpose)",
    ] {
        assert!(why.contains(words), "{why}");
    }
    // A node that has registered again may have the image, and gets the job again.
    stage.node.join();
    eventually("the node gets the job again", || {
        (stage.attempts() == [1, 2]).then_some(())
    });
    stage.user.act("/v1/nodes/other/resume").expect(204);
    let (task, job) = stage.finish(&id);
    assert_eq!(
        (&task["status"], &job["node_slug"]),
        (&json!("completed"), &json!("other"))
    );
}

#[test]
fn waiting_job_fails_when_last_node_leaves() {
    let (stage, _other, id) = refused_beside_a_drained_node();
    let path = format!("/v1/tasks/{id}");
    eventually("the task waits for the other node", || {
        let task = stage.user.get(&path).json(200);
        let why = task["waiting_for"].as_str()?.to_owned();
        why.contains("refused by node box").then_some(())
    });
    let forgotten = stage.user.call("DELETE", "/v1/nodes/other", &[], b"");
    forgotten.expect(204);
    let (task, _) = stage.finish(&id);
    assert_eq!(task["status"], "failed", "{task}");
    let summary = task["summary"].as_str().unwrap();
    assert!(
        summary.contains("node box (image-not-found: on purpose)"),
        "{summary}"
    );
}

#[test]
fn refused_job_skips_long_gone_node() {
    let (stage, on) = stage("image-not-found");
    let id = stage.create(json!({"node_labels": ["stand-in"]}));
    stage.node.call("run", Call::is_run);
    let gone = join(&stage, "gone", well);
    drop(gone);
    let database = Connection::open(stage.orchestrator.data_dir.join("cynode.db")).unwrap();
    let aged = database.execute(
        "UPDATE nodes SET last_seen_at = last_seen_at - 11 * 60 * 1000 WHERE slug = 'gone'",
        [],
    );
    assert_eq!(aged.unwrap(), 1);
    on.store(true, Ordering::SeqCst);
    let (task, _) = stage.finish(&id);
    assert_eq!(task["status"], "failed", "{task}");
    assert_eq!(stage.attempts(), [1]);
}

#[test]
fn image_that_one_node_forbids_runs_at_another() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let strict = ["--allowed-image", "docker.io/library/*"];
    let _strict = Node::start(home.path(), "strict", &orchestrator.control_url, &strict);
    wait_ready(&orchestrator);
    let _free = Node::start(home.path(), "free", &orchestrator.control_url, &[]);
    eventually("both nodes are ready", || {
        let nodes = user.get("/v1/nodes").json(200);
        let nodes = nodes["nodes"].as_array().unwrap().clone();
        (nodes.len() == 2 && nodes.iter().all(|node| node["status"] == "ready")).then_some(())
    });
    // As many jobs as both nodes have slots, so that each node gets some.
    let ids: Vec<String> = (0..8)
        .map(|_| {
            let task = json!({"script": "sleep 0.2", "image": IMAGE, "max_attempts": 1});
            let created = user.post("/v1/tasks", &task).json(201);
            created["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut refused = 0;
    for id in ids {
        let task = finish(&user, &id);
        assert_eq!(task["status"], "completed", "{task}");
        let result = user.get(&format!("/v1/tasks/{id}/result")).json(200);
        assert_eq!(result["jobs"][0]["node_slug"], "free");
        refused += usize::from(result["jobs"][0]["attempt"] == 2);
    }
    assert!(refused > 0, "the strict node got none");
}
