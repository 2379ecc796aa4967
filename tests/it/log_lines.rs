//! Logs of the roles: each event once, in the operator's terms, and nothing forged by strangers.

use crate::support::{
    Node, Orchestrator, Process,
    cluster::{finish, wait_ready},
    eventually,
    server::role,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::{fs, path::Path};

const JSON: [&str; 2] = ["--log-format", "json"];

/// All lines of a JSON log.
fn lines(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Fields of all lines with this message, above debug, and those of their spans.
fn named(log: &str, message: &str) -> Vec<Value> {
    let lines = lines(log)
        .into_iter()
        .filter(|line| line["level"] != "DEBUG" && line["fields"]["message"] == message);
    lines.map(with_spans).collect()
}

fn with_spans(mut line: Value) -> Value {
    let mut fields = line["fields"].take();
    for span in line["spans"].as_array().into_iter().flatten() {
        for (name, value) in span.as_object().into_iter().flatten() {
            if fields[name].is_null() {
                fields[name] = value.clone();
            }
        }
    }
    fields
}

#[test]
fn log_follows_task_by_id() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &JSON);
    let node = Node::start(home.path(), "box", &orchestrator.control_url, &JSON);
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    let create = |body: Value| {
        let task = user.post("/v1/tasks", &body).json(201);
        task["id"].as_str().unwrap().to_owned()
    };
    let fails = create(json!({"script": "exit 7"}));
    let no_image = create(json!({"script": "true", "image": "localhost/no-such:1"}));
    let waits = create(json!({"script": "true", "node_labels": ["nowhere"]}));
    for task in [&fails, &no_image] {
        assert_eq!(finish(&user, task)["status"], "failed");
    }
    user.act(&format!("/v1/tasks/{waits}/cancel")).expect(200);

    let log = orchestrator.process.stderr();
    let of = |task: &str, message: &str| {
        let mut found = named(&log, message);
        found.retain(|fields| fields["task"] == *task);
        assert_eq!(found.len(), 1, "{message} of {task}: {log}");
        found.remove(0)
    };
    for task in [&fails, &no_image, &waits] {
        let created = of(task, "task created");
        assert_eq!(
            (&created["user"], &created["route"]),
            (&json!("admin"), &json!("/v1/tasks"))
        );
        assert_eq!(created["request_id"].as_str().map(str::len), Some(36));
    }
    let started = of(&fails, "node accepted the task");
    assert_eq!(
        (&started["node"], &started["attempt"]),
        (&json!("box"), &json!(1))
    );
    let ended = of(&fails, "task ended");
    assert_eq!(
        (&ended["status"], &ended["exit_code"]),
        (&json!("failed"), &json!(7))
    );
    assert_eq!(of(&waits, "task ended")["status"], "canceled");

    let log = node.process.stderr();
    let ends = named(&log, "job ended");
    assert!(
        ends.iter()
            .any(|end| end["status"] == "failed" && end["exit_code"] == 7),
        "{ends:?}"
    );
    let refused = ends
        .iter()
        .find(|end| end["error_type"] == "image-not-found");
    let error = refused.unwrap_or_else(|| panic!("{ends:?}"))["error"]
        .as_str()
        .unwrap();
    assert!(!error.contains("JobError"), "{error}");
}

#[test]
fn log_fields_hold_no_debug_text() {
    fn visit(directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for call in text.split("tracing::").skip(1) {
                let call = &call[..call.find(");").unwrap_or(call.len())];
                if call.starts_with(|c: char| c.is_lowercase())
                    && [" = ?", "(?", ", ?"]
                        .iter()
                        .any(|debug| call.contains(debug))
                {
                    found.push(format!("{}: {call}", path.display()));
                }
            }
        }
    }
    let mut found = Vec::new();
    visit(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert_eq!(found, [""; 0]);
}

#[test]
fn failed_login_cannot_forge_log_lines() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let hostile = format!(
        "eve\n2026-01-01 INFO forged\u{1b}[31m\u{202e}{}",
        "x".repeat(20)
    );
    let secret = "a password that must not show";
    for handle in [hostile.as_str(), "admin", &"y".repeat(5000)] {
        let login = json!({"handle": handle, "password": secret});
        orchestrator
            .gateway
            .post("/v1/auth/login", &login)
            .expect(401);
    }
    let registration = json!({"psk": secret, "capability": crate::support::stand_in::capability("box", "http://127.0.0.1:1")});
    orchestrator
        .control
        .post("/v1/nodes/register", &registration)
        .expect(401);
    let log = orchestrator.process.stderr();
    let failed: Vec<_> = log
        .lines()
        .filter(|line| line.contains("login failed"))
        .collect();
    // A handle beyond the length limit is refused before any rate limit counts it, and must not fill the log.
    assert_eq!(failed.len(), 2, "{log}");
    for line in &failed {
        assert!(
            line.contains("WARN") && line.contains("address=127.0.0.1"),
            "{line}"
        );
        assert!(line.len() < 300, "{line}");
    }
    assert!(failed[0].contains(r"handle="), "{log}");
    assert!(failed[0].contains(r"eve\n2026-01-01 INFO forged"), "{log}");
    assert!(failed[1].contains(r#"handle="admin""#), "{log}");
    assert!(
        !log.contains(['\u{1b}', '\u{202e}']) && !log.contains(secret),
        "{log}"
    );
    let refused = log
        .lines()
        .find(|line| line.contains("wrong pre-shared key"));
    let refused = refused.unwrap_or_else(|| panic!("{log}"));
    assert!(
        refused.contains("WARN") && refused.contains("127.0.0.1"),
        "{refused}"
    );
}

/// Log of a node that has ended because it found no podman.
fn failed_start(home: &Path, more: &[&str]) -> String {
    let engine = ["--engine", "/nonexistent/podman"];
    let more = [&engine[..], more].concat();
    let mut node = Node::launch(home, "box", "http://127.0.0.1:1", &more);
    assert_eq!(node.process.code(), 8);
    node.process.stderr()
}

#[test]
fn failed_start_is_reported_once() {
    let home = tempfile::tempdir().unwrap();
    let text = failed_start(home.path(), &[]);
    assert_eq!(text.matches("/nonexistent/podman").count(), 1, "{text}");
    assert!(!text.contains("ERROR"), "{text}");
    assert!(
        text.lines().last().unwrap().starts_with("error: "),
        "{text}"
    );

    let log = failed_start(home.path(), &JSON);
    let errors: Vec<_> = lines(&log)
        .into_iter()
        .filter(|line| line["level"] == "ERROR")
        .collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert_eq!(log.matches("/nonexistent/podman").count(), 1, "{log}");
}

#[test]
fn missing_model_server_skips_step() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let node = Node::start(home.path(), "box", &orchestrator.control_url, &[]);
    wait_ready(&orchestrator);
    // The orchestrator is ready a moment before the node logs its last step.
    let log = eventually("the node logs that it takes jobs", || {
        let log = node.process.stderr();
        log.contains("the node takes jobs").then_some(log)
    });
    assert!(
        log.contains("start the Worker API") && log.contains("acknowledge"),
        "{log}"
    );
    assert!(!log.contains("start the model server"), "{log}");
}

#[test]
fn join_hint_names_real_port() {
    let home = tempfile::tempdir().unwrap();
    let mut command = role(
        home.path(),
        "serve-orchestrator",
        &home.path().join("orchestrator"),
    );
    let listen = [
        "--gateway-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
    ];
    let mut process = Process::start("orchestrator", home.path(), command.args(listen));
    let shown = eventually("the log shows how to join", || {
        process.assert_runs();
        let shown = process.stdout();
        shown.contains("stored in").then_some(shown)
    });
    let port = shown
        .split("--orchestrator http://127.0.0.1:")
        .nth(1)
        .unwrap();
    let port = port.split_whitespace().next().unwrap();
    assert!(
        shown.contains(&format!("--control-listen 0.0.0.0:{port})")),
        "{shown}"
    );
    assert_eq!(process.terminate(), 0);
}

#[test]
fn internal_error_is_logged_once_with_its_request() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &JSON);
    let user = orchestrator.login();
    Connection::open(home.path().join("orchestrator/cynode.db"))
        .unwrap()
        .execute_batch("ALTER TABLE tasks RENAME TO gone")
        .unwrap();
    let answer = user.get("/v1/tasks");
    let problem = answer.problem(500, "internal");
    assert!(!answer.text().contains("no such table"), "{problem}");
    let log = orchestrator.process.stderr();
    let mut lines = lines(&log);
    lines.retain(|line| line["fields"]["message"] == "request failed");
    assert_eq!(lines.len(), 1, "{log}");
    let spans = lines[0]["spans"].as_array().unwrap();
    assert_eq!(spans.last().unwrap()["request_id"], problem["instance"]);
    let error = lines[0]["fields"]["error"].as_str().unwrap();
    assert!(error.contains("no such table"), "{error}");
}
