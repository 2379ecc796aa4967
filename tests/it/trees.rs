//! Removal of a job's files: the node removes all of them, and podman none.

use crate::support::{
    IMAGE, Worker, attack, eventually,
    image::{USER_IMAGE, podman},
    server::{graph_root, kill},
};
use cynode::engine::remove_tree;
use rustix::process::{Signal, geteuid};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// Number of files in a large tree: far more than podman could remove between two polls of a test.
const MANY: &str = "100000";

/// Upper directory of a worker's only sandbox, by podman's records.
fn podmans_upper(worker: &Worker) -> PathBuf {
    let format = "--format={{.GraphDriver.Data.UpperDir}}";
    let inspected = podman(&["container", "inspect", format, &worker.containers()[0]]);
    inspected.unwrap().trim().into()
}

/// Whether podman has the storage driver whose upper directories the node keeps.
fn keeps_uppers() -> bool {
    let driver = podman(&["info", "--format={{.Store.GraphDriverName}}"]).unwrap();
    let does = driver.trim() == "overlay";
    if !does {
        eprintln!("not tried: podman's storage driver is {driver}");
    }
    does
}

/// Files below a directory.
fn files_in(tree: &Path) -> usize {
    let Ok(entries) = fs::read_dir(tree) else {
        return 0;
    };
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_in(&entry.path()),
        _ => 1,
    };
    entries.map(|entry| count(entry.unwrap())).sum()
}

/// Runs a job that leaves a large tree while the worker is away, until podman has removed its container.
fn leave_large_tree(worker: &mut Worker) {
    let image = attack::images()[0];
    let job = Worker::job_in(image, &["/attack", "files", MANY, "/tmp/left"]);
    let started = |event: Value| event["event"] == "started";
    assert!(worker.follow(&job, 0).any(started));
    worker.process.kill();
    eventually("the shim has removed its container", || {
        worker.shims().is_empty().then_some(())
    });
}

#[test]
fn workspace_is_outside_podman_storage() {
    if !keeps_uppers() {
        return;
    }
    let worker = Worker::start(&[]);
    for image in [IMAGE, USER_IMAGE] {
        let script = "mkdir -m 700 /tmp/made; echo x >/tmp/made/file; echo made; exec sleep 1000";
        let job = Worker::job_in(image, &["sh", "-c", script]);
        let mut events = worker.follow(&job, 0);
        while events.next().unwrap()["event"] != "stdout" {}
        let podmans = podmans_upper(&worker);
        assert!(podmans.starts_with(graph_root()), "{podmans:?}");
        assert_eq!(fs::read_dir(&podmans).unwrap().count(), 0, "{podmans:?}");
        let uppers = worker.uppers();
        assert_eq!(uppers.len(), 1, "{uppers:?}");
        assert!(uppers[0].join("tmp/made").exists());
        let cancel = format!("{}:cancel", Worker::path(&job));
        worker.api.act(&cancel).json(200);
        assert_eq!(events.last().unwrap()["status"], "canceled");
        worker.assert_clean();
    }
}

#[test]
fn node_removes_large_tree() {
    if !keeps_uppers() {
        return;
    }
    let mut worker = Worker::start(&[]);
    leave_large_tree(&mut worker);
    assert!(worker.containers().is_empty());
    let uppers = worker.uppers();
    assert_eq!(files_in(&uppers[0].join("tmp/left")).to_string(), MANY);

    // The next start finds it, removes it, and takes jobs meanwhile.
    worker.start_again();
    let result = worker.run(&Worker::script("echo x >/tmp/left"));
    assert_eq!(result["status"], "completed", "{result}");
    worker.assert_clean();
}

#[test]
fn interrupted_removal_restarts() {
    if !keeps_uppers() {
        return;
    }
    let mut worker = Worker::start(&[]);
    leave_large_tree(&mut worker);
    let left = worker.uppers()[0].join("tmp/left");
    let count = || fs::read_dir(&left).map_or(0, Iterator::count);
    let before = count();
    worker.start_again();
    eventually("the removal has begun", || (count() < before).then_some(()));
    worker.restart();
    worker.assert_clean();
}

#[test]
fn tree_of_killed_shim_is_removed() {
    if !keeps_uppers() {
        return;
    }
    let worker = Worker::start(&[]);
    let job = Worker::script("echo x >/tmp/left; echo made; exec sleep 1000");
    let mut events = worker.follow(&job, 0);
    while events.next().unwrap()["event"] != "stdout" {}
    assert_eq!(worker.uppers().len(), 1);
    for shim in worker.shims() {
        kill(shim, Signal::KILL);
    }
    assert_eq!(events.last().unwrap()["error"]["type"], "lost");
    worker.assert_clean();
}

#[test]
fn difficult_trees_are_removed() {
    let worker = Worker::start(&[]);
    for image in attack::images() {
        let job = Worker::job_in(image, &["/attack", "trees", "/tmp", "/workspace"]);
        let result = worker.run(&job);
        let stdout = result["stdout"].as_str().unwrap();
        assert_eq!(stdout.lines().count(), 12, "{result}");
        assert!(
            stdout.lines().all(|line| line.ends_with(" done")),
            "{stdout}"
        );
        worker.assert_clean();
    }
}

#[test]
fn failed_removal_is_reported_and_retried() {
    if !geteuid().is_root() {
        eprintln!("not tried: only root may mount anything");
        return;
    }
    let mut worker = Worker::start(&[]);
    let job = Worker::script("mkdir held other; echo made; until [ -e go ]; do usleep 5000; done");
    let mut events = worker.follow(&job, 0);
    while events.next().unwrap()["event"] != "stdout" {}
    let workspace = worker.workspaces()[0].join("workspace");
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "x").unwrap();
    let mount = Mount::bind(outside.path(), &workspace.join("held"));
    fs::write(workspace.join("go"), "").unwrap();
    assert_eq!(events.last().unwrap()["status"], "completed");

    let path = workspace.to_str().unwrap();
    eventually("the worker reports the remaining files", || {
        let reply = worker.api.get("/readyz");
        let text = String::from_utf8(reply.body).unwrap();
        assert_eq!((reply.status, &text[..5]), (200, "ready"), "{text}");
        (text.contains("\nwarning: ") && text.contains(path)).then_some(())
    });
    worker.restart();
    eventually("the next start reports them, too", || {
        let text = String::from_utf8(worker.api.get("/readyz").body).unwrap();
        text.contains(path).then_some(())
    });
    assert!(!workspace.join("other").exists());
    assert!(outside.path().join("kept").exists());
    drop(mount);
    worker.restart();
    worker.assert_clean();
    assert_eq!(worker.api.get("/readyz").body, b"ready");
}

/// A mount; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn bind(what: &Path, at: &Path) -> Self {
        run("mount", &["--bind".as_ref(), what, at]);
        Self(at.to_owned())
    }

    /// Mounts a new file system of a kind, and returns its directory.
    fn fresh(kind: &str, options: &str) -> Option<(TempDir, Self)> {
        let home = tempfile::tempdir().unwrap();
        let (image, place) = (home.path().join("image"), home.path().join("place"));
        fs::File::create(&image)
            .unwrap()
            .set_len(512 << 20)
            .unwrap();
        let made = Command::new(format!("mkfs.{kind}"))
            .arg("-q")
            .arg(&image)
            .status();
        if !geteuid().is_root() || !made.is_ok_and(|status| status.success()) {
            eprintln!("not tried: this needs root, and mkfs.{kind} (make setup)");
            return None;
        }
        fs::create_dir(&place).unwrap();
        run("mount", &["-o".as_ref(), options.as_ref(), &image, &place]);
        Some((home, Self(place)))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
}

#[test]
fn xfs_projects_are_removed() {
    let Some((_home, mount)) = Mount::fresh("xfs", "loop") else {
        return;
    };
    let tree = mount.0.join("tree");
    for (project, path) in [("7", "a"), ("8", "a/b"), ("9", "a/b/c"), ("7", "a/b/c/d")] {
        let path = tree.join(path);
        fs::create_dir_all(path.join("more/still")).unwrap();
        fs::write(path.join("more/still/file"), "x").unwrap();
        let arguments = ["-p", project, "+P"];
        let mut command = Command::new("chattr");
        assert!(
            command
                .args(arguments)
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
    }
    let up = fs::rename(tree.join("a/b/c/more"), tree.join("a/moved"));
    assert_eq!(up.unwrap_err().kind(), std::io::ErrorKind::CrossesDevices);
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn read_only_btrfs_subvolumes_are_removed() {
    let Some((_home, mount)) = Mount::fresh("btrfs", "loop") else {
        return;
    };
    let tree = mount.0.join("tree");
    fs::create_dir_all(tree.join("a")).unwrap();
    let subvolume = |arguments: &[&str], path: &str| {
        let mut command = Command::new("btrfs");
        let output = command
            .args(arguments)
            .arg(tree.join(path))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    subvolume(&["subvolume", "create"], "a/outer");
    fs::create_dir_all(tree.join("a/outer/b/c")).unwrap();
    fs::write(tree.join("a/outer/b/c/file"), "x").unwrap();
    subvolume(&["subvolume", "create"], "a/outer/b/inner");
    fs::create_dir_all(tree.join("a/outer/b/inner/d/e")).unwrap();
    for path in ["a/outer/b/inner", "a/outer"] {
        let path = tree.join(path);
        let mut command = Command::new("btrfs");
        command
            .args(["property", "set", "-ts"])
            .arg(path)
            .args(["ro", "true"]);
        assert!(command.status().unwrap().success());
    }
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}
