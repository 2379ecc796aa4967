//! Databases of other versions: an older one is brought up to date at the start, a newer one is
//! left alone.

use crate::support::{Orchestrator, PASSWORD, process, server::role, stand_in::capability, uuid};
use rusqlite::{Connection, params};
use serde_json::json;
use std::{fs, path::Path};

/// An orchestrator's database of this version, made by this SQL.
fn database(home: &Path, version: i64, schema: &str) -> Connection {
    let data_dir = home.join("orchestrator");
    fs::create_dir_all(&data_dir).unwrap();
    let database = Connection::open(data_dir.join("cynode.db")).unwrap();
    database.execute_batch(schema).unwrap();
    database
        .pragma_update(None, "user_version", version)
        .unwrap();
    database
}

#[test]
fn version_1_database_is_migrated_whole() {
    let home = tempfile::tempdir().unwrap();
    let old = database(home.path(), 1, include_str!("../fixtures/schema-v1.sql"));
    let [user, node, task, job] = [(); 4].map(|()| uuid());
    let password = cynode::identity::hash_password(PASSWORD).unwrap();
    let report = capability("attic", "http://127.0.0.1:1").to_string();
    let spec = json!({
        "sandbox": {"image": "docker.io/library/alpine:latest", "command": ["echo", "hello"]},
        "node_labels": [], "max_attempts": 3,
    })
    .to_string();
    let now = "2026-01-01T00:00:00.000Z";
    let result = json!({
        "version": 1, "task_id": task, "job_id": job, "attempt": 1, "status": "completed",
        "exit_code": 0, "stdout": "hello\n", "stderr": "", "started_at": now, "ended_at": now,
        "truncated": {"stdout": false, "stderr": false},
    });
    old.execute(
        "INSERT INTO users VALUES (?1, 'admin', NULL, ?2, 1, 1, 5, 5)",
        params![user, password],
    )
    .unwrap();
    old.execute(
        "INSERT INTO nodes VALUES (?1, 'attic', 5, 5, 0, ?2, '', NULL, NULL, 1, 1, 'applied', NULL, 5)",
        params![node, report],
    )
    .unwrap();
    old.execute(
        "INSERT INTO tasks VALUES (?1, ?2, 'completed', 'greeting', ?3, 'done', 0, 5, 7, 6, 7)",
        params![task, user, spec],
    )
    .unwrap();
    old.execute(
        "INSERT INTO jobs VALUES (?1, ?2, 'completed', 1, 3, 5, ?3, 0, ?4, '[]', 5, 6, 7)",
        params![job, task, node, result.to_string()],
    )
    .unwrap();
    drop(old);

    // What ended in 1970 would not be kept for long.
    let orchestrator = Orchestrator::start(home.path(), &["--retain=0", "--new-keys"]);
    let user = orchestrator.login();
    let node = user.get("/v1/nodes/attic").json(200);
    assert_eq!(node["status"], "offline", "{node}");
    let shown = user.get(&format!("/v1/tasks/{task}")).json(200);
    assert_eq!(
        (&shown["task_name"], &shown["command"], &shown["status"]),
        (
            &json!("greeting"),
            &json!(["echo", "hello"]),
            &json!("completed")
        )
    );
    let ended = user.get(&format!("/v1/tasks/{task}/result")).json(200);
    let ended = &ended["jobs"][0];
    assert_eq!(
        (&ended["id"], &ended["node_slug"], &ended["result_object"]),
        (&json!(job), &json!("attic"), &result)
    );
    user.post("/v1/tasks", &json!({"command": ["true"]}))
        .expect(201);
    let now = Connection::open(orchestrator.data_dir.join("cynode.db")).unwrap();
    let shrinks: i64 = now
        .pragma_query_value(None, "auto_vacuum", |row| row.get(0))
        .unwrap();
    assert_eq!(shrinks, 2, "it gives space back");
}

#[test]
fn newer_database_is_refused_unchanged() {
    let home = tempfile::tempdir().unwrap();
    drop(database(home.path(), 1000, "CREATE TABLE unheard_of (x)"));
    let data_dir = home.path().join("orchestrator");
    let mut command = role(home.path(), "serve-orchestrator", &data_dir);
    command.args([
        "--gateway-listen=127.0.0.1:0",
        "--control-listen=127.0.0.1:0",
    ]);
    let done = process::run(&mut command);
    assert_eq!(done.code, 8, "{done:?}");
    for text in ["cynode.db", "newer cynode", "schema 1000", "backup"] {
        assert!(done.stderr.contains(text), "{text}: {}", done.stderr);
    }
    let left = Connection::open(data_dir.join("cynode.db")).unwrap();
    let tables: i64 = left
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 1);
}
