//! Users of sandboxes: whose they are, and how their access ends.

use super::{Scene, passed::answer_execs, path};
use crate::support::{eventually, uuid};
use serde_json::json;

#[test]
fn end_of_access_cuts_call() {
    let scene = Scene::with(&[], |_, answer| {
        let mut pieces = answer.pieces("text/event-stream");
        pieces.send("event: started\ndata: {}\n\n");
        pieces.wait_gone();
    });
    let admin = &scene.admin;
    let ann = scene.orchestrator.add_user(admin, "ann");
    ann.post("/v1/sandboxes", &json!({"name": "dev"})).json(201);
    let call = format!("/v1/sandboxes/dev/execs/{}/logs?follow=true", uuid());
    let mut lines = ann.lines("GET", &call, &[("Accept", "text/event-stream")], b"");
    assert_eq!(lines.next().unwrap(), "event: started");
    let me = ann.get("/v1/users/me").json(200);
    admin
        .act(&format!("/v1/users/{}/disable", me["id"].as_str().unwrap()))
        .expect(204);
    let cut = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lines.count()));
    assert!(cut.is_err(), "the rest must not look whole");
}

#[test]
fn sandboxes_belong_to_their_users() {
    let scene = Scene::with(&[], answer_execs);
    let admin = &scene.admin;
    let ann = scene.orchestrator.add_user(admin, "ann");
    let bob = scene.orchestrator.add_user(admin, "bob");
    let hers = ann.post("/v1/sandboxes", &json!({"name": "dev"})).json(201);
    assert!(hers.get("owner").is_none(), "{hers}");
    let script = json!({"script": "true"});
    for name in ["dev", hers["id"].as_str().unwrap()] {
        bob.post(&format!("/v1/sandboxes/{name}/exec"), &script)
            .problem(404, "not-found");
        bob.get(&format!("/v1/sandboxes/{name}/files?path=a"))
            .problem(404, "not-found");
    }
    admin.post(&path(&hers, "/exec"), &script).expect(200);
    admin.get(&path(&hers, "/execs")).expect(200);
    for (action, reason) in [
        ("sandbox.exec", " of ann"),
        ("sandbox.access", "execs of ann"),
    ] {
        let event = eventually("the admin's access is recorded", || {
            let events = admin.get(&format!("/v1/audit?action={action}")).json(200);
            events["events"].get(0).cloned()
        });
        assert_eq!(
            (&event["actor"], &event["target"]),
            (&json!("admin"), &hers["id"])
        );
        assert!(
            event["reason"].as_str().unwrap().ends_with(reason),
            "{event}"
        );
    }
    let key = |scope: &str| {
        let body = json!({"name": "k", "scopes": [scope]});
        let key = ann.post("/v1/keys", &body).json(201);
        ann.with_token(key["key"].as_str().unwrap())
    };
    key("sandboxes")
        .post("/v1/sandboxes/dev/exec", &script)
        .expect(200);
    key("tasks")
        .post("/v1/sandboxes/dev/exec", &script)
        .problem(403, "forbidden");
    key("sandboxes").get("/v1/tasks").problem(403, "forbidden");
}
