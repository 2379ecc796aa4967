//! Database of an orchestrator after a stop, a copy, a loss, or a failed first start.

use crate::support::{
    Orchestrator, PASSWORD, Process,
    process::{Done, run},
    server::role,
};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::json;
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Command of an orchestrator that generates its secrets.
fn command(home: &Path, more: &[&str]) -> Command {
    let mut command = role(home, "serve-orchestrator", &home.join("orchestrator"));
    command
        .env("CYNODE_GATEWAY_LISTEN", "127.0.0.1:0")
        .env("CYNODE_CONTROL_LISTEN", "127.0.0.1:0")
        .args(more);
    command
}

/// Home with a copy of those files of a data directory that `keep` selects.
fn copy(data_dir: &Path, keep: impl Fn(&str) -> bool) -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("orchestrator");
    fs::create_dir_all(target.join("keys")).unwrap();
    for directory in ["", "keys"] {
        for entry in fs::read_dir(data_dir.join(directory)).unwrap() {
            let entry = entry.unwrap();
            let name = Path::new(directory).join(entry.file_name());
            if entry.file_type().unwrap().is_file() && keep(name.to_str().unwrap()) {
                fs::copy(entry.path(), target.join(name)).unwrap();
            }
        }
    }
    (home, target)
}

fn log_bytes(data_dir: &Path) -> u64 {
    fs::metadata(data_dir.join("cynode.db-wal")).map_or(0, |log| log.len())
}

#[test]
fn stopped_database_is_one_complete_file() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = Orchestrator::start(home.path(), &["--user-rate=0"]);
    let user = orchestrator.login();
    let (created, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let count = || created.lock().unwrap().len();
    thread::scope(|scope| {
        let create = || {
            let body = json!({"script": "true"}).to_string();
            let headers = [("Content-Type", "application/json")];
            while !over.load(Ordering::Relaxed) {
                // The stop in this test cuts the connection.
                let Ok(reply) = user.try_call("POST", "/v1/tasks", &headers, body.as_bytes())
                else {
                    break;
                };
                if reply.status == 201 {
                    let id = reply.json(201)["id"].as_str().unwrap().to_owned();
                    created.lock().unwrap().push(id);
                }
            }
        };
        let creators = [(); 2].map(|()| scope.spawn(create));
        while count() < 50 && creators.iter().all(|creator| !creator.is_finished()) {
            thread::yield_now();
        }
        orchestrator.process.signal(Signal::TERM);
        assert_eq!(orchestrator.process.code(), 0);
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(log_bytes(&orchestrator.data_dir), 0);

    let (copied, _) = copy(&orchestrator.data_dir, |name| {
        name == "cynode.db" || name.starts_with("keys/")
    });
    let restored = Orchestrator::start(copied.path(), &["--user-rate=0"]);
    let admin = restored.login();
    for id in created.lock().unwrap().iter() {
        admin.get(&format!("/v1/tasks/{id}")).expect(200);
    }
}

#[test]
fn reader_beyond_shutdown_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = Orchestrator::start(home.path(), &[]);
    let reader = Connection::open(orchestrator.data_dir.join("cynode.db")).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM users")
        .unwrap();
    orchestrator
        .login()
        .post("/v1/tasks", &json!({"script": "true"}))
        .expect(201);
    assert_eq!(orchestrator.process.terminate(), 0);
    let log = orchestrator.process.stderr();
    assert!(log.contains("copy cynode.db-wal"), "{log}");
    assert!(log_bytes(&orchestrator.data_dir) > 0);
}

#[test]
fn keys_without_database_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let mut process = Process::start("first", home.path(), &mut command(home.path(), &[]));
    let data_dir = home.path().join("orchestrator");
    crate::support::eventually("the orchestrator listens", || {
        process.assert_runs();
        process.stderr().contains("listens").then_some(())
    });
    // A copy of a running orchestrator: everything is still in the log.
    let (running, without_log) = copy(&data_dir, |name| name != "cynode.db-wal");
    assert_eq!(process.terminate(), 0);
    let (lost, without_database) = copy(&data_dir, |name| !name.starts_with("cynode.db"));
    for (home, data_dir) in [(&running, &without_log), (&lost, &without_database)] {
        let before = names(data_dir);
        let done = ended(home.path(), &[]);
        assert_eq!((done.code, done.stdout.as_str()), (4, ""), "{done:?}");
        for words in ["cynode.db", "cynode.db-wal", "backup", "--init"] {
            assert!(done.stderr.contains(words), "{words}: {done:?}");
        }
        assert_eq!(names(data_dir), before, "nothing is created");
        assert_eq!(doctor(home.path()).code, 1);
        let stdout = doctor(home.path()).stdout;
        assert!(stdout.contains("--init"), "{stdout}");

        let restored = Orchestrator::start(home.path(), &["--init"]);
        restored.login();
        let log = restored.process.stderr();
        assert!(log.contains("WARN") && log.contains("--init"), "{log}");
    }
    // Its own database is left alone, also with the flag.
    let again = run_until_listening(home.path(), &["--init"]);
    assert!(!again.contains("password"), "no new admin: {again}");
}

/// Waits for the end of an orchestrator that can't start.
fn ended(home: &Path, more: &[&str]) -> Done {
    let mut process = Process::start("refused", home, &mut command(home, more));
    Done {
        code: process.code(),
        stdout: process.stdout(),
        stderr: process.stderr(),
    }
}

/// Starts an orchestrator, stops it once it listens, and returns its output.
fn run_until_listening(home: &Path, more: &[&str]) -> String {
    let mut process = Process::start("again", home, &mut command(home, more));
    crate::support::eventually("the orchestrator listens", || {
        process.assert_runs();
        process.stderr().contains("listens").then_some(())
    });
    assert_eq!(process.terminate(), 0);
    process.stdout()
}

fn doctor(home: &Path) -> Done {
    let mut command = crate::support::cynode(home);
    command
        .args(["doctor", "--data-dir"])
        .arg(home.join("orchestrator"))
        .env("CYNODE_CONFIG", "/dev/null");
    run(&mut command)
}

/// Names of all files except those that each start writes.
fn names(data_dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(data_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["addresses.json", "orchestrator.lock"].contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

#[test]
fn failed_first_start_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Before the keys are created, and after.
    let done = ended(home.path(), &["--gateway-listen", &address]);
    assert_eq!(done.code, 8, "{done:?}");
    let short = home.path().join("short");
    fs::write(&short, "short").unwrap();
    let short = ["--admin-password-file", short.to_str().unwrap()];
    let done = ended(home.path(), &short);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(home.path().join("orchestrator/keys/psk").exists());
    assert!(run_until_listening(home.path(), &[]).contains("password"));
}

#[test]
fn supplied_psk_does_not_count_as_state() {
    let home = tempfile::tempdir().unwrap();
    let keys = home.path().join("orchestrator/keys");
    fs::create_dir_all(&keys).unwrap();
    fs::write(keys.join("psk"), PASSWORD).unwrap();
    assert!(run_until_listening(home.path(), &[]).contains("password"));
}
