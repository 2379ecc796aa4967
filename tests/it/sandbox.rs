//! Isolation of a command in its sandbox, and secrecy of its command line and environment.

use crate::support::{IMAGE, Worker, eventually, image::USER_IMAGE, uuid};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

#[test]
fn sandbox_has_no_network_capabilities_or_node_files() {
    let worker = Worker::start(&[]);
    let facts = "ls /sys/class/net; grep -c : /proc/net/dev; grep -E '^(Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status; \
                 mount | grep -c ' /workspace '";
    let expected = "lo\n1\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
                    CapAmb:\t0000000000000000\nNoNewPrivs:\t1\n1\n";
    for policy in [Value::Null, json!("none"), json!("restricted")] {
        let result = worker.run(&Worker::script_with(
            facts,
            json!({"network_policy": policy}),
        ));
        assert_eq!(result["stdout"], expected, "{result}");
        assert_eq!(result["effective"]["network"], "none");
    }
    let wget = worker.run(&Worker::script("wget -T 5 -O - http://192.0.2.1/ || ping -c 1 -W 1 127.0.0.2 >/dev/null; nc -w 1 192.0.2.1 80"));
    assert_ne!(wget["exit_code"], 0, "no network is reachable");
    // 3 is the open directory: no descriptor of init's is inherited.
    assert_eq!(
        worker.run(&Worker::job(&["ls", "/proc/self/fd"]))["stdout"],
        "0\n1\n2\n3\n"
    );
    // Each container is new: no file of one job is left for the next.
    worker.run(&Worker::script("touch /tmp/left /workspace/left /left"));
    let result = worker.run(&Worker::script("ls /tmp /workspace; ls /left"));
    assert_eq!(
        (&result["stdout"], &result["exit_code"]),
        (&json!("/tmp:\n\n/workspace:\nartifacts\n"), &json!(1)),
        "{result}"
    );
}

#[test]
fn node_environment_stays_outside_sandbox() {
    let secret = uuid();
    let worker = Worker::start_with_env(&[
        ("HTTP_PROXY", &secret),
        ("https_proxy", &secret),
        ("NODE_SECRET", &secret),
    ]);
    let names = |result: &Value| -> Vec<String> {
        let mut names: Vec<String> = result["stdout"]
            .as_str()
            .unwrap()
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0.to_owned()))
            .collect();
        names.sort();
        names
    };
    let result = worker.run(&Worker::job(&["env"]));
    assert!(!result.to_string().contains(&secret), "{result}");
    let known = [
        "CYNODE_ARTIFACTS_DIR",
        "CYNODE_JOB_ID",
        "CYNODE_TASK_ID",
        "CYNODE_WORKSPACE_DIR",
        "HOME",
        "HOSTNAME",
        "PATH",
        "PWD",
        "TERM",
        "container",
    ];
    let strange: Vec<_> = names(&result)
        .into_iter()
        .filter(|name| !known.contains(&name.as_str()))
        .collect();
    assert!(strange.is_empty(), "{strange:?} in {result}");
    let search =
        "cat /proc/1/environ /proc/1/cmdline; grep -rl x /proc/1/fd /run/secrets 2>/dev/null; true";
    let result = worker.run(&Worker::script(search));
    assert!(!result.to_string().contains(&secret), "{result}");
}

#[test]
fn job_cannot_forge_exit_or_touch_init() {
    let worker = Worker::start(&[]);
    let attack = "kill -9 1; kill -STOP 1; for fd in 0 1 2 3 4 5 6 7 8 9; do \
                  (printf 'X\\0\\0\\0\\0' > /proc/1/fd/$fd) 2>/dev/null && echo wrote $fd; done; \
                  cat /proc/1/fd/* /proc/1/environ /proc/1/mem 2>/dev/null; \
                  (echo x > /.cynode-init) 2>/dev/null && echo changed; rm -f /.cynode-init 2>/dev/null && echo removed; \
                  echo still; exit 9";
    for image in [IMAGE, USER_IMAGE] {
        let result = worker.run(&Worker::script_with(attack, json!({"image": image})));
        assert_eq!(
            (&result["stdout"], &result["exit_code"]),
            (&json!("still\n"), &json!(9)),
            "{image}: {result}"
        );
    }
    assert_eq!(
        worker.run(&Worker::job(&["echo", "next"]))["stdout"],
        "next\n"
    );
}

#[test]
fn workspace_removal_follows_no_link() {
    let worker = Worker::start(&[]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "x").unwrap();
    let target = outside.path().display();
    let script = format!(
        "ln -s {target} link; mkdir -p a/b; ln -s {target}/precious a/b/file; ln -s / a/root; chmod 0 a/b; mkfifo pipe; ls -A"
    );
    let result = worker.run(&Worker::script(&script));
    assert_eq!(result["stdout"], "a\nartifacts\nlink\npipe\n");
    worker.assert_clean();
    assert!(outside.path().join("precious").exists());
}

#[test]
fn host_processes_hide_command_and_environment() {
    let worker = Worker::start(&[]);
    let (argument, value) = (uuid(), uuid());
    let mut job = Worker::job(&["sh", "-c", "echo up; sleep 1000; true", &argument]);
    job["sandbox"]["env"] = json!({"SECRET": value});
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "up\n"));
    for marker in [&argument, &value] {
        assert!(
            anywhere(marker),
            "the search finds the job's own process, so it would find others"
        );
        assert_eq!(on_host(marker), Vec::<PathBuf>::new());
    }
    worker
        .api
        .act(&format!("{}:cancel", Worker::path(&job)))
        .expect(200);
    assert_eq!(events.last().unwrap()["status"], "canceled");
}

/// Whether any process, in a sandbox or not, has `marker` in its arguments or environment.
pub(crate) fn anywhere(marker: &str) -> bool {
    !processes_with(marker).is_empty()
}

/// The processes outside of sandboxes that have `marker` in their arguments or environment.
pub(crate) fn on_host(marker: &str) -> Vec<PathBuf> {
    let ours = fs::read_link("/proc/self/ns/pid").unwrap();
    let outside = |process: &PathBuf| {
        fs::read_link(process.join("ns/pid")).is_ok_and(|theirs| theirs == ours)
    };
    processes_with(marker).into_iter().filter(outside).collect()
}

fn processes_with(marker: &str) -> Vec<PathBuf> {
    let has = |path: PathBuf| {
        fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(marker))
    };
    fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .bytes()
                .all(|b| b.is_ascii_digit())
        })
        .filter(|process| {
            ["cmdline", "environ"]
                .iter()
                .any(|file| has(process.join(file)))
        })
        .collect()
}

#[test]
fn stopping_worker_ends_its_sandboxes() {
    let mut worker = Worker::start(&["--shutdown-grace", "1ms"]);
    let marker = uuid();
    let job = Worker::job(&["sh", "-c", "echo up; sleep 1000; true", &marker]);
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "up\n"));
    assert_eq!(worker.process.terminate(), 0);
    assert!(
        !anywhere(&marker),
        "the worker waited for the end of its sandboxes"
    );
    worker.assert_clean();
    eventually("no container is left", || {
        worker.containers().is_empty().then_some(())
    });
}
