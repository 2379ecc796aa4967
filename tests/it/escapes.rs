//! Jobs that try to escape, or to harm the node. Each ends like any other job and leaves the node unchanged.

use crate::support::{
    Worker,
    image::{IMAGE, USER_IMAGE},
};
use serde_json::{Value, json};

/// Fails unless a sandbox still works.
fn assert_well(worker: &Worker) {
    let result = worker.run(&Worker::job(&["echo", "well"]));
    assert_eq!(result["stdout"], "well\n", "{result}");
    worker.assert_clean();
}

#[test]
fn job_files_with_internal_names_are_ignored() {
    let worker = Worker::start(&[]);
    let script = "for name in result.json job.json request.json log.0 shim.sock shim.log; do \
                  ln -s /etc/passwd $name || exit 1; mkfifo x-$name; \
                  (echo forged > ../$name) 2>/dev/null; ln -s /workspace/$name ../$name 2>/dev/null; done; \
                  mkfifo stdout stderr; ls -A | wc -l; exit 5";
    let result = worker.run(&Worker::script(script));
    assert_eq!(
        (&result["stdout"], &result["exit_code"]),
        (&json!("15\n"), &json!(5)),
        "{result}"
    );
    assert_well(&worker);
}

#[test]
fn any_workspace_can_be_removed() {
    let worker = Worker::start(&[]);
    let script = "mkdir -p a/b/c; touch a/b/c/file; chmod 0 a/b/c a/b a; cd /; rm -rf /workspace; rmdir /workspace; \
                  mv /workspace /elsewhere; chmod 0 /workspace; echo spoilt; exit 4";
    for image in [IMAGE, USER_IMAGE] {
        let job = Worker::script_with(&format!("({script}) 2>/dev/null"), json!({"image": image}));
        let result = worker.run(&job);
        assert_eq!(
            (&result["stdout"], &result["exit_code"]),
            (&json!("spoilt\n"), &json!(4)),
            "{image}: {result}"
        );
        assert_well(&worker);
    }
}

#[test]
fn workspace_files_gain_no_privileges() {
    let worker = Worker::start(&[]);
    let script = "grep ' /workspace ' /proc/mounts; grep -E '^(NoNewPrivs|CapEff|CapBnd)' /proc/self/status; \
                  mknod device c 1 3 2>/dev/null && cat device; mount -t tmpfs none /tmp 2>/dev/null && echo mounted; \
                  ls /proc/self/fd | wc -l";
    let result = worker.run(&Worker::script(script));
    let stdout = result["stdout"].as_str().unwrap();
    for flag in ["nosuid", "nodev"] {
        assert!(stdout.lines().next().unwrap().contains(flag), "{stdout}");
    }
    assert!(stdout.contains("NoNewPrivs:\t1"), "{stdout}");
    assert!(stdout.contains("CapEff:\t0000000000000000"), "{stdout}");
    assert!(stdout.contains("CapBnd:\t0000000000000000"), "{stdout}");
    assert!(!stdout.contains("mounted"), "{stdout}");
    // Its three standard descriptors, and the directory that `ls` reads.
    assert_eq!(stdout.lines().last(), Some("4"), "{stdout}");
    assert_well(&worker);
}

#[test]
fn fork_bomb_ends_at_timeout_without_harm() {
    let worker = Worker::start(&[]);
    let bomb = Worker::script_with(
        // `exec`, since there may be no room for another process.
        "bomb() { bomb | bomb & }; bomb; exec sleep 1000",
        json!({"timeout_seconds": 3}),
    );
    let mut events = worker.follow(&bomb, 0);
    assert_eq!(events.next().unwrap()["event"], "started");
    let beside = worker.run(&Worker::job(&["echo", "beside"]));
    assert_eq!(beside["stdout"], "beside\n", "{beside}");
    let result = events.last().unwrap();
    assert_eq!(result["status"], "timeout", "{result}");
    assert_well(&worker);
}

#[test]
fn job_kills_only_its_own_processes() {
    let worker = Worker::start(&[]);
    let result = worker.run(&Worker::script("sleep 1000 & kill -9 -1; wait $!; exit $?"));
    assert_eq!(result["exit_code"], 137, "{result}");
    let result = worker.run(&Worker::script(
        "trap '' TERM; kill -TERM 1; kill -9 1; echo $?; exit 6",
    ));
    assert_eq!(result["exit_code"], 6, "{result}");
    assert_well(&worker);
}

/// No one reads the output, and the job doesn't wait for a reader.
#[test]
fn output_flood_does_not_block_job() {
    let worker = Worker::start(&["--job-log-size", "2MiB"]);
    let job = Worker::script("yes | head -c 200000000; yes | head -c 50000000 >&2; exit 3");
    let mut slow = worker.follow(&job, 0);
    assert_eq!(slow.next().unwrap()["event"], "started");
    let result = worker.run(&job);
    assert_eq!(
        (&result["exit_code"], &result["truncated"]),
        (&json!(3), &json!({"stdout": true, "stderr": true}))
    );
    let rest: Vec<Value> = slow.collect();
    assert_eq!(rest.last().unwrap()["exit_code"], 3);
    assert_well(&worker);
}
