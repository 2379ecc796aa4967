//! Snapshots as the User API shows them, from nodes that record their calls and may lie.

use super::{Scene, delete, path};
use crate::support::{Answer, Api, Call, StandIn, eventually, stand_in::capability};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// Snapshots of a node.
#[derive(Clone, Default)]
struct Stored(Arc<Mutex<Vec<Value>>>);

impl Stored {
    /// Answers as a node that makes, lists and deletes them.
    fn answer(&self, call: &Call, answer: Answer) {
        let mut stored = self.0.lock().unwrap();
        let (path, query) = call
            .path
            .split_once('?')
            .unwrap_or((call.path.as_str(), ""));
        match (call.method.as_str(), path) {
            ("POST", path) if path.ends_with("/snapshot") => {
                let made = made(call.body["image"].as_str().unwrap());
                stored.push(made.clone());
                answer.status(201, &made);
            }
            ("GET", "/v1/worker/snapshots") => answer.status(200, &json!({"snapshots": *stored})),
            ("DELETE", "/v1/worker/snapshots") => {
                let image = query.strip_prefix("image=").unwrap();
                stored.retain(|one| one["image"] != image);
                answer.status(204, &Value::Null);
            }
            _ => answer.problem(404, "not-found"),
        }
    }
}

fn made(image: &str) -> Value {
    json!({"image": image, "image_id": "0", "size_bytes": 5, "created_at": "2020-01-01T00:00:00Z"})
}

/// Image of the snapshot of this name of a user.
fn image_of(user: &Api, name: &str) -> String {
    let me = user.get("/v1/users/me").json(200);
    format!(
        "localhost/cynode-snapshots/{}:{name}",
        me["id"].as_str().unwrap()
    )
}

/// Reports a node with snapshots, and the images that it has.
fn report(node: &StandIn, images: &[&str]) {
    let mut report = capability(&node.slug, &node.url);
    report["sandbox"]["max_concurrency"] = 8.into();
    report["sandbox"]["features"] = json!(["sessions", "snapshots"]);
    report["sandbox"]["local_images"] = json!(images);
    node.report(&report).expect(204);
}

fn scene(script: impl Fn(&Call, Answer) + Send + Sync + 'static) -> Scene {
    let scene = Scene::with(&[], script);
    report(&scene.node, &[]);
    scene
}

#[test]
fn snapshot_starts_others_and_belongs_to_user() {
    let stored = Stored::default();
    let node = stored.clone();
    let scene = scene(move |call, answer| node.answer(call, answer));
    let admin = &scene.admin;
    let ann = scene.orchestrator.add_user(admin, "ann");
    ann.post("/v1/sandboxes", &json!({"name": "dev"})).json(201);
    let base = json!({"name": "base"});
    let made = ann.post("/v1/sandboxes/dev/snapshot", &base).json(201);
    let expected = json!({
        "name": "base", "image": "snapshot:base", "node_slug": "box", "size_bytes": 5,
        "created_at": "2020-01-01T00:00:00.000Z",
    });
    assert_eq!(made, expected);
    assert_eq!(
        ann.get("/v1/snapshots").json(200),
        json!({"snapshots": [made]})
    );

    let image = image_of(&ann, "base");
    let from = json!({"image": "snapshot:base"});
    let fork = ann.post("/v1/sandboxes", &from).json(201);
    assert_eq!(
        (&fork["image"], &fork["status"]),
        (&from["image"], &json!("running"))
    );
    let is_its = |call: &Call| call.is_run() && call.body["task_id"] == fork["id"];
    let run = scene.node.call("run the fork", is_its);
    assert_eq!(run.body["sandbox"]["image"], image);
    let task = json!({"script": "true", "image": "snapshot:base", "node_labels": ["nowhere"]});
    let task = ann.post("/v1/tasks", &task).json(201);
    assert_eq!(task["image"], "snapshot:base");

    let listed = admin.get("/v1/snapshots").json(200);
    assert_eq!(listed, json!({"snapshots": []}), "each sees their own");
    for wanted in ["snapshot:base", &image, "snapshot:Base", "snapshot:"] {
        let refused = admin.post("/v1/sandboxes", &json!({"image": wanted}));
        let problem = refused.problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], "#/image", "{problem}");
        let task = json!({"script": "true", "image": wanted});
        let refused = admin.post("/v1/tasks", &task);
        let problem = refused.problem(400, "invalid-request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("cynode sandbox snapshots"), "{problem}");
    }
    delete(admin, "/v1/snapshots/base").problem(404, "not-found");
    let awaited = delete(&ann, "/v1/snapshots/base").problem(409, "conflict");
    let detail = awaited["detail"].as_str().unwrap();
    assert!(
        detail.contains("wait for the snapshot base: task "),
        "{detail}"
    );
    delete(&ann, "/v1/snapshots/base?force=maybe").problem(400, "invalid-request");
    delete(&ann, "/v1/snapshots/base?force=true").expect(204);
    let path = format!("/v1/tasks/{}", task["id"].as_str().unwrap());
    let ended = ann.get(&path).json(200);
    assert_eq!(ended["status"], "failed", "{ended}");
    let summary = "its image snapshot:base was deleted before it started";
    assert_eq!(ended["summary"], summary);
    delete(&ann, "/v1/snapshots/base").problem(404, "not-found");
    delete(&ann, "/v1/snapshots/A%20b").problem(404, "not-found");
    ann.post("/v1/sandboxes", &from)
        .problem(400, "invalid-request");
    assert!(stored.0.lock().unwrap().is_empty());
    let events = admin.get("/v1/audit?action=snapshot.delete").json(200);
    let outcomes = events["events"].as_array().unwrap().iter();
    let outcomes: Vec<_> = outcomes.map(|event| &event["outcome"]).collect();
    assert_eq!(outcomes, ["failure", "success", "failure", "failure"]);
}

#[test]
fn admin_sees_and_deletes_snapshots_of_others() {
    let stored = Stored::default();
    let node = stored.clone();
    let scene = scene(move |call, answer| node.answer(call, answer));
    let admin = &scene.admin;
    let ann = scene.orchestrator.add_user(admin, "ann");
    let stranger = "localhost/cynode-snapshots/0192d3a0-0000-7000-8000-000000000000:c";
    *stored.0.lock().unwrap() = vec![
        made(&image_of(&ann, "base")),
        made(&image_of(admin, "own")),
        made(stranger),
    ];
    let listed = |user: &str| {
        let list = admin.get(&format!("/v1/snapshots?user={user}")).json(200);
        let snapshots = list["snapshots"].as_array().unwrap().iter();
        let pairs = snapshots.map(|one| [&one["owner"], &one["name"]].map(ToString::to_string));
        pairs.map(|pair| pair.join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(listed("all"), [r#""admin" "own""#, r#""ann" "base""#]);
    assert_eq!(listed("ann"), [r#""ann" "base""#]);
    for user in ["all", "admin", "ann"] {
        let path = format!("/v1/snapshots?user={user}");
        ann.get(&path).problem(403, "forbidden");
    }
    admin
        .get("/v1/snapshots?user=nobody")
        .problem(404, "not-found");

    delete(&ann, "/v1/snapshots/own?user=admin").problem(403, "forbidden");
    delete(admin, "/v1/snapshots/base").problem(404, "not-found");
    delete(admin, "/v1/snapshots/base?user=nobody").problem(404, "not-found");
    delete(admin, "/v1/snapshots/base?user=ann").expect(204);
    let again = delete(admin, "/v1/snapshots/base?user=ann").problem(404, "not-found");
    let detail = again["detail"].as_str().unwrap();
    assert!(detail.contains("ann has no snapshot"), "{detail}");
    assert_eq!(listed("all"), [r#""admin" "own""#]);
    let events = admin.get("/v1/audit?action=snapshot.delete").json(200);
    let mut events = events["events"].as_array().unwrap().iter();
    let event = events.find(|event| event["outcome"] == "success").unwrap();
    assert_eq!(
        (&event["actor"], &event["target"]),
        (&json!("admin"), &json!("base of ann"))
    );
}

#[test]
fn snapshot_of_admin_is_owners() {
    let stored = Stored::default();
    let scene = scene(move |call, answer| stored.answer(call, answer));
    let admin = &scene.admin;
    let ann = scene.orchestrator.add_user(admin, "ann");
    let sandbox = ann.post("/v1/sandboxes", &json!({"name": "dev"})).json(201);
    let second = json!({"name": "second"});
    admin.post(&path(&sandbox, "/snapshot"), &second).json(201);
    let listed = ann.get("/v1/snapshots").json(200);
    assert_eq!(listed["snapshots"][0]["name"], "second", "{listed}");
    let event = eventually("the snapshot is recorded", || {
        let events = admin.get("/v1/audit?action=sandbox.snapshot");
        let events = events.json(200)["events"].as_array().cloned();
        let mut events = events.unwrap().into_iter();
        events.find(|event| event["actor"] == "admin")
    });
    assert_eq!(event["target"], sandbox["id"]);
    assert_eq!(event["reason"], "snapshot second of ann");
    let listed = admin.get("/v1/snapshots").json(200);
    assert_eq!(listed, json!({"snapshots": []}));
}

#[test]
fn snapshot_that_can_not_be_made_says_why() {
    let scene = scene(|call, answer| {
        let image = call.body["image"].as_str().unwrap_or_default();
        match image.rsplit(':').next().unwrap() {
            "full" => answer.problem(507, "insufficient-storage"),
            "busy" => answer.problem(409, "conflict"),
            "other" => answer.status(201, &made("localhost/cynode-snapshots/x:other")),
            "long" => {
                let mut long = made(image);
                long["image_id"] = "0".repeat(1 << 20).into();
                answer.status(201, &long);
            }
            _ => answer.status(200, &json!({})),
        }
    });
    let admin = &scene.admin;
    let sandbox = scene.running(&json!({"name": "dev"}));
    let post = |name: &str| {
        let body = json!({"name": name});
        admin.post("/v1/sandboxes/dev/snapshot", &body)
    };
    post("full").problem(507, "insufficient-storage");
    post("busy").problem(409, "conflict");
    for name in ["other", "long", "strange"] {
        post(name).problem(503, "unavailable");
    }
    for name in ["", "A", "a_b", "-a"] {
        let problem = post(name).problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], "#/name");
    }
    admin
        .post("/v1/sandboxes/none/snapshot", &json!({"name": "a"}))
        .problem(404, "not-found");

    let mut other = StandIn::idle(&scene.orchestrator, "other");
    other.join();
    report(&other, &[&image_of(admin, "full")]);
    let problem = post("full").problem(409, "conflict");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("on node other"), "{problem}");
    super::report(&scene.node, 8);
    let problem = post("full").problem(409, "conflict");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("update it"), "{problem}");

    scene.end(&sandbox, "failed", Some("idle"));
    post("full").problem(410, "gone");
}

#[test]
fn only_own_snapshots_of_nodes_are_listed() {
    let stored = Stored::default();
    let node = stored.clone();
    let scene = scene(move |call, answer| {
        if node.0.lock().unwrap().is_empty() {
            return answer.problem(503, "unavailable");
        }
        node.answer(call, answer);
    });
    let admin = &scene.admin;
    let listed = admin.get("/v1/snapshots").json(200);
    assert_eq!(
        listed,
        json!({"snapshots": [], "unreachable_nodes": ["box"]})
    );
    let own = |name: &str| made(&image_of(admin, name));
    *stored.0.lock().unwrap() = vec![
        own("b"),
        own("a"),
        own("a"),
        own("\u{1b}[2J"),
        made("localhost/cynode-snapshots/0192d3a0-0000-7000-8000-000000000000:c"),
        made("docker.io/library/alpine:latest"),
    ];
    let listed = admin.get("/v1/snapshots").json(200);
    let names = listed["snapshots"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|one| &one["name"]).collect();
    assert_eq!(names, ["a", "b"], "{listed}");
}

#[test]
fn job_of_snapshot_waits_for_its_node() {
    let scene = scene(|_, answer| answer.problem(404, "not-found"));
    let admin = &scene.admin;
    let mut other = StandIn::idle(&scene.orchestrator, "other");
    other.join();
    report(&other, &[]);
    report(&scene.node, &[&image_of(admin, "base")]);
    admin.act("/v1/nodes/box/drain").expect(204);
    let wanted = json!({"image": "snapshot:base", "wait_seconds": 0, "name": "waits"});
    let sandbox = admin.post("/v1/sandboxes", &wanted).json(201);
    assert_eq!(sandbox["status"], "queued", "{sandbox}");
    let detail = sandbox["detail"].as_str().unwrap();
    let expected = "its snapshot is on node box, which is not ready; node box: draining";
    assert!(detail.starts_with(expected), "{detail}");
    admin.act("/v1/nodes/box/resume").expect(204);
    eventually("it runs at its node", || {
        let shown = scene.get(&sandbox).json(200);
        (shown["status"] == "running" && shown["node_slug"] == "box").then_some(())
    });
}

#[test]
fn job_of_vanished_snapshot_ends() {
    let stored = Stored::default();
    let node = stored.clone();
    let scene = scene(move |call, answer| node.answer(call, answer));
    let admin = &scene.admin;
    admin
        .post("/v1/sandboxes", &json!({"name": "dev"}))
        .json(201);
    for name in ["base", "kept"] {
        let snapshot = json!({"name": name});
        admin
            .post("/v1/sandboxes/dev/snapshot", &snapshot)
            .json(201);
    }
    let create = |name: &str| {
        let image = format!("snapshot:{name}");
        let task = json!({"script": "true", "image": image, "node_labels": ["nowhere"]});
        let task = admin.post("/v1/tasks", &task).json(201);
        format!("/v1/tasks/{}", task["id"].as_str().unwrap())
    };
    let [task, kept] = ["base", "kept"].map(create);
    // Lost at the node, so that no call of the User API ends the job.
    let image = image_of(admin, "base");
    stored.0.lock().unwrap().retain(|one| one["image"] != image);
    report(&scene.node, &[]);
    let summary = eventually("the task ends", || {
        let shown = admin.get(&task).json(200);
        (shown["status"] == "failed").then(|| shown["summary"].clone())
    });
    let summary = summary.as_str().unwrap();
    let expected = "no node has its image snapshot:base any more";
    assert!(summary.starts_with(expected), "{summary}");
    assert_eq!(admin.get(&kept).json(200)["status"], "queued");
}
