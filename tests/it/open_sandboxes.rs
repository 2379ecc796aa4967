//! Sandboxes that are less isolated than requested: such a node accepts no jobs.
//!
//! Tests that share the node's PID namespace run in a PID namespace of their own, where a broken init could
//! end no other process.

use crate::support::{
    Process, cynode,
    podman_host::{PodmanHost, is_root, within},
    process::run,
    server::role,
};
use std::{path::Path, process::Command};

#[test]
fn node_refuses_to_start_with_open_sandboxes() {
    let host = PodmanHost::new();
    let mut cases = vec![];
    for (section, named) in [
        ("env=['LEAK=1']", "variable LEAK (containers.conf: env)"),
        (
            "volumes=['HOME/leak:/leak']",
            "/leak is mounted in them (containers.conf: volumes",
        ),
        (
            "seccomp_profile='unconfined'",
            "containers.conf: seccomp_profile",
        ),
        ("devices=['/dev/null:/dev/leak']", "/dev/leak"),
    ] {
        // A podman that ignores our settings.
        let settings = host.settings(
            &format!("{}.conf", cases.len()),
            &format!("[containers]\n{section}"),
        );
        cases.push((
            format!("CONTAINERS_CONF={settings} exec podman \"$@\""),
            named,
        ));
    }
    for (flag, other, named) in [
        (
            "--uts=private",
            "--uts=host",
            "uts namespace (containers.conf: utsns)",
        ),
        (
            "--network=none",
            "--network=host",
            "net namespace (containers.conf: netns)",
        ),
        (
            "--cgroupns=private",
            "--cgroupns=host",
            "cgroup namespace (containers.conf: cgroupns)",
        ),
    ] {
        cases.push((instead(flag, other), named));
    }
    if is_root() {
        // Without root, podman wants the host's /dev/mqueue for it, which not every host has.
        let named = "ipc namespace (containers.conf: ipcns)";
        cases.push((instead("--ipc=private", "--ipc=host"), named));
    }
    for (script, named) in cases {
        let message = host.refusal(&host.engine(&script), |command| command);
        assert!(
            message.contains("not isolated") && message.contains(named),
            "{named}: {message}"
        );
    }
}

/// A script that runs podman with one flag replaced.
fn instead(flag: &str, other: &str) -> String {
    format!(
        "n=$#; while [ $n -gt 0 ]; do word=$1; shift; [ \"$word\" = {flag} ] && word={other}; \
         set -- \"$@\" \"$word\"; n=$((n-1)); done; exec podman \"$@\""
    )
}

#[test]
fn doctor_names_setting_that_opens_sandboxes() {
    let host = PodmanHost::new();
    let engine = host.engine(&instead("--uts=private", "--uts=host"));
    let mut command = cynode(host.path());
    command.args(["doctor", "--output", "json", "--engine", &engine]);
    let done = run(command.arg("--data-dir").arg(host.data_dir()));
    assert_ne!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("containers.conf: utsns"), "{done:?}");
}

/// Whether this test is skipped, with a message: a plain user's podman doesn't work in a namespace that
/// such a user can create.
fn needs_root() -> bool {
    if !is_root() {
        eprintln!("left out, since only root can make a PID namespace for a podman");
    }
    !is_root()
}

/// The command in a PID namespace of its own, beside another process, which creates `marker` if it outlives it.
fn in_namespace(marker: &Path, command: &Command) -> Command {
    let script = "sleep 1000 & bystander=$!; marker=$1; shift; \"$@\"; code=$?; \
                  kill -0 $bystander && touch \"$marker\"; exit $code";
    let namespace = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        script,
        "sh",
    ];
    within(&namespace, marker, command)
}

/// Separate storage, since pids of that namespace are not valid outside of it.
const PODMAN: &str = "exec podman --root HOME/storage --runroot HOME/run --tmpdir HOME/tmp";
const PIDNS: &str = "[containers]\npidns='host'";

#[test]
fn sandbox_in_host_pid_namespace_runs_nothing() {
    if needs_root() {
        return;
    }
    let host = PodmanHost::new();
    let script = instead("--pid=private", "--pid=host").replace("exec podman", PODMAN);
    let settings = host.settings("containers.conf", PIDNS);
    let engine = host.engine(&format!("export CONTAINERS_CONF={settings}; {script}"));
    let marker = host.path().join("bystander-lives");
    let message = host.refusal(&engine, |command| in_namespace(&marker, &command));
    assert!(
        message.contains("pid namespace (containers.conf: pidns)"),
        "{message}"
    );
    assert!(marker.exists(), "another process was ended: {message}");
}

#[test]
fn shared_pid_namespace_setting_is_overridden() {
    if needs_root() {
        return;
    }
    let host = PodmanHost::new();
    let settings = host.settings("containers.conf", PIDNS);
    let engine = host.engine(&format!("{PODMAN} \"$@\""));
    let mut command = role(host.path(), "worker", &host.data_dir());
    command.args(host.worker(&engine));
    command.env("CONTAINERS_CONF", settings);
    let mut command = in_namespace(&host.path().join("bystander-lives"), &command);
    let mut worker = Process::start("worker", host.path(), &mut command);
    host.wait_until_it_serves(&mut worker);
    // The end of PID 1 ends all processes of its namespace.
    worker.kill();
}
