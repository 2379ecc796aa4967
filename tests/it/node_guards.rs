//! Guards of a node: against a job that takes more of the disk than one may have, or the last of the memory.

use crate::support::{Worker, disk::Disk, podman_host::is_root};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// A job that runs until it is canceled; its events, once it has printed `on`.
fn patient(worker: &Worker, script: &str) -> (Value, impl Iterator<Item = Value> + use<>) {
    let job = Worker::script(&format!("{script}; echo on; sleep 1000"));
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "on\n"), "the job runs");
    (job, events)
}

/// The error with which a job was ended; its output is kept.
fn error_of(result: &Value, kind: &str) -> String {
    let error = &result["error"];
    assert_eq!(
        (&result["status"], &error["type"], result.get("exit_code")),
        (&json!("failed"), &json!(kind), None),
        "{result}"
    );
    assert!(
        result["stdout"].as_str().unwrap().starts_with("before\n"),
        "{result}"
    );
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn job_over_workspace_limit_is_ended() {
    let Some(disk) = Disk::of_kib(768 * 1024) else {
        return;
    };
    let place = disk.path().to_str().unwrap();
    let flags = [
        "--jobs-dir",
        place,
        "--min-free-disk",
        "0",
        "--workspace-limit",
        "64MiB",
    ];
    let worker = Worker::start(&flags);
    let others: Vec<_> = (0..3)
        .map(|_| patient(&worker, "head -c 20000000 /dev/zero > file"))
        .collect();
    let result = worker.run(&Worker::script(
        "echo before; cat /dev/zero > file; sleep 1000",
    ));
    let message = error_of(&result, "workspace-limit");
    for text in ["allows a job 64MiB", "MiB; write less"] {
        assert!(message.contains(text), "{text}: {message}");
    }
    assert_eq!(result["effective"]["workspace_limit"], 64 << 20, "{result}");
    for (job, events) in others {
        worker.send_cancel(&job);
        assert_eq!(events.last().unwrap()["status"], "canceled");
    }
    let result = worker.run(&Worker::script(
        "head -c 20000000 /dev/zero > file; echo done",
    ));
    assert_eq!(result["stdout"], "done\n", "{result}");
    worker.assert_clean();
}

#[test]
fn files_outside_workspace_count() {
    let worker = Worker::start(&["--workspace-limit", "32MiB"]);
    // Other drivers copy the image, and do not tell what a sandbox adds to it.
    if storage_driver() == "overlay" {
        let result = worker.run(&Worker::script(
            "echo before; head -c 60000000 /dev/zero > /opt/file; sleep 1000",
        ));
        error_of(&result, "workspace-limit");
    } else {
        eprintln!("not tried with files of the image: podman's storage has no upper directories");
    }
    let deleted = "echo before; exec 9>file; rm file; head -c 60000000 /dev/zero >&9; sleep 1000";
    error_of(&worker.run(&Worker::script(deleted)), "workspace-limit");
    worker.assert_clean();
}

/// Name of podman's storage driver.
fn storage_driver() -> String {
    let format = "--format={{.Store.GraphDriverName}}";
    let output = Command::new("podman").args(["info", format]).output();
    String::from_utf8(output.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}

/// A file in place of `/proc/meminfo`, with so many MiB available.
fn set_available(file: &Path, mib: u64) {
    let text = format!(
        "MemTotal: 16000000 kB\nMemFree: 1000 kB\nMemAvailable: {} kB\n",
        mib * 1024
    );
    fs::write(file, text).unwrap();
}

#[test]
fn job_that_takes_last_memory_is_ended() {
    if !is_root() {
        eprintln!("not tried: only root has a mount namespace of its own");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let meminfo = home.path().join("meminfo");
    set_available(&meminfo, 9000);
    let script = format!("mount --bind {} /proc/meminfo", meminfo.display());
    let worker = Worker::start_in_namespace(&["--reserve-memory", "200MiB"], &script);
    let (modest, modest_events) = patient(&worker, "true");
    // The first reader of the pipe goes once all is in memory; the writer waits for the second.
    let greedy = Worker::script(
        "echo before; dd if=/dev/zero bs=64000000 count=1 2>/dev/null | \
         (head -c 1 >/dev/null; echo full; sleep 1000)",
    );
    let mut greedy_events = worker.follow(&greedy, 0);
    assert!(greedy_events.any(|event| {
        event["data"]
            .as_str()
            .is_some_and(|data| data.contains("full"))
    }));
    set_available(&meminfo, 150);
    let result = greedy_events.last().unwrap();
    set_available(&meminfo, 9000);
    let message = error_of(&result, "out-of-memory");
    for text in ["less than 200 MiB of memory", "grew the most"] {
        assert!(message.contains(text), "{text}: {message}");
    }
    worker.send_cancel(&modest);
    assert_eq!(modest_events.last().unwrap()["status"], "canceled");
    worker.assert_clean();
}

#[test]
fn shortage_of_others_ends_no_job() {
    if !is_root() {
        eprintln!("not tried: only root has a mount namespace of its own");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let meminfo = home.path().join("meminfo");
    set_available(&meminfo, 50);
    let script = format!("mount --bind {} /proc/meminfo", meminfo.display());
    let worker = Worker::start_in_namespace(&["--reserve-memory", "100MiB"], &script);
    let (job, events) = patient(&worker, "true");
    crate::support::eventually("it was measured", || {
        let log = worker.process.stderr();
        log.contains("no job uses much of it").then_some(())
    });
    worker.send_cancel(&job);
    assert_eq!(events.last().unwrap()["status"], "canceled");
}
