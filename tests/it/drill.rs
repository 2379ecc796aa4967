//! A drill: an orchestrator on a restored data directory, which reads and neither calls nor changes anything.

use crate::support::{
    Orchestrator, Reply,
    client::client,
    eventually_eq,
    process::{Done, run},
    server::role,
    stage::{Stage, well},
    stand_in::capability,
};
use rusqlite::Connection;
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

/// Everything in these tables, row by row.
fn rows(home: &Path) -> Vec<String> {
    let database = Connection::open(home.join("orchestrator/cynode.db")).unwrap();
    let mut all = Vec::new();
    for table in ["users", "nodes", "tasks", "jobs"] {
        let sql = format!("SELECT * FROM {table} ORDER BY 1");
        let mut statement = database.prepare(&sql).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..columns).map(|n| format!("{:?}", row.get_ref(n).unwrap()));
            all.push(format!("{table}: {}", values.collect::<Vec<_>>().join(" ")));
        }
    }
    all
}

/// Names and sizes of all files below a directory of the orchestrator.
fn files(home: &Path, name: &str) -> Vec<(PathBuf, u64)> {
    let mut left = vec![home.join("orchestrator").join(name)];
    let mut files = Vec::new();
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let size = fs::metadata(&path).unwrap().len();
                files.push((path, size));
            }
        }
    }
    files.sort();
    files
}

/// Contents and logs of the orchestrator.
fn kept_files(home: &Path) -> [Vec<(PathBuf, u64)>; 2] {
    ["contents", "logs"].map(|name| files(home, name))
}

/// Asserts that these calls were refused because of the drill.
fn assert_refused(calls: impl IntoIterator<Item = Reply>) {
    for reply in calls {
        let problem = reply.problem(503, "unavailable");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("runs as a drill"), "{detail}");
    }
}

#[test]
fn drill_reads_and_changes_nothing() {
    let stage = Stage::set(|run, call, answer| {
        if run < 2 {
            return well(call, answer);
        }
        let mut events = answer.stream();
        events.send(&json!({"event": "started", "attempt": 1, "seq": 1}));
        // It runs for as long as the test.
        loop {
            thread::park();
        }
    });
    let done = stage.create(json!({}));
    assert_eq!(stage.finish(&done).0["status"], "completed");
    let waiting = stage.create(json!({"node_labels": ["elsewhere"]}));
    let running = stage.create(json!({}));
    eventually_eq("the job runs", json!("running"), || {
        let task = stage.user.get(&format!("/v1/tasks/{running}")).json(200);
        task["status"].clone()
    });
    let Stage {
        mut node,
        orchestrator,
        home,
        ..
    } = stage;
    drop(orchestrator);
    let (before, called) = (rows(home.path()), node.calls().len());
    let kept_before = kept_files(home.path());

    let drill = Orchestrator::start(home.path(), &["--drill", "--retain=1s"]);
    let user = drill.login();
    let result = user.get(&format!("/v1/tasks/{done}/result")).json(200);
    assert_eq!(result["jobs"][0]["result_object"]["stdout"], "done\n");
    for (id, status) in [(&waiting, "queued"), (&running, "running")] {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        assert_eq!(task["status"], status, "{task}");
    }
    user.get(&format!("/v1/tasks/{done}/logs")).expect(200);
    let shown = user.get("/v1/nodes/box").json(200);
    let reason = shown["reason"].as_str().unwrap();
    assert!(reason.contains("drill"), "{reason}");
    assert_eq!(shown["status"], "not_ready");
    let calls = [
        user.post("/v1/tasks", &json!({"command": ["true"]})),
        user.post("/v1/sandboxes", &json!({})),
        user.act(&format!("/v1/tasks/{running}/cancel")),
        user.act("/v1/nodes/box/drain"),
        user.get(&format!("/v1/tasks/{running}/terminal")),
        user.call("DELETE", &format!("/v1/tasks/{done}"), &[], b""),
        drill.gateway.get("/readyz"),
    ];
    assert_refused(calls);
    node.control = drill.control.with_token(node.control.token());
    let calls = [
        node.ask_to_register(),
        node.report(&capability("box", &node.url)),
        node.ack(&json!("1"), "applied"),
    ];
    assert_refused(calls);
    let mut status = client(home.path(), &drill.gateway_url, &["status"]);
    let status = run(status.env("CYNODE_TOKEN", user.token()));
    assert!(status.stdout.contains("runs as a drill"), "{status:?}");
    let log = drill.process.stderr();
    assert!(log.contains("runs as a drill"), "{log}");
    drop(drill);
    assert_eq!(rows(home.path()), before);
    assert_eq!(kept_files(home.path()), kept_before);
    assert_eq!(node.calls().len(), called, "{:?}", node.calls());
}

/// Starts a drill that can't start.
fn refused_drill(home: &Path) -> Done {
    let mut command = role(home, "serve-orchestrator", &home.join("orchestrator"));
    let listen = [
        "--gateway-listen=127.0.0.1:0",
        "--control-listen=127.0.0.1:0",
    ];
    let refused = run(command.args(listen).arg("--drill"));
    assert_eq!(refused.code, 2, "{refused:?}");
    refused
}

#[test]
fn drill_needs_restored_data_directory() {
    let home = tempfile::tempdir().unwrap();
    let refused = refused_drill(home.path());
    assert!(refused.stderr.contains("restored backup"), "{refused:?}");
    let data_dir = home.path().join("orchestrator");
    assert!(!data_dir.join("cynode.db").exists());
    assert!(!data_dir.join("keys").exists());
}

#[test]
fn drill_creates_no_missing_keys() {
    let home = tempfile::tempdir().unwrap();
    drop(Orchestrator::start(home.path(), &[]));
    let key = home.path().join("orchestrator/keys/user-token.key");
    fs::remove_file(&key).unwrap();
    let refused = refused_drill(home.path());
    for word in ["user-token.key", "restore keys/"] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    assert!(!key.exists());
}
