//! System calls of a sandbox's command: those that work needs succeed, and none outlives or leaves the sandbox.

use crate::support::{Worker, attack, image::podman};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;

/// Attempts of the hostile command, each with its outcome.
fn lines(result: &Value) -> Vec<(String, String)> {
    assert_eq!(result["status"], "completed", "{result}");
    let stdout = result["stdout"].as_str().unwrap();
    let line = |line: &str| {
        let (name, outcome) = line.split_once(' ').unwrap();
        (name.to_owned(), outcome.to_owned())
    };
    stdout.lines().map(line).collect()
}

#[test]
fn hostile_calls_are_refused() {
    let worker = Worker::start(&[]);
    for image in attack::images() {
        let result = worker.run(&Worker::job_in(image, &["/attack"]));
        let tries = lines(&result);
        let done: Vec<_> = tries
            .iter()
            .filter(|(_, outcome)| outcome == "done")
            .map(|(name, _)| name.as_str())
            .collect();
        assert!(tries.len() > 60, "{tries:?}");
        assert!(done.is_empty(), "in {image}: {done:?}");
        assert_eq!(result["effective"]["seccomp"], "cynode-1", "{result}");
    }
    for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        assert!(
            !text.contains("cynode-attack"),
            "{file} of the host: {text}"
        );
    }
    worker.assert_clean();
}

#[test]
fn legitimate_calls_pass() {
    let worker = Worker::start(&[]);
    for image in attack::images() {
        let result = worker.run(&Worker::job_in(image, &["/attack", "legitimate"]));
        for (name, outcome) in lines(&result) {
            assert_eq!(outcome, "done", "{name} in {image}");
        }
    }
}

#[test]
fn sandbox_is_first_oom_victim() {
    let worker = Worker::start(&[]);
    for image in attack::images() {
        let scores = ["cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj"];
        let result = worker.run(&Worker::job_in(image, &scores));
        assert_eq!(result["stdout"], "1000\n1000\n", "{image}: {result}");
    }
}

#[test]
fn killed_init_fails_job_without_retry() {
    let worker = Worker::start(&[]);
    let job = Worker::script("echo begun; exec sleep 1000");
    let mut events = worker.follow(&job, 0);
    while events.next().unwrap()["event"] != "stdout" {}
    let label = format!("label=io.cynode.job-id={}", job["job_id"].as_str().unwrap());
    let pid = podman(&["ps", "--filter", &label, "--format", "{{.Pid}}"]).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    // As the OOM killer does when it chooses init.
    kill_process(pid, Signal::KILL).unwrap();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["status"], &last["exit_code"], last.get("error")),
        (&json!("failed"), &json!(137), None),
        "{last}"
    );
    worker.assert_clean();
}
