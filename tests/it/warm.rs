//! Warm sandboxes: which job gets one, what is in it, and what is left of those that no job took.

use crate::support::{
    Cluster, IMAGE, Worker, eventually, eventually_eq,
    exposition::Exposition,
    image::{self, USER_IMAGE, podman},
    podman_host::is_root,
    server::kill,
};
use cynode::digest::sha256_hex;
use rustix::process::Signal;
use serde_json::{Value, json};

/// A worker that keeps this many warm sandboxes at most.
fn start(most: usize) -> Worker {
    Worker::start(&["--warm", &most.to_string()])
}

fn starts(worker: &Worker, start: &str) -> f64 {
    let series = format!("cynode_worker_sandbox_starts_total{{start=\"{start}\"}}");
    Exposition::of(&worker.api).value(&series)
}

/// Waits until so many sandboxes wait for jobs.
fn wait_ready(worker: &Worker, count: usize) {
    eventually_eq("warm sandboxes are ready", count as f64, || {
        Exposition::of(&worker.api).value("cynode_worker_sandboxes_warm")
    });
}

/// Runs a first job, after which one sandbox is warm.
fn warmed(most: usize) -> Worker {
    let worker = start(most);
    assert_eq!(worker.run(&Worker::script("true"))["exit_code"], 0);
    wait_ready(&worker, 1);
    worker
}

#[track_caller]
fn assert_completed(worker: &Worker, job: &Value) -> String {
    let result = worker.run(job);
    assert_eq!(result["status"], "completed", "{result}");
    result["stdout"].as_str().unwrap().to_owned()
}

#[test]
fn each_warm_sandbox_serves_one_job() {
    let worker = warmed(2);
    let script = "[ -z \"$(ls -A /workspace | grep -v '^artifacts$')\" ] || exit 9
        [ ! -e /tmp/used ] || exit 8
        touch /tmp/used /workspace/used && cat /etc/hostname";
    let mut hosts = Vec::new();
    for taken in 1..=3 {
        hosts.push(assert_completed(&worker, &Worker::script(script)));
        assert_eq!(starts(&worker, "warm"), f64::from(taken));
        wait_ready(&worker, 1);
    }
    hosts.sort();
    hosts.dedup();
    assert_eq!(hosts.len(), 3, "each has a container of its own");
    worker.assert_clean();
}

#[test]
fn warm_job_has_its_own_environment() {
    let worker = warmed(2);
    let job = Worker::script_with(
        "echo $MY; echo $CYNODE_JOB_ID; pwd; ls -d artifacts; ls /sys/class/net",
        json!({"env": {"MY": "own"}}),
    );
    let id = job["job_id"].as_str().unwrap();
    let expected = format!("own\n{id}\n/workspace\nartifacts\nlo\n");
    assert_eq!(assert_completed(&worker, &job), expected);
    assert_eq!(starts(&worker, "warm"), 1.0);
}

#[test]
fn other_limits_need_another_sandbox() {
    let worker = warmed(2);
    let limited = || Worker::script_with("true", json!({"shm_size": "1MiB"}));
    assert_completed(&worker, &limited());
    assert_eq!(starts(&worker, "cold"), 2.0);
    wait_ready(&worker, 2);
    assert_completed(&worker, &limited());
    assert_eq!(starts(&worker, "warm"), 1.0);
}

#[test]
fn files_reach_a_warm_sandbox_with_its_owner() {
    let worker = start(2);
    let job = |command: &str| {
        let mut job = Worker::script(command);
        job["sandbox"]["image"] = USER_IMAGE.into();
        job
    };
    assert_completed(&worker, &job("true"));
    if is_root() {
        wait_ready(&worker, 1);
    }
    let sha256 = sha256_hex(b"input");
    let path = format!("/v1/worker/contents/{sha256}");
    worker.api.call("PUT", &path, &[], b"input").expect(204);
    let content = json!({"sha256": sha256, "size_bytes": 5});
    let mut placed = job("cat in/a && echo more >> in/a && touch in/b artifacts/c");
    placed["sandbox"]["files"] = json!([{"path": "in/a", "content": content}]);
    assert_eq!(assert_completed(&worker, &placed), "input");
    // Rootless, this user can't write where another one owns the workspace.
    assert_eq!(starts(&worker, "warm"), if is_root() { 1.0 } else { 0.0 });
}

/// Rootless, this process can't move a workspace that podman gave to another user.
#[test]
fn every_job_runs_in_image_with_user() {
    let worker = start(2);
    let job = || Worker::job_in(USER_IMAGE, &["id", "-u"]);
    let first = assert_completed(&worker, &job());
    if !is_root() {
        eventually("the sandbox of no use is gone", || {
            (worker.warm().is_empty() && worker.shims().is_empty()).then_some(())
        });
    }
    for _ in 0..2 {
        if is_root() {
            wait_ready(&worker, 1);
        }
        assert_eq!(assert_completed(&worker, &job()), first);
    }
    assert_eq!(starts(&worker, "warm"), if is_root() { 2.0 } else { 0.0 });
    worker.assert_clean();
}

#[test]
fn warm_sandbox_ends_with_its_worker() {
    for end in ["killed", "stopped"] {
        let mut worker = warmed(2);
        let name = worker.warm().remove(0);
        match end {
            "killed" => worker.process.kill(),
            _ => assert_eq!(worker.process.terminate(), 0),
        }
        eventually("nothing is left of it", || {
            let is_gone = worker.shims().is_empty() && worker.warm().is_empty();
            (is_gone && worker.containers().is_empty() && worker.uppers().is_empty()).then_some(())
        });
        worker.start_again();
        assert_completed(&worker, &Worker::script("true"));
        wait_ready(&worker, 1);
        assert_ne!(worker.warm(), [name]);
    }
}

#[test]
fn killed_shim_of_warm_sandbox_costs_no_job() {
    let worker = warmed(2);
    let name = worker.warm().remove(0);
    for shim in worker.shims() {
        kill(shim, Signal::KILL);
    }
    assert_completed(&worker, &Worker::script("true"));
    eventually("what it left is removed", || {
        (!worker.warm().contains(&name)).then_some(())
    });
    worker.assert_clean();
}

#[test]
fn killed_warm_container_costs_no_job() {
    let worker = warmed(2);
    let name = worker.warm().remove(0);
    podman(&["kill", "--signal=KILL", &name]).unwrap();
    assert_completed(&worker, &Worker::script("true"));
    worker.assert_clean();
}

#[test]
fn job_assigned_by_killed_worker_runs_once() {
    for is_before in [true, false] {
        assign_and_kill(is_before);
    }
}

/// Stops the shim while it is assigned, so that its worker dies in the middle of it. It goes on before or after the
/// next worker has come.
fn assign_and_kill(is_before: bool) {
    let mut worker = warmed(2);
    let shims = worker.shims();
    for &shim in &shims {
        kill(shim, Signal::STOP);
    }
    let continue_all = || {
        for &shim in &shims {
            kill(shim, Signal::CONT);
        }
    };
    let job = Worker::script("echo ran");
    let events = worker.follow(&job, 0);
    eventually("the job has the warm sandbox's socket", || {
        let spools = worker.spools();
        let assigned = spools
            .iter()
            .any(|spool| spool.join("shim.sock").exists() && spool.join("request.json").exists());
        assigned.then_some(())
    });
    drop(events);
    worker.process.kill();
    if is_before {
        continue_all();
    }
    worker.start_again();
    if !is_before {
        continue_all();
    }
    let result = worker.attach(&job, 0).last().unwrap();
    assert_eq!(result["status"], "completed", "{result}");
    assert_eq!(result["stdout"], "ran\n");
    worker.assert_clean();
}

#[test]
fn replaced_image_is_not_served_warm() {
    let name = format!("localhost/cynode-test-warm:{}", uuid::Uuid::new_v4());
    podman(&["tag", IMAGE, &name]).unwrap();
    let worker = start(2);
    assert_completed(&worker, &Worker::job_in(&name, &["true"]));
    wait_ready(&worker, 1);
    let before = worker.warm();
    podman(&["tag", USER_IMAGE, &name]).unwrap();
    let user = assert_completed(&worker, &Worker::job_in(&name, &["id", "-u"]));
    assert_ne!(user, "0\n");
    eventually("the sandbox of the old image is gone", || {
        (!worker.warm().iter().any(|name| before.contains(name))).then_some(())
    });
    // Without a second name, podman would remove all names of the image.
    podman(&["untag", &name, &name]).unwrap();
}

#[test]
fn prefetched_image_is_warm_before_the_first_job() {
    image::ready();
    let cluster = Cluster::start_with(&["--warm", "2", "--prefetch-image", IMAGE]);
    eventually_eq("one is warm", json!({"ready": 1, "max": 2}), || {
        cluster.user.get("/v1/nodes/box").json(200)["warm"].clone()
    });
    let shown = cluster.run(&["nodes", "show", "box"]).stdout;
    assert!(shown.contains("1 of at most 2"), "{shown}");
    let id = cluster.script("echo hello");
    assert_eq!(cluster.finish(&id)["status"], "completed");
}

#[test]
fn none_is_kept_where_the_operator_says_so() {
    for flags in [["--warm", "0"], ["--warm-memory", "1MiB"]] {
        let worker = Worker::start_with(&flags, &[("CYNODE_WARM", "2")]);
        for _ in 0..2 {
            assert_completed(&worker, &Worker::script("true"));
        }
        assert_eq!(starts(&worker, "cold"), 2.0);
        assert!(worker.warm().is_empty());
    }
}
