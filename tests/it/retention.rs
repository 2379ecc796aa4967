//! Retention: finished tasks are deleted by age or number, expired data is deleted, and the
//! files shrink.

use crate::support::{
    Orchestrator, Reply,
    cluster::finish,
    eventually_eq,
    stage::{Stage, well},
    uuid,
};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

fn database(home: &Path) -> Connection {
    Connection::open(home.join("orchestrator/cynode.db")).unwrap()
}

/// Result of a query for one number.
fn number(home: &Path, sql: &str) -> i64 {
    database(home).query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Creates a task with an idempotency key, or repeats the request.
fn keyed(stage: &Stage, key: &str, command: &str) -> Reply {
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", key),
    ];
    let body = json!({"command": [command]}).to_string();
    stage
        .user
        .call("POST", "/v1/tasks", &headers, body.as_bytes())
}

fn id(reply: &Reply) -> String {
    let created = reply.json(201);
    created["id"].as_str().unwrap().to_owned()
}

#[test]
fn finished_tasks_beyond_limit_are_removed_completely() {
    let held = Arc::new(Mutex::new(Vec::new()));
    let hold = Arc::clone(&held);
    let home = tempfile::tempdir().unwrap();
    let stage = Stage::raise(
        home,
        &["--retain=0", "--retain-max=3"],
        move |_, call, answer| {
            if call.is_run() && call.body["sandbox"]["command"][0] == "hold" {
                hold.lock().unwrap().push(answer.stream());
            } else {
                well(call, answer);
            }
        },
    )
    .joined();
    let running = id(&keyed(&stage, "running", "hold"));
    let finished: Vec<String> = (0..6)
        .map(|n| {
            let id = id(&keyed(&stage, &format!("key {n}"), "true"));
            finish(&stage.user, &id);
            id
        })
        .collect();
    let listed = || {
        let list = stage.user.get("/v1/tasks").json(200);
        let tasks = list["tasks"].as_array().unwrap().clone();
        tasks
            .iter()
            .map(|task| task["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let kept = [&finished[5], &finished[4], &finished[3], &running].map(String::clone);
    eventually_eq("the newest are left", kept.to_vec(), listed);
    for path in ["", "/result", "/logs"] {
        let path = format!("/v1/tasks/{}{path}", finished[0]);
        stage.user.get(&path).problem(404, "not-found");
    }
    for (table, rows) in [("jobs", 4), ("idempotency_keys", 4), ("tasks", 4)] {
        let sql = format!("SELECT count(*) FROM {table}");
        assert_eq!(number(stage.home.path(), &sql), rows, "{table}");
    }
    assert_eq!(id(&keyed(&stage, "key 5", "true")), finished[5]);
    assert!(!finished.contains(&id(&keyed(&stage, "key 0", "true"))));
    held.lock().unwrap().clear();
}

#[test]
fn steady_deletion_keeps_file_size() {
    let home = tempfile::tempdir().unwrap();
    let stage = Stage::raise(home, &["--retain=10s"], |_, call, answer| {
        well(call, answer)
    })
    .joined();
    let size = || -> u64 {
        ["cynode.db", "cynode.db-wal"]
            .map(|name| {
                let path = stage.orchestrator.data_dir.join(name);
                fs::metadata(path).map_or(0, |file| file.len())
            })
            .iter()
            .sum()
    };
    let script = format!("# {}", "x".repeat(100_000));
    for _ in 0..120 {
        stage.create(json!({"command": null, "script": script}));
    }
    let largest = size();
    assert!(largest > 4 << 20, "{largest}");
    let kept = stage.create(json!({"node_labels": ["nobody"]}));
    let tasks = || number(stage.home.path(), "SELECT count(*) FROM tasks");
    eventually_eq("only unfinished tasks remain", 1, tasks);
    eventually_eq("its space is freed", true, || size() < 1 << 20);
    let shown = stage.user.get(&format!("/v1/tasks/{kept}")).json(200);
    assert_eq!(shown["status"], "queued");
}

#[test]
fn expired_data_is_removed() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--retain=1s"]);
    let user = orchestrator.login();
    let key = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "k"),
    ];
    let create = || -> Value {
        let body = br#"{"command": ["true"]}"#;
        user.call("POST", "/v1/tasks", &key, body).json(201)["id"].clone()
    };
    let first = create();
    let database = database(home.path());
    let (me, session): (String, String) = database
        .query_row("SELECT user_id, id FROM sessions", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    let long_ago = 5;
    database.execute_batch("BEGIN").unwrap();
    for n in 0..120 {
        let dead = uuid();
        let sql = "INSERT INTO sessions VALUES (?1, ?2, 1, ?3, NULL)";
        database.execute(sql, params![dead, me, long_ago]).unwrap();
        // Rows of a session that was ended early, and of an active one.
        let tokens = [(&dead, long_ago), (&dead, i64::MAX), (&session, long_ago)];
        for (k, (of, expires)) in tokens.into_iter().enumerate() {
            let sql = "INSERT INTO refresh_tokens VALUES (?1, ?2, ?3, NULL)";
            let token = format!("{n} {k}");
            database.execute(sql, params![token, of, expires]).unwrap();
        }
    }
    let sql = "UPDATE idempotency_keys SET created_at = ?1";
    database.execute(sql, [long_ago]).unwrap();
    database.execute_batch("COMMIT").unwrap();
    let rows = || {
        ["sessions", "refresh_tokens", "idempotency_keys"]
            .map(|table| number(home.path(), &format!("SELECT count(*) FROM {table}")))
    };
    eventually_eq("only active rows remain", [1, 1, 0], rows);
    user.get("/v1/users/me").expect(200);
    let again = create();
    assert_ne!(again, first);
    assert_eq!(create(), again, "an expired key can be used again");
}
