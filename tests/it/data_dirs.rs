//! Data directories: foreign ones are refused unchanged, damage and loss are reported, and a role whose directory
//! is moved stops its work until it is back.

use crate::support::{
    Cluster, Orchestrator, Process, Worker,
    cluster::{PSK, secret_file, wait_ready},
    eventually,
    podman_host::is_root,
    process::{Done, run},
    read,
    server::role,
};
use serde_json::json;
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Starts each role on this directory, expects a refusal, and returns the messages.
fn refused(home: &Path, data_dir: &Path) -> Vec<Done> {
    let token = secret_file(home, "token", "a token of this test");
    let psk = secret_file(home, "psk", PSK);
    let roles = [
        ("serve-orchestrator", vec!["--psk-file", &psk]),
        ("worker", vec!["--token-file", &token]),
    ];
    let refused = roles.map(|(name, more)| {
        let mut command = role(home, name, data_dir);
        command
            .env("CYNODE_GATEWAY_LISTEN", "127.0.0.1:0")
            .env("CYNODE_CONTROL_LISTEN", "127.0.0.1:0")
            .env("CYNODE_WORKER_LISTEN", "127.0.0.1:0")
            .args(more);
        let mut process = Process::start("refused", home, &mut command);
        Done {
            code: process.code(),
            stdout: process.stdout(),
            stderr: process.stderr(),
        }
    });
    refused.into()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn assert_refused_untouched(home: &Path, data_dir: &Path, words: &[&str]) {
    let before = (mode(data_dir), names(data_dir));
    for done in refused(home, data_dir) {
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{done:?}");
        for word in words {
            assert!(done.stderr.contains(word), "{word}: {done:?}");
        }
    }
    assert_eq!((mode(data_dir), names(data_dir)), before);
    let mut doctor = crate::support::cynode(home);
    doctor
        .args(["doctor", "--data-dir"])
        .arg(data_dir)
        .env("CYNODE_CONFIG", "/dev/null");
    let stdout = run(&mut doctor).stdout;
    for word in words {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
    assert_eq!((mode(data_dir), names(data_dir)), before);
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn foreign_directory_is_refused_untouched() {
    let home = tempfile::tempdir().unwrap();
    let theirs = home.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("letter.txt"), "dear").unwrap();
    fs::create_dir(theirs.join("keys")).unwrap();
    set_mode(&theirs, 0o755);
    set_mode(&theirs.join("letter.txt"), 0o644);
    let path = theirs.to_str().unwrap();
    assert_refused_untouched(home.path(), &theirs, &[path, "letter.txt", "--data-dir"]);
    assert_eq!(mode(&theirs.join("letter.txt")), 0o644);
}

#[test]
fn world_accessible_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let shared = home.path().join("shared");
    fs::create_dir(&shared).unwrap();
    // The mode of /tmp, as after a mistyped path.
    for name in ["letter.txt", "worker.lock"] {
        fs::write(shared.join(name), "").unwrap();
    }
    set_mode(&shared, 0o1777);
    let path = shared.to_str().unwrap();
    assert_refused_untouched(home.path(), &shared, &[path, "all users", "--data-dir"]);
}

#[test]
fn directory_of_another_user_is_refused() {
    let home = tempfile::tempdir().unwrap();
    if !is_root() {
        // Only root can give a directory to another user.
        let data_dir = Path::new("/usr");
        assert_refused_untouched(home.path(), data_dir, &["/usr", "uid 0", "--data-dir"]);
        return;
    }
    let theirs = home.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(1000), Some(1000)).unwrap();
    let path = theirs.to_str().unwrap();
    assert_refused_untouched(home.path(), &theirs, &[path, "uid 1000", "--data-dir"]);
    assert_eq!(fs::metadata(&theirs).unwrap().uid(), 1000);
}

#[test]
fn directory_of_earlier_start_is_recognised() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("orchestrator");
    fs::create_dir(&data_dir).unwrap();
    for name in ["orchestrator.lock", "notes of the operator"] {
        fs::write(data_dir.join(name), "").unwrap();
    }
    drop(Orchestrator::start(home.path(), &[]));
    assert_eq!(mode(&data_dir), 0o700);
}

#[test]
fn moved_data_directory_stops_orchestrator() {
    let cluster = Cluster::start();
    let (here, away) = (
        cluster.orchestrator.data_dir.clone(),
        cluster.home().join("away"),
    );
    fs::rename(&here, &away).unwrap();
    let ready = || cluster.orchestrator.gateway.get("/readyz");
    eventually("the role is not ready, with a reason", || {
        let reply = ready();
        (reply.status == 503 && reply.text().contains("data directory")).then_some(())
    });
    let task = json!({"script": "true"});
    let refused = cluster.user.post("/v1/tasks", &task);
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(!here.exists(), "nothing is created in its place");
    fs::rename(&away, &here).unwrap();
    wait_ready(&cluster.orchestrator);
    let id = cluster.script("true");
    assert_eq!(cluster.finish(&id)["status"], "completed");
}

#[test]
fn replaced_lock_stops_orchestrator() {
    let cluster = Cluster::start();
    let lock = cluster.orchestrator.data_dir.join("orchestrator.lock");
    let kept = cluster.home().join("kept.lock");
    fs::rename(&lock, &kept).unwrap();
    fs::write(&lock, "").unwrap();
    eventually("the orchestrator is not ready", || {
        (cluster.orchestrator.gateway.get("/readyz").status == 503).then_some(())
    });
    fs::rename(&kept, &lock).unwrap();
    wait_ready(&cluster.orchestrator);
}

#[test]
fn moved_data_directory_stops_node() {
    let cluster = Cluster::start();
    let (here, away) = (cluster.node.data_dir.clone(), cluster.home().join("away"));
    let view = || cluster.user.get("/v1/nodes/box").json(200);
    let running = cluster.script("echo began; read x; sleep 1000");
    cluster.printed(&running, "began");
    fs::rename(&here, &away).unwrap();
    eventually("the role is not ready, with a reason", || {
        let node = view();
        let says = node["reason"].as_str()?.contains("data directory");
        (node["status"] == "not_ready" && says).then_some(())
    });
    let worker = crate::support::Api::new(cluster.node.url().trim_start_matches("http://"));
    let ready = worker.get("/readyz");
    assert!(
        ready.status == 503 && ready.text().contains("data directory"),
        "{}",
        ready.text()
    );
    assert!(!here.exists(), "nothing is created in its place");
    fs::rename(&away, &here).unwrap();
    wait_ready(&cluster.orchestrator);
    let id = cluster.script("true");
    assert_eq!(cluster.finish(&id)["status"], "completed");
    cluster
        .user
        .act(&format!("/v1/tasks/{running}/cancel"))
        .json(200);
    cluster.finish(&running);
}

/// An orchestrator that was stopped, and its data directory.
fn stopped(home: &Path) -> PathBuf {
    let orchestrator = Orchestrator::start(home, &[]);
    orchestrator.login();
    orchestrator.data_dir.clone()
}

/// Starts an orchestrator with this key of the operator's, and expects a refusal.
fn start_refused(home: &Path, psk: Option<&str>) -> Done {
    let mut command = role(home, "serve-orchestrator", &home.join("orchestrator"));
    command
        .env("CYNODE_GATEWAY_LISTEN", "127.0.0.1:0")
        .env("CYNODE_CONTROL_LISTEN", "127.0.0.1:0")
        .envs(psk.map(|psk| ("CYNODE_PSK", psk)));
    let mut process = Process::start("refused", home, &mut command);
    Done {
        code: process.code(),
        stdout: process.stdout(),
        stderr: process.stderr(),
    }
}

#[test]
fn database_without_keys_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let keys = stopped(home.path()).join("keys");
    for lost in [
        &["user-token.key", "node-token.key", "worker-token.key"][..],
        &["node-token.key"],
        &["psk"],
    ] {
        for name in lost {
            let _ = fs::remove_file(keys.join(name));
        }
        let before = names(&keys);
        let done = start_refused(home.path(), None);
        assert_eq!((done.code, done.stdout.as_str()), (4, ""), "{done:?}");
        for words in [lost[0], "backup", "--new-keys"] {
            assert!(done.stderr.contains(words), "{words}: {done:?}");
        }
        assert_eq!(names(&keys), before, "no key is created");
        let mut doctor = crate::support::cynode(home.path());
        doctor
            .args(["doctor", "--data-dir"])
            .arg(home.path().join("orchestrator"))
            .env("CYNODE_CONFIG", "/dev/null");
        let stdout = run(&mut doctor).stdout;
        if lost != ["psk"] {
            assert!(stdout.contains("--new-keys"), "{stdout}");
        }

        let mut command = role(
            home.path(),
            "serve-orchestrator",
            &home.path().join("orchestrator"),
        );
        command
            .env("CYNODE_GATEWAY_LISTEN", "127.0.0.1:0")
            .env("CYNODE_CONTROL_LISTEN", "127.0.0.1:0")
            .arg("--new-keys");
        let mut process = Process::start("renewed", home.path(), &mut command);
        eventually("the orchestrator listens", || {
            process.assert_runs();
            process.stderr().contains("listens").then_some(())
        });
        assert!(process.stderr().contains("--new-keys"));
        assert_eq!(process.terminate(), 0);
        assert_eq!(
            names(&keys),
            [
                "node-token.key",
                "psk",
                "user-token.key",
                "worker-token.key"
            ]
        );
        Orchestrator::start(home.path(), &[]).login();
    }
}

#[test]
fn damaged_key_is_refused_and_kept() {
    let home = tempfile::tempdir().unwrap();
    let keys = stopped(home.path()).join("keys");
    let key = keys.join("user-token.key");
    let good = read(&key);
    for bad in [
        &b"short"[..],
        b"",
        b"\xff\xfe\x00\x01 no text at all",
        "x ".repeat(22).as_bytes(),
        &[0; 43],
    ] {
        fs::write(&key, bad).unwrap();
        let done = start_refused(home.path(), Some(PSK));
        assert_eq!((done.code, done.stdout.as_str()), (8, ""), "{done:?}");
        for words in ["keys/user-token.key", "backup"] {
            assert!(done.stderr.contains(words), "{words}: {done:?}");
        }
        assert!(!done.stderr.contains(good.trim()));
        assert_eq!(fs::read(&key).unwrap(), bad, "the key is kept");
    }
    fs::write(&key, &good).unwrap();
    set_mode(&key, 0o666);
    let done = start_refused(home.path(), Some(PSK));
    assert_eq!(done.code, 8, "{done:?}");
    assert!(done.stderr.contains("chmod 600"), "{done:?}");
    set_mode(&key, 0o644);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let log = orchestrator.process.stderr();
    assert!(log.contains("user-token.key"), "warned of: {log}");
    assert_eq!(mode(&key), 0o600);
}

#[test]
fn damaged_init_copy_is_replaced() {
    let mut worker = Worker::start(&[]);
    let copy = || {
        let copies = names(&worker_init(&worker));
        assert_eq!(copies.len(), 1, "{copies:?}");
        worker_init(&worker).join(&copies[0])
    };
    let path = copy();
    let whole = fs::read(&path).unwrap();
    let echo = Worker::script("echo here");
    let mut damaged = whole.clone();
    damaged[..4096].fill(0);
    for damage in [0, 1, 2] {
        // Replaces the file, as a faulty disk or an operator may; running jobs keep theirs open.
        let other = path.with_extension("other");
        fs::write(&other, if damage == 0 { &damaged } else { &whole }).unwrap();
        set_mode(&other, if damage == 1 { 0o444 } else { 0o555 });
        fs::rename(&other, &path).unwrap();
        if damage == 2 {
            fs::remove_file(&path).unwrap();
        }
        let mut job = echo.clone();
        job["job_id"] = crate::support::uuid().into();
        assert_eq!(worker.run(&job)["stdout"], "here\n", "{damage}");
        assert_eq!(
            (fs::read(&path).unwrap() == whole, mode(&path)),
            (true, 0o555)
        );
    }
    worker.process.kill();
    // Running jobs continue with the old copy.
    fs::remove_file(&path).unwrap();
    fs::write(&path, &damaged).unwrap();
    set_mode(&path, 0o555);
    worker.start_again();
    assert_eq!(worker.run(&echo)["stdout"], "here\n");
    assert!(fs::read(&path).unwrap() == whole);
}

fn worker_init(worker: &Worker) -> PathBuf {
    worker.data_dir.join("worker/init")
}
