//! Data of other releases: an older database is migrated at the start, and a newer one left alone; shim and worker
//! of different releases understand each other.

use crate::{
    shims::{WAITING, last, start_job},
    support::{
        Orchestrator, PASSWORD, Worker, eventually, process, server::role, stand_in::capability,
        uuid,
    },
};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
};

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
fn version_1_database_is_migrated_completely() {
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

    // Tasks that ended in 1970 would expire.
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
    assert_eq!(shrinks, 2, "the database frees space");
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

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Spool of a job whose command was begun by a shim of an earlier release, made after that of an ended job.
fn running_spool(template: &Path, job: &str) -> PathBuf {
    let spool = template.with_file_name(format!("{job}-1"));
    fs::create_dir(&spool).unwrap();
    let mut accepted = read_json(&template.join("job.json"));
    accepted["job_id"] = json!(job);
    fs::write(spool.join("job.json"), accepted.to_string()).unwrap();
    let container = json!(format!("cynode-{job}-1.1"));
    fs::write(spool.join("container"), container.to_string()).unwrap();
    fs::copy(template.join("log.0"), spool.join("log.0")).unwrap();
    spool
}

#[test]
fn shim_of_earlier_release_is_understood() {
    let mut worker = Worker::start(&[]);
    worker.run(&Worker::script("echo before"));
    worker.process.kill();
    let template = worker.spools().pop().unwrap();
    let job = uuid();
    let spool = running_spool(&template, &job);
    let listener = UnixListener::bind(spool.join("shim.sock")).unwrap();

    worker.start_again();
    let (mut shim, _) = listener.accept().unwrap();
    shim.write_all(b"!").unwrap();
    let job = json!({"job_id": job});
    let state = worker.api.get(&Worker::path(&job)).json(200);
    assert_eq!(state["status"], "running");
    let cancel = format!("{}:cancel", Worker::path(&job));
    worker.api.act(&cancel).json(200);
    let mut request = [0; 1];
    shim.read_exact(&mut request).unwrap();
    assert_eq!(&request, b"x", "the first and only thing it is sent");

    let mut end = read_json(&template.join("result.json"));
    end["job_id"] = job["job_id"].clone();
    end["status"] = json!("canceled");
    end.as_object_mut().unwrap().remove("exit_code");
    fs::write(spool.join("result.json"), end.to_string()).unwrap();
    shim.write_all(b"!").unwrap();
    let mut rest = Vec::new();
    drop(listener);
    shim.shutdown(std::net::Shutdown::Write).unwrap();
    shim.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "only the request to stop is sent");
    assert_eq!(last(worker.attach(&job, 0))["status"], "canceled");
}

#[test]
fn worker_of_earlier_release_is_understood() {
    let mut worker = Worker::start(&[]);
    let jobs = [(); 2].map(|()| start_job(&worker, WAITING));
    worker.process.kill();
    let owner = |job: &Value| {
        let name = format!("{}-1", job["job_id"].as_str().unwrap());
        let spool = worker.data_dir.join("worker/jobs").join(name);
        let mut owner = UnixStream::connect(spool.join("shim.sock")).unwrap();
        // Every byte is an update for it.
        assert!(owner.read(&mut [0; 64]).unwrap() > 0);
        (owner, spool)
    };
    let [(mut canceled, spool), (mut short, other)] = jobs.each_ref().map(owner);
    canceled.write_all(b"x").unwrap();
    let [used, reserve] = [7_u64 << 20, 9 << 20].map(u64::to_le_bytes);
    short
        .write_all(&[b"d", &used[..], &reserve[..]].concat())
        .unwrap();
    for spool in [spool, other] {
        eventually("the job has ended", || {
            spool.join("result.json").exists().then_some(())
        });
    }
    worker.start_again();
    let [canceled, short] = jobs.map(|job| last(worker.attach(&job, 0)));
    assert_eq!(canceled["status"], "canceled", "{canceled}");
    assert_eq!(short["error"]["type"], "out-of-disk", "{short}");
    let message = short["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("7 MiB") && message.contains("9 MiB"),
        "{message}"
    );
}
