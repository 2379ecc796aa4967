//! Reserve of a node on the filesystems of its jobs, its images and its state: without it the node accepts no job,
//! and the job that uses it up is ended.

use crate::support::{
    Orchestrator, Worker, attack, cluster::wait_ready, disk::Disk, eventually,
    exposition::Exposition, own_storage::OwnStorage,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A worker that keeps this reserve, with its jobs on a disk of its own.
fn worker_on(disk: &Disk, reserve: &str) -> Worker {
    let place = disk.path().to_str().unwrap();
    Worker::start(&["--jobs-dir", place, "--min-free-disk", reserve])
}

/// Checks that jobs are refused for lack of space in `place`; returns the reason.
fn refusal(worker: &Worker, place: &Path) -> String {
    let problem = worker.send(&Worker::script("true"));
    let problem = problem.problem(507, "insufficient-storage");
    let detail = problem["detail"].as_str().unwrap().to_owned();
    for text in [place.to_str().unwrap(), "--min-free-disk"] {
        assert!(detail.contains(text), "{text}: {detail}");
    }
    let ready = worker.api.get("/readyz");
    assert_eq!(ready.status, 503);
    assert_eq!(ready.text(), detail);
    detail
}

#[test]
fn jobs_without_inodes_are_refused() {
    let Some(disk) = Disk::of_kib_and_inodes(64 * 1024, 2000) else {
        return;
    };
    let worker = worker_on(&disk, "16MiB");
    assert_eq!(worker.run(&Worker::script("echo well"))["stdout"], "well\n");
    disk.use_inodes_but(300);
    let detail = refusal(&worker, disk.path());
    assert!(detail.contains("500 inodes needed"), "{detail}");
}

#[test]
fn full_graph_root_refuses_jobs() {
    let Some(disk) = Disk::of_kib(64 * 1024) else {
        return;
    };
    let storage = OwnStorage::at(disk.path());
    let flags = ["--engine", storage.engine(), "--min-free-disk", "16MiB"];
    let worker = Worker::start(&flags);
    assert_eq!(worker.run(&Worker::script("echo well"))["stdout"], "well\n");
    disk.fill_but(8 * 1024);
    let detail = refusal(&worker, &disk.path().join("graph"));
    assert!(detail.contains("16 MiB needed"), "{detail}");
    disk.free();
    assert_eq!(worker.run(&Worker::script("echo well"))["stdout"], "well\n");
}

#[test]
fn full_state_directory_shows_in_node_reason() {
    let Some(disk) = Disk::of_kib(256 * 1024) else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let node = disk.start_node(home.path(), &orchestrator.control_url);
    wait_ready(&orchestrator);
    disk.fill_but(8 * 1024);
    let user = orchestrator.login();
    let reason = eventually("the node shows why it accepts no job", || {
        let node = user.get("/v1/nodes/box").json(200);
        let reason = node["reason"].as_str()?.to_owned();
        (node["status"] == "not_ready").then_some(reason)
    });
    for text in ["box/worker (state)", "16 MiB needed", "--min-free-disk"] {
        assert!(reason.contains(text), "{text}: {reason}");
    }
    disk.free();
    wait_ready(&orchestrator);
    drop(node);
}

#[test]
fn metrics_report_free_space_per_filesystem() {
    let Some(disk) = Disk::of_kib_and_inodes(64 * 1024, 2000) else {
        return;
    };
    let worker = worker_on(&disk, "0");
    let metrics = Exposition::of(&worker.api);
    let of = |name: &str, place: &str| {
        metrics.value(&format!(
            "cynode_worker_disk_free_{name}{{place=\"{place}\"}}"
        ))
    };
    for place in ["jobs", "images", "state"] {
        assert!(of("bytes", place) > 0.0, "{place}");
    }
    assert!(of("bytes", "jobs") <= 64.0 * 1024.0 * 1024.0);
    assert!(of("inodes", "jobs") <= 2000.0);
}

/// Workspaces in the worker's data directory and on its disk.
fn workspaces(worker: &Worker, disk: &Disk) -> Vec<PathBuf> {
    let entries = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let nodes = entries(disk.path()).filter(|entry| {
        let name = entry.file_name();
        name.to_str().unwrap().starts_with("cynode-")
    });
    let spools = nodes.flat_map(|node| entries(&node.path()));
    let mut found: Vec<_> = spools.map(|spool| spool.path().join("workspace")).collect();
    found.retain(|workspace| workspace.exists());
    let spools = worker.workspaces().into_iter();
    found.extend(spools.map(|spool| spool.join("workspace")));
    found
}

/// Runs a job that uses up the space, which is ended, beside one that continues; returns the error of the
/// first.
fn evicted(worker: &Worker, disk: &Disk, greedy: &str) -> String {
    evicted_job(worker, disk, &Worker::script(greedy))
}

/// Same with any job.
fn evicted_job(worker: &Worker, disk: &Disk, greedy: &Value) -> String {
    let modest = Worker::script("echo small > file; echo on; until [ -e go ]; do sleep 0.05; done");
    let mut events = worker.follow(&modest, 0);
    assert!(events.any(|event| event["data"] == "on\n"), "the job runs");
    let result = worker.run(greedy);
    let error = &result["error"];
    assert_eq!(
        (&result["status"], &error["type"]),
        (&"failed".into(), &"out-of-disk".into()),
        "{result}"
    );
    assert_eq!(result["exit_code"], Value::Null);
    let stdout = result["stdout"].as_str().unwrap();
    assert!(
        stdout.starts_with("before\n"),
        "its output is kept: {stdout}"
    );
    let go = eventually("only the modest job is left", || {
        let left = workspaces(worker, disk);
        (left.len() == 1).then(|| left[0].join("go"))
    });
    fs::write(go, "").unwrap();
    let last = events.last().unwrap();
    assert_eq!(last["status"], "completed", "{last}");
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn job_that_fills_disk_is_ended() {
    let Some(disk) = Disk::of_kib(96 * 1024) else {
        return;
    };
    let worker = worker_on(&disk, "32MiB");
    let message = evicted(
        &worker,
        &disk,
        "echo before; cat /dev/zero > file; sleep 1000",
    );
    for text in ["32 MiB left", "used the most", "write less"] {
        assert!(message.contains(text), "{text}: {message}");
    }
    assert_eq!(worker.api.get("/readyz").status, 200, "space is free again");
}

#[test]
fn job_that_uses_up_inodes_is_ended() {
    let Some(disk) = Disk::of_kib_and_inodes(64 * 1024, 8000) else {
        return;
    };
    let worker = worker_on(&disk, "16MiB");
    let many =
        "echo before; n=0; while :; do mkdir d$n && touch d$n/1 d$n/2 d$n/3; n=$((n+1)); done";
    let message = evicted(&worker, &disk, &format!("{many} 2>/dev/null"));
    assert!(message.contains("2000 inodes left"), "{message}");
}

#[test]
fn open_deleted_files_count() {
    let Some(disk) = Disk::of_kib(96 * 1024) else {
        return;
    };
    let worker = worker_on(&disk, "32MiB");
    evicted(
        &worker,
        &disk,
        "echo before; exec 9>file; rm file; cat /dev/zero >&9; sleep 1000",
    );
}

#[test]
fn mapped_deleted_files_count() {
    let Some(disk) = Disk::of_kib(96 * 1024) else {
        return;
    };
    let worker = worker_on(&disk, "32MiB");
    let greedy = Worker::job_in(attack::images()[0], &["/attack", "mapped", "/workspace"]);
    evicted_job(&worker, &disk, &greedy);
}

#[test]
fn job_that_fills_graph_root_is_ended() {
    let Some(disk) = Disk::of_kib(96 * 1024) else {
        return;
    };
    let storage = OwnStorage::at(disk.path());
    let flags = ["--engine", storage.engine(), "--min-free-disk", "32MiB"];
    let worker = Worker::start(&flags);
    evicted(
        &worker,
        &disk,
        "echo before; head -c 70000000 /dev/zero > /opt/file; sleep 1000",
    );
}

#[test]
fn job_is_not_ended_for_others_usage() {
    let Some(disk) = Disk::of_kib(96 * 1024) else {
        return;
    };
    let worker = worker_on(&disk, "32MiB");
    let job = Worker::script("echo small > file; echo on; until [ -e go ]; do sleep 0.05; done");
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "on\n"), "the job runs");
    disk.fill_but(8 * 1024);
    eventually("its usage was measured", || {
        worker
            .process
            .stderr()
            .contains("no job uses much of it")
            .then_some(())
    });
    disk.free();
    fs::write(workspaces(&worker, &disk).pop().unwrap().join("go"), "").unwrap();
    assert_eq!(events.last().unwrap()["status"], "completed");
}
