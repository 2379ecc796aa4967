//! Which node gets a task: by its slug, its features, its graphics processors and its images. The nodes are stand-ins
//! that record their calls.

use crate::support::{
    Answer, Call, StandIn, eventually,
    stage::{Stage, well},
    stand_in::capability,
};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

fn join(stage: &Stage, slug: &str, change: impl Fn(&mut Value)) -> StandIn {
    let mut node = StandIn::start(&stage.orchestrator, slug, well);
    node.join();
    let mut report = capability(slug, &node.url);
    change(&mut report);
    node.report(&report).expect(204);
    node
}

/// Reason for which a task waits.
fn waits(stage: &Stage, id: &str) -> String {
    let task = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(task["status"], "queued", "{task}");
    task["waiting_for"].as_str().unwrap_or_default().to_owned()
}

fn node_of(stage: &Stage, id: &str) -> String {
    let (task, job) = stage.finish(id);
    assert_eq!(task["status"], "completed", "{task}");
    job["node_slug"].as_str().unwrap().to_owned()
}

#[test]
fn task_runs_only_at_named_node() {
    let stage = Stage::set(|_, call, answer| well(call, answer));
    let _other = join(&stage, "other", |_| {});
    for slug in ["other", "box", "other"] {
        let id = stage.create(json!({"node": slug}));
        assert_eq!(node_of(&stage, &id), slug);
    }
    let id = stage.create(json!({"node": "late"}));
    assert_eq!(waits(&stage, &id), "no node named late is registered");
    let task = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(task["node"], "late");
    let _late = join(&stage, "late", |_| {});
    assert_eq!(node_of(&stage, &id), "late");
    let wrong = json!({"command": ["true"], "node": "No Slug"});
    let wrong = stage.user.post("/v1/tasks", &wrong);
    let problem = wrong.problem(400, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "#/node", "{problem}");
}

#[test]
fn task_waits_for_node_with_its_features() {
    let stage = Stage::set(|_, call, answer| well(call, answer));
    let id = stage.create(json!({"memory": "1GiB", "pull": "always"}));
    let plain = stage.create(json!({}));
    assert_eq!(node_of(&stage, &plain), "box");
    let reason =
        "no suitable node supports limit-memory and pull-policy (of box); upgrade cynode there";
    assert_eq!(waits(&stage, &id), reason);
    let _new = join(&stage, "new", |report| {
        report["sandbox"]["features"] = json!(["limits", "pull-policy"]);
    });
    assert_eq!(node_of(&stage, &id), "new");
}

/// Jobs that a node holds until they are released, by task.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<HashSet<String>>>);

impl Held {
    fn run(&self, call: &Call, answer: Answer) {
        if !call.is_run() {
            return well(call, answer);
        }
        let task = call.body["task_id"].as_str().unwrap().to_owned();
        let started = json!({"event": "started", "attempt": call.body["attempt"], "seq": 1});
        let mut events = answer.stream();
        events.send(&started);
        eventually("the test lets the job end", || {
            self.0.lock().unwrap().contains(&task).then_some(())
        });
        events.end(2, &call.result("done\n"));
    }

    fn release(&self, task: &str) {
        self.0.lock().unwrap().insert(task.to_owned());
    }
}

fn has_run(stage: &Stage, id: &str) {
    let is_run = |call: &Call| call.is_run() && call.body["task_id"] == id;
    stage.node.call("run", is_run);
}

#[test]
fn gpus_are_exclusive_and_block_no_other_job() {
    let held = Held::default();
    let holder = held.clone();
    let stage = Stage::set(move |_, call, answer| holder.run(call, answer));
    let mut report = capability("box", &stage.node.url);
    report["sandbox"]["features"] = json!(["gpus"]);
    report["sandbox"]["max_concurrency"] = 4.into();
    report["gpu"] = json!({"present": true, "devices": [{"id": "0"}, {"id": "1"}]});
    stage.node.report(&report).expect(204);
    let gpus = || stage.user.get("/v1/nodes").json(200)["nodes"][0]["gpus"].clone();
    assert_eq!(gpus(), json!({"total": 2, "free": 2, "busy": 0}));

    let one = stage.create(json!({"gpus": 1}));
    has_run(&stage, &one);
    assert_eq!(gpus(), json!({"total": 2, "free": 1, "busy": 1}));
    let two = stage.create(json!({"gpus": 2}));
    let all = stage.create(json!({"gpus": "all"}));
    assert_eq!(waits(&stage, &two), "needs 2 GPUs; box has 1 free of 2");
    assert_eq!(
        waits(&stage, &all),
        "needs all GPUs of a node; box has 1 free of 2"
    );
    let many = stage.create(json!({"gpus": 3}));
    assert_eq!(
        waits(&stage, &many),
        "needs 3 GPUs, which no suitable node has; box has 2"
    );
    // Neither a job without a GPU waits, nor one for the other GPU.
    for changes in [json!({}), json!({"gpus": ["1"]})] {
        let id = stage.create(changes);
        has_run(&stage, &id);
        held.release(&id);
        assert_eq!(node_of(&stage, &id), "box");
    }
    held.release(&one);
    assert_eq!(node_of(&stage, &one), "box");
    for id in [&two, &all] {
        has_run(&stage, id);
        held.release(id);
        assert_eq!(node_of(&stage, id), "box");
    }
    assert_eq!(gpus(), json!({"total": 2, "free": 2, "busy": 0}));
}

#[test]
fn node_that_forbids_image_is_not_asked() {
    let stage = Stage::set(|_, call, answer| well(call, answer));
    let mut report = capability("box", &stage.node.url);
    report["sandbox"]["allowed_images"] = json!(["docker.io/*"]);
    stage.node.report(&report).expect(204);
    let _other = join(&stage, "other", |report| {
        report["sandbox"]["local_images"] = json!(["localhost/mine:latest"]);
    });
    for _ in 0..4 {
        let id = stage.create(json!({"image": "localhost/mine"}));
        assert_eq!(node_of(&stage, &id), "other");
    }
    assert_eq!(stage.attempts(), [] as [u64; 0]);
    // Where none has the image, one is asked nevertheless, and says so itself.
    let id = stage.create(json!({"image": "localhost/none"}));
    let asked = node_of(&stage, &id);
    assert!(["box", "other"].contains(&asked.as_str()), "{asked}");
    // A node that doesn't say which images it has may have it.
    let _third = join(&stage, "third", |_| {});
    for _ in 0..4 {
        let id = stage.create(json!({"image": "localhost/none"}));
        assert_eq!(node_of(&stage, &id), "third");
    }
}
