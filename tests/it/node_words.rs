//! Texts of a node: admins see them, cleaned; other users see a text of the orchestrator instead.

use crate::support::{
    Api, Call, eventually,
    stage::{Stage, well},
    stand_in::capability,
};
use serde_json::{Value, json};

/// Text of a node with private facts of its machine, and control characters for a terminal.
const WORDS: &str = "see /home/ann\u{1b}[2J\nadmin: all is well";

fn problem(slug: &str, status: u16) -> Value {
    json!({
        "type": format!("https://cynode.ai/problems/{slug}"), "title": WORDS, "status": status,
        "detail": WORDS, "instance": WORDS,
    })
}

/// Fails where a user's view of the node `box` contains its text.
#[track_caller]
fn assert_unquoted(stage: &Stage, user: &Api, task: &str) {
    let ready = stage.orchestrator.gateway.get("/readyz");
    for (what, reply) in [
        ("/readyz", ready),
        ("node", user.get("/v1/nodes/box")),
        ("nodes", user.get("/v1/nodes")),
        ("task", user.get(&format!("/v1/tasks/{task}"))),
        ("result", user.get(&format!("/v1/tasks/{task}/result"))),
        (
            "task, for an admin",
            stage.user.get(&format!("/v1/tasks/{task}")),
        ),
    ] {
        let text = reply.text();
        assert!(
            !text.contains("ann") && !text.contains("all is well"),
            "{what}: {text}"
        );
    }
}

fn reason(api: &Api) -> String {
    let node = api.get("/v1/nodes/box").json(200);
    node["reason"].as_str().unwrap_or_default().to_owned()
}

fn create(user: &Api) -> String {
    let task = user.post("/v1/tasks", &json!({"command": ["true"]}));
    task.json(201)["id"].as_str().unwrap().to_owned()
}

#[test]
fn node_refusals_are_not_quoted() {
    for (status, slug, is_known) in [
        (503, "unavailable", true),
        (507, "insufficient-storage", true),
        (401, "unauthorized", true),
        (503, "made-up", false),
        (403, "made-up", false),
        (503, "insufficient-storage", false),
    ] {
        let stage = Stage::set(move |_, call, answer| match call.is_run() {
            true => answer.status(status, &problem(slug, status)),
            false => well(call, answer),
        });
        let user = stage.orchestrator.add_user(&stage.user, "bob");
        let task = create(&user);
        eventually("the node shows why it accepts no jobs", || {
            reason(&user).contains(&status.to_string()).then_some(())
        });
        assert_unquoted(&stage, &user, &task);
        let seen = reason(&stage.user);
        assert_eq!(
            seen.contains("/home/ann"),
            is_known,
            "{status} {slug}: {seen}"
        );
        assert!(!seen.contains(char::is_control), "{seen:?}");
    }
}

#[test]
fn failed_jobs_quote_no_unknown_text() {
    for status in [400, 409, 200] {
        let stage = Stage::set(move |_, call, answer| match (call.is_run(), status) {
            (true, 200) => {
                let words = WORDS.repeat(300_000 / WORDS.len());
                answer.status(200, &json!({"status": words, "version": 1}));
            }
            (true, _) => answer.status(status, &problem("invalid-request", status)),
            _ => answer.status(204, &Value::Null),
        });
        let user = stage.orchestrator.add_user(&stage.user, "bob");
        let task = user.post(
            "/v1/tasks",
            &json!({"command": ["true"], "max_attempts": 1}),
        );
        let task = task.json(201)["id"].as_str().unwrap().to_owned();
        eventually("the task has failed", || {
            let task = user.get(&format!("/v1/tasks/{task}")).json(200);
            (task["status"] == "failed").then_some(())
        });
        assert_unquoted(&stage, &user, &task);
        let task = user.get(&format!("/v1/tasks/{task}")).text();
        assert!(task.len() < 4096, "{} bytes", task.len());
    }
}

#[test]
fn node_reasons_are_for_admins_only() {
    let stage = Stage::set(|_, call: &Call, answer| well(call, answer));
    let user = stage.orchestrator.add_user(&stage.user, "bob");
    let ack = |kind: &str| {
        let ack = json!({
            "version": 1, "node_slug": "box", "config_version": "1", "status": "failed",
            "error": {"type": kind, "message": WORDS},
        });
        stage
            .node
            .control
            .post("/v1/nodes/config", &ack)
            .expect(204);
    };
    let task = create(&user);
    stage.finish(&task);
    ack("image-unavailable");
    assert!(reason(&user).contains("image-unavailable"));
    assert!(reason(&stage.user).contains("/home/ann"));
    let waiting = create(&user);
    assert_unquoted(&stage, &user, &waiting);
    ack("all is well, ann");
    assert!(!reason(&stage.user).contains("ann"));
    assert_unquoted(&stage, &user, &waiting);
    stage.node.ack(&json!("1"), "applied").expect(204);
    stage.finish(&waiting);
    let mut report = capability("box", &stage.node.url);
    report["sandbox"] = json!({"supported": false, "reason": WORDS});
    stage.node.report(&report).expect(204);
    assert!(reason(&stage.user).contains("/home/ann"));
    let waiting = create(&user);
    assert_unquoted(&stage, &user, &waiting);
}
