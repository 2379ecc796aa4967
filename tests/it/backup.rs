//! `cynode backup` beside a running orchestrator, and the restore.

use crate::{
    artifacts::{path, put},
    disk::damage,
    support::{
        Orchestrator, cynode,
        disk::Disk,
        process::{Done, run},
    },
};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

fn backup(home: &Path, data_dir: &Path, more: &[&str], file: &Path) -> Done {
    let mut command = cynode(home);
    command.arg("backup").arg("--data-dir").arg(data_dir);
    run(command.args(more).arg(file))
}

/// Names of the entries of a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

#[test]
fn backup_under_load_restores_everything() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--user-rate=0"]);
    let user = orchestrator.login();
    let (created, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let count = || created.lock().unwrap().len();
    let create = || {
        while !over.load(Ordering::Relaxed) {
            let task = json!({"script": format!("# {}", "x".repeat(20_000))});
            let task = user.post("/v1/tasks", &task).json(201);
            created.lock().unwrap().push(task["id"].clone());
        }
    };
    let backups = home.path().join("backups");
    fs::create_dir(&backups).unwrap();
    let file = backups.join("monday.db");
    let before = thread::scope(|scope| {
        let creators = [(); 2].map(|()| scope.spawn(create));
        while count() < 50 && creators.iter().all(|creator| !creator.is_finished()) {
            thread::yield_now();
        }
        let before = created.lock().unwrap().clone();
        let done = backup(home.path(), &orchestrator.data_dir, &[], &file);
        let after = count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(after > before.len(), "tasks came meanwhile");
        let size = fs::metadata(&file).unwrap().len().to_string();
        for expected in ["monday.db", &size, "schema"] {
            assert!(done.stdout.contains(expected), "{done:?}");
        }
        assert!(done.stderr.contains("orchestrator/keys"), "{done:?}");
        before
    });
    assert_eq!(names(&backups), ["monday.db"], "the backup is one file");
    let file_mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(file_mode & 0o777, 0o600);

    // Restored as described in docs/usage.md.
    let other = tempfile::tempdir().unwrap();
    let data_dir = other.path().join("orchestrator");
    fs::create_dir_all(data_dir.join("keys")).unwrap();
    fs::copy(&file, data_dir.join("cynode.db")).unwrap();
    for key in names(&orchestrator.data_dir.join("keys")) {
        let key = Path::new("keys").join(key);
        fs::copy(orchestrator.data_dir.join(&key), data_dir.join(&key)).unwrap();
    }
    let restored = Orchestrator::start(other.path(), &["--user-rate=0"]);
    let admin = restored.login();
    let old_login = restored.gateway.with_token(user.token());
    old_login.get("/v1/users/me").expect(200);
    for id in &before {
        let path = format!("/v1/tasks/{}/result", id.as_str().unwrap());
        let shown = admin.get(&path).json(200);
        assert_eq!(shown["status"], "queued", "{shown}");
        assert_eq!(shown["jobs"].as_array().unwrap().len(), 1, "{shown}");
    }
    admin
        .post("/v1/tasks", &json!({"command": ["true"]}))
        .expect(201);
    let database = Connection::open(&file).unwrap();
    let text = |pragma| -> String { database.query_row(pragma, [], |row| row.get(0)).unwrap() };
    assert_eq!(text("PRAGMA integrity_check"), "ok");
    assert_eq!(
        text("PRAGMA journal_mode"),
        "delete",
        "the backup needs no log"
    );
}

#[test]
fn restored_contents_serve_artifacts() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let artifact = put(&user, "notes", b"kept bytes");
    let file = home.path().join("monday.db");
    assert_eq!(
        backup(home.path(), &orchestrator.data_dir, &[], &file).code,
        0
    );
    // As docs/usage.md says, with and without `contents/`.
    for (parts, status) in [(&["keys", "contents"][..], 200), (&["keys"][..], 404)] {
        let other = tempfile::tempdir().unwrap();
        let data_dir = other.path().join("orchestrator");
        fs::create_dir(&data_dir).unwrap();
        fs::copy(&file, data_dir.join("cynode.db")).unwrap();
        for part in parts {
            let copied = Command::new("cp")
                .arg("-r")
                .args([orchestrator.data_dir.join(part), data_dir.join(part)])
                .status();
            assert!(copied.unwrap().success());
        }
        let restored = Orchestrator::start(other.path(), &[]);
        let user = restored.gateway.with_token(user.token());
        let reply = user.get(&path(&artifact));
        assert_eq!(reply.status, status, "{}", reply.text());
        assert!(status != 200 || reply.body == b"kept bytes");
    }
}

/// Data directories without a database that can be backed up: with none, with nonsense, with an empty file, with one
/// of a newer release, and with a damaged one.
fn wrong_data_dirs(home: &Path, good: &Path) -> [PathBuf; 5] {
    let of = |name: &str, change: &dyn Fn(&Path)| {
        let dir = home.join(name);
        fs::create_dir(&dir).unwrap();
        change(&dir.join("cynode.db"));
        dir
    };
    let copied = |database: &Path| {
        fs::copy(good, database).unwrap();
    };
    let none = of("none", &|_| {});
    let nonsense = of("nonsense", &|database| {
        fs::write(database, "x".repeat(5000)).unwrap()
    });
    let empty = of("empty", &|database| fs::write(database, "").unwrap());
    let newer = of("newer", &|database| {
        copied(database);
        let database = Connection::open(database).unwrap();
        database.pragma_update(None, "user_version", 1000).unwrap();
    });
    let damaged = of("damaged", &|database| {
        copied(database);
        damage(database, "tasks");
    });
    [none, nonsense, empty, newer, damaged]
}

#[test]
fn failed_backup_says_why_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = Orchestrator::start(home.path(), &[]);
    orchestrator
        .login()
        .post(
            "/v1/tasks",
            &json!({"script": format!("# {}", "x".repeat(100_000))}),
        )
        .expect(201);
    assert_eq!(orchestrator.process.terminate(), 0);
    let data_dir = orchestrator.data_dir.clone();
    let place = home.path().join("backups");
    fs::create_dir(&place).unwrap();
    let [good, bad] = ["good.db", "bad.db"].map(|name| place.join(name));

    let done = backup(home.path(), &data_dir, &["--output=json"], &good);
    let told: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(told["file"], good.to_str().unwrap());
    assert_eq!(told["bytes"], fs::metadata(&good).unwrap().len());

    let [none, nonsense, empty, newer, damaged] = wrong_data_dirs(home.path(), &good);
    let content = fs::read(&good).unwrap();
    for (data_dir, file, code, words) in [
        (&none, bad.clone(), 4, "--data-dir"),
        (
            &nonsense,
            bad.clone(),
            4,
            "is not the database of an orchestrator",
        ),
        (
            &empty,
            bad.clone(),
            4,
            "is not the database of an orchestrator",
        ),
        (&newer, bad.clone(), 8, "newer cynode (schema 1000"),
        (&damaged, bad.clone(), 8, "damaged"),
        (&data_dir, good.clone(), 5, "exists already"),
        (&data_dir, place.clone(), 5, "exists already"),
        (&data_dir, place.join("no/where.db"), 4, "backups/no"),
    ] {
        let done = backup(home.path(), data_dir, &[], &file);
        assert_eq!(done.code, code, "{words}: {done:?}");
        assert!(done.stderr.contains(words), "{words}: {done:?}");
        assert_eq!(
            (done.stdout.as_str(), names(&place)),
            ("", vec!["good.db".to_owned()])
        );
    }
    assert_eq!(fs::read(&good).unwrap(), content);
    assert_eq!(names(&none), Vec::<String>::new(), "a look makes nothing");
    if let Some(disk) = Disk::of_kib(64) {
        let done = backup(home.path(), &data_dir, &[], &disk.path().join("x.db"));
        assert_eq!(done.code, 8, "{done:?}");
        assert!(done.stderr.contains("x.db is full"), "{done:?}");
        assert_eq!(names(disk.path()), Vec::<String>::new());
    }
}

#[test]
fn older_database_can_shrink() {
    let home = tempfile::tempdir().unwrap();
    let old = Connection::open(home.path().join("cynode.db")).unwrap();
    old.execute_batch(include_str!("../fixtures/schema-v1.sql"))
        .unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    let file = home.path().join("copy.db");
    let done = backup(home.path(), home.path(), &[], &file);
    assert_eq!(done.code, 0, "{done:?}");
    let copy = Connection::open(&file).unwrap();
    for (pragma, was, is) in [("auto_vacuum", 0, 2), ("user_version", 1, 1)] {
        let value = |c: &Connection| -> i64 {
            c.pragma_query_value(None, pragma, |row| row.get(0))
                .unwrap()
        };
        assert_eq!((value(&old), value(&copy)), (was, is), "{pragma}");
    }
}
