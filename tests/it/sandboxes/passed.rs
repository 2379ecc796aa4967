//! Calls that pass to the node of a sandbox: its execs, files and terminals, and those of running tasks.

use super::{Scene, delete, keep, path, report};
use crate::support::{Answer, Call, Reply, StandIn, eventually, raw, uuid};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    sync::{Arc, Mutex},
};

/// Answer of a node to an exec.
fn exec_result(call: &Call) -> Value {
    json!({
        "exec_id": call.body["exec_id"], "status": "exited", "exit_code": 0, "command": ["true"],
        "started_at": "2026-01-01T00:00:00Z", "duration_ms": 1, "stdout": "hello\n", "stderr": "", "truncated": false,
    })
}

pub(super) fn answer_execs(call: &Call, answer: Answer) {
    match call.path.contains("/exec") {
        true => answer.status(200, &exec_result(call)),
        false => answer.problem(404, "not-found"),
    }
}

fn is_session(call: &Call) -> bool {
    call.path.starts_with("/v1/worker/sessions/")
}

#[test]
fn exec_passes_to_node_and_back() {
    let scene = Scene::with(&[], answer_execs);
    let sandbox = scene.running(&json!({"name": "dev"}));
    let body = json!({"command": ["echo", "hello"], "timout_seconds": 5});
    let answered = scene.admin.post("/v1/sandboxes/dev/exec", &body).json(200);
    assert_eq!(answered["stdout"], "hello\n");
    assert_eq!(
        answered["warnings"][0]["field"], "timout_seconds",
        "{answered}"
    );
    let call = scene.node.call("exec", is_session);
    let job = scene.job(&sandbox);
    assert_eq!(
        (call.method.as_str(), call.path),
        ("POST", format!("/v1/worker/sessions/{job}/exec"))
    );
    assert_ne!(
        call.token,
        scene.admin.token(),
        "the user's token stays here"
    );
    assert_eq!(call.body["command"], json!(["echo", "hello"]));
    assert_eq!(
        call.body["exec_id"], answered["exec_id"],
        "it has an id from the start"
    );
    // The answer waits for the record.
    let events = scene.admin.get("/v1/audit?action=sandbox.exec").json(200);
    let event = &events["events"][0];
    assert_eq!(
        (&event["actor"], &event["target"]),
        (&json!("admin"), &sandbox["id"])
    );
    let reason = format!("exec {}", answered["exec_id"].as_str().unwrap());
    assert_eq!(event["reason"], reason);
    assert!(!event.to_string().contains("hello"), "never what it ran");
}

#[test]
fn own_id_of_exec_passes() {
    let scene = Scene::with(&[], answer_execs);
    scene.running(&json!({"name": "dev"}));
    let id = uuid();
    let body = json!({"script": "true", "exec_id": id, "background": true});
    let answered = scene
        .admin
        .post("/v1/sandboxes/dev/exec?encoding=base64", &body);
    assert_eq!(answered.json(200)["exec_id"], id);
    let call = scene.node.call("exec", is_session);
    assert!(
        call.path.ends_with("/exec?encoding=base64"),
        "{}",
        call.path
    );
    assert_eq!(
        (&call.body["background"], &call.body["script"]),
        (&json!(true), &json!("true"))
    );
    for body in [
        json!({}),
        json!({"command": []}),
        json!({"script": "x", "cwd": ""}),
    ] {
        let refused = scene.admin.post("/v1/sandboxes/dev/exec", &body);
        refused.problem(400, "invalid-request");
    }
    assert_eq!(scene.node.calls().into_iter().filter(is_session).count(), 1);
}

#[test]
fn only_known_parts_of_answer_pass() {
    let scene = Scene::with(&[], |call, answer| {
        let rest = call.path.split('/').nth(5).unwrap_or_default();
        let raw = |mut answer: Answer, head: &str, body: &str| {
            let head = format!(
                "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            answer.add(&head);
        };
        match rest {
            "files?path=page" => raw(
                answer,
                "200 OK\r\nContent-Type: text/html\r\nSet-Cookie: a=b\r\nLocation: http://evil.example",
                "<script>",
            ),
            "files?path=login" => answer.problem(401, "unauthorized"),
            "files?path=moved" => answer.redirect(302, "http://evil.example"),
            "files?path=text" => answer.text(500, "panicked at /home/op/secret"),
            "files?path=none" => {
                let problem = json!({
                    "type": "https://cynode.ai/problems/not-found", "title": "x", "status": 404,
                    "detail": "there is no\u{1b}[31m file", "instance": "theirs",
                });
                answer.status(404, &problem);
            }
            _ => answer.text(404, "404 page not found"),
        }
    });
    scene.running(&json!({"name": "dev"}));
    let get = |name: &str| scene.admin.get(&format!("/v1/sandboxes/dev/{name}"));
    let page = get("files?path=page");
    assert_eq!((page.status, page.text().as_str()), (200, "<script>"));
    assert_eq!(
        page.header("content-type"),
        Some("application/octet-stream")
    );
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    for name in ["set-cookie", "location"] {
        assert_eq!(page.header(name), None, "{name}");
    }
    for name in ["login", "moved", "text"] {
        let problem = get(&format!("files?path={name}")).problem(503, "unavailable");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("node box") && !detail.contains("secret"),
            "{detail}"
        );
    }
    let problem = get("files?path=none").problem(404, "not-found");
    assert_eq!(problem["detail"], "there is no [31m file");
    let problem = get("execs").problem(409, "conflict");
    assert!(
        problem["detail"].as_str().unwrap().contains("upgrade"),
        "{problem}"
    );
}

#[test]
fn output_passes_as_it_comes() {
    let next = Arc::new(Mutex::new(false));
    let go_on = Arc::clone(&next);
    let scene = Scene::with(&[], move |call, answer| {
        let mut pieces = answer.pieces("text/event-stream");
        pieces.send("id: 1-1\nevent: stdout\ndata: {\"data\":\"a\"}\n\n");
        eventually("the test has read it", || {
            next.lock().unwrap().then_some(())
        });
        assert_eq!(
            call.headers
                .iter()
                .find(|(name, _)| name == "last-event-id")
                .unwrap()
                .1,
            "1-0"
        );
        pieces.send("id: 1-2\nevent: exit\ndata: {}\n\n");
        pieces.end();
    });
    scene.running(&json!({"name": "dev"}));
    let call = format!("/v1/sandboxes/dev/execs/{}/logs?follow=true", uuid());
    let mut events = scene.admin.events(&call, Some("1-0"));
    assert_eq!(events.next().unwrap().name, "stdout");
    *go_on.lock().unwrap() = true;
    assert_eq!(events.next().unwrap().name, "exit");
    assert!(events.next().is_none());
}

#[test]
fn caller_that_leaves_ends_call_at_node() {
    let left = Arc::new(Mutex::new(false));
    let has_left = Arc::clone(&left);
    let scene = Scene::with(&[], move |_, answer| {
        let mut pieces = answer.pieces("text/event-stream");
        pieces.send("event: started\ndata: {}\n\n");
        pieces.wait_gone();
        *left.lock().unwrap() = true;
    });
    scene.running(&json!({"name": "dev"}));
    let call = format!("/v1/sandboxes/dev/execs/{}/logs?follow=true", uuid());
    let mut events = scene.admin.events(&call, None);
    assert_eq!(events.next().unwrap().name, "started");
    drop(events);
    eventually("the node's call has ended", || {
        has_left.lock().unwrap().then_some(())
    });
}

#[test]
fn files_of_any_bytes_pass() {
    let scene = Scene::with(&[], |call, answer| match call.method.as_str() {
        "GET" => answer.bytes(200, "application/octet-stream", &"x".repeat(1 << 20)),
        _ => answer.status(204, &Value::Null),
    });
    let sandbox = scene.running(&json!({"name": "dev"}));
    let admin = &scene.admin;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    let call = "/v1/sandboxes/dev/files?path=%2Fworkspace%2Fa%20b&mode=0755";
    admin
        .call(
            "PUT",
            call,
            &[("Content-Type", "application/octet-stream")],
            &bytes,
        )
        .expect(204);
    let written = scene.node.call("write", |call| call.method == "PUT");
    assert_eq!(written.text.as_bytes(), bytes);
    let job = scene.job(&sandbox);
    let at_node = format!("/v1/worker/sessions/{job}/files?path=%2Fworkspace%2Fa%20b&mode=0755");
    assert_eq!(written.path, at_node, "the query passes as it is");
    assert_eq!(
        admin.get("/v1/sandboxes/dev/files?path=a").body.len(),
        1 << 20
    );
    delete(admin, "/v1/sandboxes/dev/files?path=a&recursive=true").expect(204);
    admin
        .post("/v1/sandboxes/dev/files:mkdir", &json!({"path": "d"}))
        .expect(204);
    let made = scene.node.call("make a directory", |call| {
        call.path.ends_with("/files:mkdir")
    });
    assert_eq!(made.body, json!({"path": "d"}));
    admin
        .get("/v1/sandboxes/dev/execs/..%2F..%2Fjobs")
        .problem(404, "not-found");
}

#[test]
fn ended_sandbox_is_gone_with_its_reason() {
    let scene = Scene::with(&[], answer_execs);
    let sandbox = scene.running(&json!({"name": "dev"}));
    scene.end(&sandbox, "timeout", Some("idle"));
    for reply in [
        scene
            .admin
            .post("/v1/sandboxes/dev/exec", &json!({"script": "true"})),
        scene.admin.get("/v1/sandboxes/dev/files?path=a"),
        scene.admin.get(&path(&sandbox, "/terminal")),
    ] {
        let problem = reply.problem(410, "gone");
        assert_eq!(
            problem["detail"],
            "the sandbox has ended: idle; create a new one"
        );
    }
    assert!(!scene.node.calls().iter().any(is_session));
}

#[test]
fn call_waits_for_sandbox_to_run() {
    let scene = Scene::with(&[], answer_execs);
    let body = json!({"name": "dev", "node": "late", "wait_seconds": 0});
    scene.admin.post("/v1/sandboxes", &body).json(201);
    let admin = scene.admin.clone();
    let exec = std::thread::spawn(move || {
        admin.post("/v1/sandboxes/dev/exec", &json!({"script": "true"}))
    });
    let ends = scene.ends.clone();
    let mut late = StandIn::start(
        &scene.orchestrator,
        "late",
        move |call, answer| match is_session(call) {
            true => answer_execs(call, answer),
            false => keep(&ends, call, answer),
        },
    );
    late.join();
    report(&late, 1);
    let reply: Reply = exec.join().unwrap();
    assert_eq!(reply.json(200)["stdout"], "hello\n");
}

#[test]
fn silent_node_is_not_waited_for() {
    let scene = Scene::with(&[], |_, answer| drop(answer));
    scene.running(&json!({"name": "dev"}));
    let reply = scene
        .admin
        .post("/v1/sandboxes/dev/exec", &json!({"script": "true"}));
    let problem = reply.problem(503, "unavailable");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("same exec_id"), "{detail}");
    assert!(reply.header("retry-after").is_some());
    drop(scene.node);
    let reply = scene.admin.get("/v1/sandboxes/dev/execs");
    reply.problem(503, "unavailable");
    assert!(reply.header("retry-after").is_some());
}

#[test]
fn exec_reaches_sandbox_of_running_task() {
    let scene = Scene::with(&[], answer_execs);
    let admin = &scene.admin;
    let task = admin
        .post("/v1/tasks", &json!({"script": "sleep 1", "task_name": "t"}))
        .json(201);
    let script = json!({"script": "true"});
    admin.post("/v1/tasks/t/exec", &script).expect(200);
    let call = scene.node.call("exec", is_session);
    let job = scene.job(&task);
    assert_eq!(call.path, format!("/v1/worker/sessions/{job}/exec"));
    admin.get("/v1/tasks/t/execs").expect(200);
    let ann = scene.orchestrator.add_user(admin, "ann");
    ann.post("/v1/tasks/t/exec", &script)
        .problem(404, "not-found");
    admin.act("/v1/tasks/t/cancel").expect(200);
    let problem = admin.post("/v1/tasks/t/exec", &script).problem(410, "gone");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .starts_with("the task has ended"),
        "{problem}"
    );
}

#[test]
fn terminal_becomes_connection_of_node() {
    let scene = Scene::with(&[], |call, mut answer| {
        let has =
            |name: &str, value: &str| call.headers.contains(&(name.to_owned(), value.to_owned()));
        assert!(
            has("upgrade", "websocket") && has("sec-websocket-key", "eDl4OXg5eDl4OXg5eDl4OQ=="),
            "{call:?}"
        );
        answer.add(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSet-Cookie: a=b\r\n\
             Sec-WebSocket-Accept: x\r\n\r\nfrom the node\n",
        );
        answer.wait_gone();
    });
    scene.running(&json!({"name": "dev"}));
    let mut stream = raw::connect_to(&scene.admin);
    let request = format!(
        "GET /v1/sandboxes/dev/terminal?cols=100 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eDl4OXg5eDl4OXg5eDl4OQ==\r\n\r\n",
        scene.admin.address(),
        scene.admin.token()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    assert!(head[0].starts_with("HTTP/1.1 101 "), "{head:?}");
    assert!(
        head.iter()
            .any(|line| line.eq_ignore_ascii_case("sec-websocket-accept: x")),
        "{head:?}"
    );
    assert!(
        !head
            .iter()
            .any(|line| line.to_lowercase().starts_with("set-cookie")),
        "{head:?}"
    );
    assert_eq!(lines.next().unwrap(), "from the node");
    let call = scene.node.call("open a terminal", is_session);
    assert!(
        call.path.contains("/terminal?cols=100&exec_id="),
        "{}",
        call.path
    );
    let events = eventually("the terminal is recorded", || {
        let events = scene.admin.get("/v1/audit?action=sandbox.exec").json(200);
        events["events"].get(0).cloned()
    });
    assert!(
        events["reason"]
            .as_str()
            .unwrap()
            .starts_with("terminal, exec "),
        "{events}"
    );
}
