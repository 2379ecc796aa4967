//! Files and stdin of tasks at the orchestrator: what is stored, for how long, and what is refused.

use crate::{
    artifacts::{contents, path, put, wait_empty},
    support::{Orchestrator, eventually},
};
use cynode::digest::sha256_hex;
use serde_json::{Value, json};

#[test]
fn content_stays_while_queued_task_needs_it() {
    let home = tempfile::tempdir().unwrap();
    let user = Orchestrator::start(home.path(), &[]).login_held();
    let artifact = put(&user.api, "data/in.csv", b"of the artifact");
    let task = json!({
        "script": "true",
        "files": [
            {"path": "a.txt", "content": "é", "mode": "0755"},
            {"path": "b.bin", "content_base64": "/w=="},
            {"path": "c", "artifact_id": artifact["artifact_id"], "extract": true},
        ],
        "attachments": [artifact["artifact_id"]],
        "stdin": "in",
    });
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "k"),
    ];
    let create = || {
        user.api
            .call("POST", "/v1/tasks", &headers, task.to_string().as_bytes())
    };
    let created = create().json(201);
    user.api
        .call("DELETE", &path(&artifact), &[], b"")
        .expect(204);
    assert_eq!(create().json(201)["id"], created["id"], "the key decides");
    let database = rusqlite::Connection::open(home.path().join("orchestrator/cynode.db")).unwrap();
    let spec: String = database
        .query_row("SELECT spec FROM tasks", [], |row| row.get(0))
        .unwrap();
    let spec: Value = serde_json::from_str(&spec).unwrap();
    let files = spec["sandbox"]["files"].as_array().unwrap();
    let paths: Vec<_> = files.iter().map(|file| &file["path"]).collect();
    assert_eq!(paths, ["a.txt", "b.bin", "c", "data/in.csv"]);
    assert_eq!(files[0]["content"]["sha256"], sha256_hex("é"));
    assert_eq!(files[0]["mode"], "0755");
    assert_eq!(files[2]["extract"], true);
    assert_eq!(spec["sandbox"]["stdin"]["sha256"], sha256_hex("in"));
    // The clean-up has passed by once another content is gone.
    let other = put(&user.api, "x", b"other");
    user.api.call("DELETE", &path(&other), &[], b"").expect(204);
    let gone = home
        .path()
        .join("orchestrator/contents/objects")
        .join(sha256_hex("other"));
    eventually("another content is removed", || {
        (!gone.exists()).then_some(())
    });
    assert_eq!(contents(home.path(), "objects").len(), 4);
    let cancel = format!("/v1/tasks/{}/cancel", created["id"].as_str().unwrap());
    user.api.act(&cancel).expect(200);
    wait_empty(home.path());
}

#[test]
fn task_with_bad_files_is_refused_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--max-queued=0"];
    let user = Orchestrator::start(home.path(), &flags).login_held();
    let refused = |files: Value, pointer: &str| {
        let task = json!({"script": "true", "files": files});
        let problem = user
            .api
            .post("/v1/tasks", &task)
            .problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], pointer);
    };
    refused(json!([{"path": "../a", "content": ""}]), "#/files/0/path");
    refused(json!([{"path": "/etc/a", "content": ""}]), "#/files/0/path");
    refused(json!([{"path": "a"}]), "#/files/0");
    refused(
        json!([{"path": "a", "content": "", "content_base64": ""}]),
        "#/files/0",
    );
    refused(
        json!([{"path": "a", "content_base64": "?"}]),
        "#/files/0/content_base64",
    );
    refused(
        json!([{"path": "a", "artifact_id": "x"}]),
        "#/files/0/artifact_id",
    );
    refused(
        json!([{"path": "a", "content": "", "mode": "4755"}]),
        "#/files/0/mode",
    );
    let hostile = put(&user.api, "..%2F..%2Fetc%2Fpasswd", b"");
    let task = json!({"script": "true", "attachments": [hostile["artifact_id"]]});
    let problem = user
        .api
        .post("/v1/tasks", &task)
        .problem(400, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "#/attachments/0");
    user.api
        .call("DELETE", &path(&hostile), &[], b"")
        .expect(204);
    let task = json!({"script": "true", "files": [{"path": "a", "content": "b"}]});
    user.api.post("/v1/tasks", &task).problem(429, "queue-full");
    wait_empty(home.path());
}
