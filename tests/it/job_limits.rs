//! Limits of a job's processors, memory, processes and `/dev/shm`, and the kernel's kills for want of memory.

use crate::support::{
    Node, OrchestratorStandIn, Step, Worker,
    podman_host::{PodmanHost, is_root},
};
use serde_json::{Value, json};

/// Prints the limits that hold inside, by the files of cgroup v1 or v2.
const SHOW: &str = "cd /sys/fs/cgroup; \
    cat cpu.max cpu/cpu.cfs_quota_us 2>/dev/null | cut -d' ' -f1; \
    cat memory.max memory/memory.limit_in_bytes 2>/dev/null; \
    cat pids.max pids/pids.max 2>/dev/null; \
    df -k /dev/shm | awk 'END {print $2}'";
/// Takes 300 MB of memory, more than its job may have.
const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=300000000 count=1";

/// A worker; none where this user's podman can't limit memory, and the test has nothing to say.
fn limiting_worker() -> Option<Worker> {
    let worker = Worker::start(&[]);
    let result = worker.run(&Worker::script_with("true", json!({"memory": "64MiB"})));
    let is_refused = result["error"]["type"] == "limit-unsupported";
    assert!(!is_refused || !is_root(), "{result}");
    if is_refused {
        eprintln!("not tried: {}", result["error"]["message"]);
        return None;
    }
    Some(worker)
}

#[test]
fn limits_hold_in_sandbox_and_show() {
    let Some(worker) = limiting_worker() else {
        return;
    };
    let limits = json!({"cpus": 0.5, "memory": "64MiB", "pids": 64, "shm_size": 2 << 20});
    let result = worker.run(&Worker::script_with(SHOW, limits));
    assert_eq!(result["stdout"], "50000\n67108864\n64\n2048\n", "{result}");
    let effective = &result["effective"];
    for (name, value) in [
        ("cpus", json!(0.5)),
        ("memory", json!(64 << 20)),
        ("pids", json!(64)),
        ("shm_size", json!(2 << 20)),
    ] {
        assert_eq!(effective[name], value, "{name}: {effective}");
    }
    let plain = worker.run(&Worker::script("true"));
    for name in ["cpus", "memory", "pids", "shm_size", "gpus"] {
        assert_eq!(plain["effective"].get(name), None, "{name}");
    }
    let many = "for n in $(seq 200); do sleep 60 & done 2>/dev/null; echo never";
    let result = worker.run(&Worker::script_with(many, json!({"pids": 32})));
    assert_eq!(result["status"], "failed", "{result}");
    assert!(result["exit_code"].is_u64(), "{result}");
    worker.assert_clean();
}

#[test]
fn memory_limit_ends_its_job_alone() {
    let Some(worker) = limiting_worker() else {
        return;
    };
    let other = Worker::script("echo on; until [ -e /workspace/go ]; do sleep 0.05; done");
    let mut events = worker.follow(&other, 0);
    assert!(events.any(|event| event["data"] == "on\n"));
    let greedy = format!("exec {GREEDY}");
    let result = worker.run(&Worker::script_with(&greedy, json!({"memory": "32MiB"})));
    assert_eq!(
        (
            &result["status"],
            &result["exit_code"],
            &result["oom_killed"]
        ),
        (&json!("failed"), &json!(137), &json!(true)),
        "{result}"
    );
    let reason = result["reason"].as_str().unwrap();
    assert!(reason.contains("memory limit of 32MiB"), "{reason}");
    worker.send_cancel(&other);
    let last = events.last().unwrap();
    assert_eq!(last["status"], "canceled", "{last}");
    assert_eq!(last.get("oom_killed"), None, "{last}");
    worker.assert_clean();
}

#[test]
fn killed_child_shows_in_completed_result() {
    let Some(worker) = limiting_worker() else {
        return;
    };
    let script = format!("{GREEDY}; echo code $?");
    let result = worker.run(&Worker::script_with(&script, json!({"memory": "32MiB"})));
    assert_eq!(
        (&result["status"], &result["stdout"], &result["oom_killed"]),
        (&json!("completed"), &json!("code 137\n"), &json!(true)),
        "{result}"
    );
}

/// Refusal of a job with these limits.
fn refusal(worker: &Worker, limits: Value) -> String {
    let result = worker.run(&Worker::script_with("echo ran", limits));
    let error = &result["error"];
    assert_eq!(
        (&result["status"], &error["type"], &result["stdout"]),
        (&json!("failed"), &json!("limit-unsupported"), &json!("")),
        "{result}"
    );
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn unenforceable_limit_is_refused_with_reason() {
    let host = PodmanHost::new();
    // As where the controller is not delegated.
    let engine = host.engine(
        "for word; do case $word in \
         --cpus=*) echo 'controller `cpu` is not available' >&2; exit 126;; \
         --pids-limit=*) ;; \
         *) set -- \"$@\" \"$word\";; esac; shift; done; exec podman \"$@\"",
    );
    let worker = Worker::start(&["--engine", &engine]);
    let message = refusal(&worker, json!({"cpus": 2}));
    for text in ["the limit cpus", "`cpu` is not available", "another node"] {
        assert!(message.contains(text), "{text}: {message}");
    }
    let message = refusal(&worker, json!({"pids": 100}));
    assert!(message.contains("the limit pids"), "{message}");
    let result = worker.run(&Worker::script_with(
        "echo ran",
        json!({"shm_size": "1MiB"}),
    ));
    assert_eq!(result["stdout"], "ran\n", "{result}");
    assert_eq!(worker.api.get("/readyz").status, 200);
}

#[test]
fn report_lists_enforceable_limits() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let _node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    let report = orchestrator.call(Step::Report, 1).body;
    let features = report["sandbox"]["features"].as_array().unwrap();
    assert!(features.contains(&json!("limit-shm-size")), "{features:?}");
    if is_root() {
        for feature in ["limits", "limit-cpus", "limit-memory", "limit-pids"] {
            assert!(features.contains(&json!(feature)), "{features:?}");
        }
    }
}
