//! `cynode dev`: all roles in one process, with a login.

use crate::support::{
    IMAGE, ModelPort, cynode, eventually, image,
    model_server::{OLLAMA_IMAGE, VERSION},
    process::{run, with_tool},
    server::{Server, role},
};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

const LISTEN: [&str; 6] = [
    "--gateway-listen",
    "127.0.0.1:0",
    "--control-listen",
    "127.0.0.1:0",
    "--worker-listen",
    "127.0.0.1:0",
];

/// Command line of `cynode dev`.
fn command(home: &Path, more: &[&str]) -> Command {
    image::ready();
    let mut command = role(home, "dev", &home.join("dev"));
    command
        .args(LISTEN)
        .args(["--default-image", IMAGE])
        .args(more);
    command
}

/// Starts `cynode dev`, and waits for the login.
fn start(home: &Path, more: &[&str]) -> Server {
    let mut dev = Server::launch(home, "dev", &mut command(home, more));
    eventually("dev has logged in", || {
        dev.process.assert_runs();
        dev.process.stdout().contains("logged in").then_some(())
    });
    dev
}

#[test]
fn dev_command_runs_tasks() {
    let home = tempfile::tempdir().unwrap();
    let mut passwords = Vec::new();
    for start_number in 1..=2 {
        let mut dev = start(home.path(), &[]);
        let done = run(cynode(home.path()).args(["run", "--", "sh", "-c", "echo hello; exit 3"]));
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (3, "hello\n"),
            "start {start_number}: {done:?}"
        );
        let status = run(cynode(home.path()).arg("status"));
        assert_eq!(status.code, 0, "{status:?}");
        let credentials = home.path().join("config/cynode/credentials.json");
        assert_eq!(
            fs::metadata(credentials).unwrap().permissions().mode() & 0o777,
            0o600
        );
        passwords.push(dev.process.stdout().contains("password"));
        dev.assert_clean();
        assert_eq!(dev.process.terminate(), 0);
    }
    assert_eq!(passwords, [true, false], "the password is shown once");
}

#[test]
fn encrypted_dev_runs_tasks() {
    let home = tempfile::tempdir().unwrap();
    let dev = start(home.path(), &["--tls", "on"]);
    let shown = dev.process.stdout();
    assert!(shown.contains("logged in as admin at https://"), "{shown}");
    let done = run(cynode(home.path()).args(["run", "--", "echo", "hello"]));
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "hello\n"),
        "{done:?}"
    );
    dev.assert_clean();
}

#[test]
fn stopped_dev_cancels_its_jobs() {
    let home = tempfile::tempdir().unwrap();
    let mut dev = start(home.path(), &[]);
    let marker = crate::support::uuid();
    let done = run(cynode(home.path()).args([
        "run",
        "--detach",
        "--",
        "sh",
        "-c",
        // Takes the node a while to remove.
        "mkdir /tmp/left; cd /tmp/left; i=0; while [ $i -lt 5000 ]; do : >$i; i=$((i+1)); done; echo up; sleep 1000; true",
        &marker,
    ]));
    let id = done.stdout.trim().to_owned();
    eventually("the task runs", || {
        let logs = run(cynode(home.path()).args(["task", "logs", &id]));
        (logs.stdout == "up\n").then_some(())
    });
    dev.process.signal(rustix::process::Signal::TERM);
    assert_eq!(dev.process.code(), 0);
    assert!(!crate::sandbox::anywhere(&marker));
    let left = dev.uppers();
    assert!(left.is_empty(), "removed before the end: {left:?}");
    dev.assert_clean();

    let dev = start(home.path(), &[]);
    let task = run(cynode(home.path()).args(["task", "wait", &id]));
    assert_eq!(task.code, 130, "the task was canceled: {task:?}");
    drop(dev);
}

#[test]
fn stopped_dev_shuts_its_sandboxes_down() {
    let home = tempfile::tempdir().unwrap();
    let mut dev = start(home.path(), &[]);
    let create = ["sandbox", "create", "--name", "left"];
    let done = run(cynode(home.path()).args(create));
    assert_eq!(done.code, 0, "{done:?}");
    let id = done.stdout.trim().to_owned();
    assert_eq!(dev.process.terminate(), 0);
    dev.assert_clean();

    let dev = start(home.path(), &[]);
    let shown = run(cynode(home.path()).args(["sandbox", "show", &id, "-o", "json"]));
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["status"], "ended", "{shown}");
    assert_eq!(shown["reason"], "shutdown", "{shown}");
    drop(dev);
}

#[test]
fn data_directory_has_one_owner() {
    let home = tempfile::tempdir().unwrap();
    let mut dev = start(home.path(), &[]);
    let roles: [(&str, &[&str]); 2] = [("dev", &LISTEN), ("serve-orchestrator", &LISTEN[..4])];
    for (name, listen) in roles {
        let done = run(role(home.path(), name, &dev.data_dir).args(listen));
        assert_ne!(done.code, 0, "{name}");
        let error = done
            .stderr
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_else(|| panic!("{done:?}"));
        assert!(error.contains("--data-dir"), "{error}");
    }
    assert_eq!(
        run(cynode(home.path()).args(["run", "--", "true"])).code,
        0,
        "the first process is unaffected"
    );
    dev.assert_clean();
    assert_eq!(dev.process.terminate(), 0);
}

#[test]
fn dev_runs_model_server_until_stopped() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let port = at.port.to_string();
    let inference = ["--inference-image", OLLAMA_IMAGE, "--inference-port", &port];
    let mut dev = start(home.path(), &inference);
    assert_eq!(at.version(), VERSION);
    let status = run(cynode(home.path()).arg("status"));
    assert!(status.stdout.contains("running"), "{status:?}");
    assert_eq!(dev.process.terminate(), 0);
    assert_eq!(at.inspect(), None);
}

#[test]
fn stop_during_model_server_start_leaves_none() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let port = at.port.to_string();
    let path = |name: &str| home.path().join(name).display().to_string();
    let (making, go) = (path("making"), path("go"));
    let slow = format!(
        "case \" $* \" in *' --detach '*) : >'{making}'; until [ -e '{go}' ]; do sleep 0.05; done;; esac
         PATH=${{PATH#*:}} exec podman \"$@\""
    );
    let search = with_tool(home.path(), "podman", &slow);
    let inference = ["--inference-image", OLLAMA_IMAGE, "--inference-port", &port];
    let mut command = command(home.path(), &inference);
    let mut dev = Server::launch(home.path(), "dev", command.env("PATH", search));
    eventually("podman is called", || {
        dev.process.assert_runs();
        fs::exists(&making).unwrap().then_some(())
    });
    dev.process.signal(rustix::process::Signal::TERM);
    fs::write(&go, "").unwrap();
    assert_eq!(dev.process.code(), 0);
    assert_eq!(at.inspect(), None);
}
