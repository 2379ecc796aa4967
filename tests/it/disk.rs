//! Full disks and damaged databases: the orchestrator reports them, accepts no new work, and
//! continues after recovery.

use crate::support::{
    Orchestrator, Worker,
    cluster::finish,
    disk::Disk,
    eventually, process,
    server::role,
    stage::{Stage, well},
    stand_in::capability,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Creates tasks with a long script until one is refused; returns the ids and the refusal.
fn create_until_refused(stage: &Stage) -> (Vec<String>, Value) {
    let task = json!({"script": format!("# {}", "x".repeat(50_000))});
    let mut ids = Vec::new();
    loop {
        let reply = stage.user.post("/v1/tasks", &task);
        if reply.status != 201 {
            return (ids, reply.problem(503, "unavailable"));
        }
        let created: Value = serde_json::from_slice(&reply.body).unwrap();
        ids.push(created["id"].as_str().unwrap().to_owned());
    }
}

/// Ids of all tasks, oldest first.
fn all_ids(stage: &Stage) -> Vec<String> {
    let list = stage.user.get("/v1/tasks?limit=200").json(200);
    assert_eq!(list["next_cursor"], "", "one page has all tasks");
    let tasks = list["tasks"].as_array().unwrap();
    let ids = tasks.iter().rev().map(|task| task["id"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

#[test]
fn full_disk_refuses_work_and_recovers() {
    let Some(disk) = Disk::of_kib(16 * 1024) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    disk.hold_orchestrator(home.path());
    let flags = ["--reserve-disk", "0"];
    let stage = Stage::raise(home, &flags, |_, call, answer| well(call, answer)).joined();
    stage.orchestrator.gateway.get("/readyz").expect(200);
    disk.fill_but(1024);

    let (mut accepted, refusal) = create_until_refused(&stage);
    for problem in [
        refusal,
        stage
            .orchestrator
            .gateway
            .get("/readyz")
            .problem(503, "unavailable"),
    ] {
        assert!(
            problem["detail"].as_str().unwrap().contains("is full"),
            "{problem}"
        );
    }
    assert!(!accepted.is_empty());
    assert_eq!(
        all_ids(&stage),
        accepted,
        "exactly the accepted tasks are stored"
    );
    // A task that would fit is refused, too.
    stage
        .user
        .post("/v1/tasks", &json!({"command": ["true"]}))
        .problem(503, "unavailable");

    disk.free();
    eventually("the orchestrator is ready again", || {
        stage
            .node
            .report(&capability(&stage.node.slug, &stage.node.url));
        (stage.orchestrator.gateway.get("/readyz").status == 200).then_some(())
    });
    accepted.push(stage.create(json!({})));
    for id in &accepted {
        assert_eq!(finish(&stage.user, id)["status"], "completed");
    }
    assert_eq!(all_ids(&stage), accepted);
    let Stage {
        mut orchestrator, ..
    } = stage;
    assert_eq!(orchestrator.process.terminate(), 0);
    assert_whole(&orchestrator.data_dir);
}

/// Fails unless the database is intact.
fn assert_whole(data_dir: &Path) {
    let database = Connection::open(data_dir.join("cynode.db")).unwrap();
    let verdict: String = database
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
    let halves: i64 = database
        .query_row(
            "SELECT (SELECT count(*) FROM pragma_foreign_key_check)
                  + (SELECT count(*) FROM tasks WHERE id NOT IN (SELECT task_id FROM jobs))",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(halves, 0);
}

/// Writes nonsense over the first page of a table.
pub(crate) fn damage(database: &Path, table: &str) {
    let connection = Connection::open(database).unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    let page: u64 = connection
        .query_row(sql, [table], |row| row.get::<_, i64>(0))
        .unwrap()
        .cast_unsigned();
    drop(connection);
    let file = OpenOptions::new().write(true).open(database).unwrap();
    file.write_all_at(&[0xa5; 4096], (page - 1) * 4096).unwrap();
}

#[test]
fn damaged_database_refuses_work() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = Orchestrator::start(home.path(), &[]);
    let task = json!({"command": ["true"]});
    orchestrator.login().post("/v1/tasks", &task).expect(201);
    assert_eq!(orchestrator.process.terminate(), 0);
    damage(&orchestrator.data_dir.join("cynode.db"), "tasks");

    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let replies = [
        user.post("/v1/tasks", &task),
        orchestrator.gateway.get("/readyz"),
        orchestrator.control.get("/readyz"),
        user.get("/v1/tasks"),
    ];
    for reply in replies {
        let problem = reply.problem(503, "unavailable");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("damaged") && detail.contains("restore"),
            "{detail}"
        );
    }
}

#[test]
fn foreign_file_is_refused_unchanged() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("orchestrator");
    fs::create_dir(&data_dir).unwrap();
    fs::write(
        data_dir.join("cynode.db"),
        "no database at all".repeat(1000),
    )
    .unwrap();
    let mut command = role(home.path(), "serve-orchestrator", &data_dir);
    command.args([
        "--gateway-listen=127.0.0.1:0",
        "--control-listen=127.0.0.1:0",
    ]);
    let done = process::run(&mut command);
    assert_eq!(done.code, 8, "{done:?}");
    for text in ["cynode.db", "damaged", "restore a backup"] {
        assert!(done.stderr.contains(text), "{text}: {}", done.stderr);
    }
    let left = fs::read_to_string(data_dir.join("cynode.db")).unwrap();
    assert!(left.starts_with("no database at all"));
}

/// A worker without a reserve, whose jobs have a small disk of their own.
fn worker_on(disk: &Disk) -> Worker {
    let place = disk.path().to_str().unwrap();
    Worker::start(&["--jobs-dir", place, "--min-free-disk", "0"])
}

#[test]
fn job_that_fills_disk_keeps_its_result() {
    let Some(disk) = Disk::of_kib(24 * 1024) else {
        return;
    };
    let worker = worker_on(&disk);
    let greedy = "echo before; cat /dev/zero > file; echo after; exit 3";
    let result = worker.run(&Worker::script(greedy));
    assert_eq!(
        (&result["exit_code"], &result["stdout"]),
        (&json!(3), &json!("before\nafter\n"))
    );
    // Its workspace is removed, and space is free again.
    let next = worker.run(&Worker::script(
        "head -c 9000000 /dev/zero > file && echo well",
    ));
    assert_eq!(next["stdout"], "well\n", "{next}");
}

#[test]
fn output_flood_leaves_room_for_results() {
    let Some(disk) = Disk::of_kib(64 * 1024) else {
        return;
    };
    let worker = worker_on(&disk);
    let flood = "head -c 200000000 /dev/zero | tr '\\0' x; exit 3";
    let jobs = [Worker::script(flood), Worker::script(flood)];
    let results: Vec<Value> = std::thread::scope(|scope| {
        let runs = jobs.each_ref().map(|job| scope.spawn(|| worker.run(job)));
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for result in results {
        assert_eq!(result["exit_code"], 3, "{result}");
        let kept = result["stdout"].as_str().unwrap();
        assert!((245_000..=262_144).contains(&kept.len()), "{}", kept.len());
        assert!(kept.contains(" bytes omitted; see the log of the task ...]\n"));
    }
}

#[test]
fn job_that_cannot_be_stored_is_refused() {
    let Some(disk) = Disk::of_kib(4 * 1024) else {
        return;
    };
    let worker = worker_on(&disk);
    disk.fill_but(0);
    let job = Worker::script("echo well");
    worker.send(&job).problem(507, "insufficient-storage");
    disk.free();
    assert_eq!(worker.run(&job)["stdout"], "well\n");
}
