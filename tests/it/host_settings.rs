//! Settings of the host's podman: those for containers reach no sandbox, and those for the engine stay in force.

use crate::support::{
    Process, Worker,
    image::podman,
    podman_host::{PodmanHost, is_root, within},
    process::with_tool,
    read,
    server::role,
};
use serde_json::Value;
use std::{fs, path::PathBuf};

/// Settings for containers that are visible inside one, except the PID namespace.
const OPEN: &str = r#"
[containers]
annotations = ["leak=1"]
cgroupns = "host"
default_sysctls = ["net.ipv4.conf.all.log_martians=1"]
devices = ["/dev/null:/dev/leak"]
env = ["LEAK=1", "TERM=leak"]
env_host = true
init = true
ipcns = "host"
label = false
log_driver = "k8s-file"
mounts = ["type=bind,src=HOME/leak,dst=/leak,ro"]
netns = "host"
no_hosts = true
privileged = true
seccomp_profile = "unconfined"
tz = "Asia/Tokyo"
umask = "0000"
userns = "keep-id"
utsns = "host"
volumes = ["HOME/leak:/leak:ro"]
"#;
/// Settings for the engine: a runtime that records each sandbox.
const ENGINE: &str = r#"
[engine]
runtime = "noting"
[engine.runtimes]
noting = ["HOME/bin/noting"]
"#;
/// Script that prints what a job sees.
const LOOK: &str = "for name in cgroup ipc mnt net pid user uts; do echo $name $(readlink /proc/self/ns/$name); done; \
    cut -d' ' -f2 /proc/mounts; env; ls -A /dev; umask; date +%Z; \
    grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/sys/net/ipv4/conf/all/log_martians";

/// Starts a worker in this environment, and returns what a job sees in it.
fn seen(variables: &[(&str, &str)]) -> (Worker, String) {
    let worker = Worker::start_with(&[], variables);
    let result = worker.run(&Worker::script(LOOK));
    let seen = result["stdout"].as_str().unwrap().to_owned();
    assert_eq!(result["exit_code"], 0, "{result}");
    (worker, seen)
}

fn assert_closed(seen: &str) {
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let line = format!("{name} {}", ours.display());
        assert!(!seen.contains(&line), "{line} in {seen}");
    }
    assert!(!seen.contains("leak") && !seen.contains("LEAK"), "{seen}");
    for line in [
        "TERM=xterm",
        "0022",
        "UTC",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(seen.lines().any(|seen| seen == line), "{line}: {seen}");
    }
    assert_eq!(seen.lines().last(), Some("0"), "a sysctl: {seen}");
}

#[test]
fn settings_for_containers_reach_no_job() {
    let host = PodmanHost::new();
    // The runtime that works on this host.
    let runtime = Worker::start(&[]).run(&Worker::script("true"));
    let runtime = runtime["effective"]["runtime"].as_str().unwrap();
    let script = format!("echo $* >>HOME/noted; exec {runtime} \"$@\"");
    with_tool(host.path(), "noting", &host.text(&script));
    let settings = host.settings("containers.conf", &format!("{OPEN}{ENGINE}"));
    let (worker, seen) = seen(&[("CONTAINERS_CONF", &settings)]);
    assert_closed(&seen);
    // The settings of the engine are in force.
    let result = worker.run(&Worker::script("true"));
    assert_eq!(result["effective"]["runtime"], "noting", "{result}");
    assert!(read(host.path().join("noted")).contains("create"));
}

#[test]
fn annotations_and_user_namespaces_reach_no_container() {
    let host = PodmanHost::new();
    let settings = host.settings("containers.conf", OPEN);
    let variables = [
        ("CONTAINERS_CONF", settings.as_str()),
        // Podman reads it from 4.6 on.
        ("CONTAINERS_CONF_OVERRIDE", &settings),
        ("PODMAN_USERNS", "keep-id"),
    ];
    let worker = Worker::start_with(&[], &variables);
    let job = Worker::script("echo up; sleep 1000");
    let mut events = worker.follow(&job, 0);
    assert!(events.any(|event| event["data"] == "up\n"));
    let [id] = &worker.containers()[..] else {
        panic!("one container")
    };
    let inspected = podman(&["container", "inspect", id]).unwrap();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let annotations = inspected[0]["Config"]["Annotations"].to_string();
    assert!(!annotations.contains("leak"), "{annotations}");
    assert_ne!(
        inspected[0]["HostConfig"]["UsernsMode"], "private",
        "{inspected}"
    );
    let cancel = format!("{}:cancel", Worker::path(&job));
    worker.api.act(&cancel).json(200);
    assert_eq!(events.last().unwrap()["status"], "canceled");
}

#[test]
fn settings_of_plain_user_reach_no_job() {
    let host = PodmanHost::new();
    // Root has no settings of its own, and must not read these.
    host.settings("config/containers/containers.conf", OPEN);
    host.settings(
        "config/containers/containers.conf.d/1.conf",
        "[containers]\nenv=['LEAK=2']",
    );
    let config = host.path().join("config");
    let (_worker, seen) = seen(&[("XDG_CONFIG_HOME", config.to_str().unwrap())]);
    assert_closed(&seen);
}

#[test]
fn invalid_toml_settings_stop_start() {
    let host = PodmanHost::new();
    let settings = host.settings("broken.conf", "[engine\n");
    for path in [settings.as_str(), "/nonexistent/containers.conf"] {
        let message = host.refusal("podman", |mut command| {
            command.env("CONTAINERS_CONF", path);
            command
        });
        assert!(message.contains(path), "{message}");
    }
}

#[test]
fn host_mounts_reach_no_sandbox() {
    let host = PodmanHost::new();
    let mounts = host.text("HOME/leak:/run/secrets/leak\n");
    host.settings("etc/containers/mounts.conf", &mounts);
    host.settings("home/.config/containers/mounts.conf", &mounts);
    // The start checks a sandbox, and would fail.
    let mut command = role(host.path(), "worker", &host.data_dir());
    command.args(host.worker("podman"));
    let mut inside = if is_root() {
        let script = "mount --bind \"$1\" /etc/containers && shift && exec \"$@\"";
        within(
            &["unshare", "--mount", "sh", "-c", script, "sh"],
            host.path().join("etc/containers"),
            &command,
        )
    } else {
        let data = home().join(".local/share");
        command
            .env("XDG_DATA_HOME", data)
            .env("HOME", host.path().join("home"));
        command
    };
    for file in ["policy.json", "registries.conf"] {
        let _ = fs::copy(
            format!("/etc/containers/{file}"),
            host.path().join("etc/containers").join(file),
        );
    }
    let mut worker = Process::start("worker", host.path(), &mut inside);
    host.wait_until_it_serves(&mut worker);
    assert_eq!(worker.terminate(), 0);
}

fn home() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap())
}
