//! `cynode doctor` says what is, mends only what it is told to, and leaves nothing behind.

use crate::support::{
    IMAGE, Orchestrator, cynode,
    image::podman,
    lasting_port,
    listener::{Calls, Listener},
    process::{Done, run},
};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// All checks in their order.
const NAMES: [&str; 16] = [
    "config",
    "engine",
    "rootless",
    "linger",
    "sandbox",
    "cgroups",
    "disk",
    "data-dir",
    "database",
    "gateway-port",
    "control-port",
    "worker-port",
    "inference-port",
    "orchestrator",
    "clock",
    "gpu",
];

/// A machine's corner: a directory, and addresses that nobody has.
struct Corner {
    home: TempDir,
    inference_port: u16,
}

impl Corner {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        // Its temporary files, to see what is left there.
        fs::create_dir(home.path().join("tmp")).unwrap();
        Self {
            home,
            inference_port: lasting_port(),
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.home.path().join("state")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = cynode(self.home.path());
        command
            .arg("doctor")
            .arg("--data-dir")
            .arg(self.data_dir())
            .env("CYNODE_CONFIG", "/dev/null")
            .env("TMPDIR", self.home.path().join("tmp"))
            // Not as flags, which would forbid the same flags in `more`.
            .env("CYNODE_GATEWAY_LISTEN", "127.0.0.1:0")
            .env("CYNODE_CONTROL_LISTEN", "127.0.0.1:0")
            .env("CYNODE_WORKER_LISTEN", "127.0.0.1:0")
            .env("CYNODE_INFERENCE_PORT", self.inference_port.to_string())
            .args(more);
        command
    }

    fn text(&self, more: &[&str]) -> Done {
        run(&mut self.command(more))
    }

    fn report(&self, more: &[&str]) -> Report {
        let done = run(self.command(more).args(["--output", "json"]));
        let value: Value =
            serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        let report = Report { value, done };
        assert_eq!(report.names(), NAMES, "{:?}", report.done);
        assert_eq!(
            report.done.code,
            i32::from(report.value["ok"] == false),
            "{:?}",
            report.done
        );
        let fails = |check: &Value| check["status"] == "fail";
        assert_eq!(
            report.value["ok"] == false,
            report.checks().iter().any(fails)
        );
        report
    }
}

impl Drop for Corner {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(
                files(&self.home.path().join("tmp")),
                [""; 0],
                "left in TMPDIR"
            );
        }
    }
}

/// What it said for programs.
struct Report {
    value: Value,
    done: Done,
}

impl Report {
    fn checks(&self) -> &Vec<Value> {
        self.value["checks"].as_array().unwrap()
    }

    fn names(&self) -> Vec<&str> {
        let checks = self.checks().iter();
        checks
            .map(|check| check["name"].as_str().unwrap())
            .collect()
    }

    /// A check's detail and mend, once its status is as expected.
    fn check(&self, name: &str, status: &str) -> (String, String) {
        let check = self
            .checks()
            .iter()
            .find(|check| check["name"] == name)
            .unwrap();
        assert_eq!(check["status"], status, "{check}");
        assert_eq!(check["mend"].is_null(), status == "ok", "{check}");
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        (text("detail"), text("mend"))
    }

    fn is_fixed(&self, name: &str) -> bool {
        self.checks()
            .iter()
            .any(|check| check["name"] == name && check["fixed"] == true)
    }
}

/// The names of all there is in a directory.
fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_machine_that_works_passes_every_check() {
    let corner = Corner::new();
    let report = corner.report(&[]);
    report.check("engine", "ok");
    let (detail, _) = report.check("sandbox", "ok");
    assert!(detail.contains("a container ran; runtime "), "{detail}");
    let (detail, _) = report.check("data-dir", "ok");
    assert!(detail.ends_with("will be made"), "{detail}");
    for name in [
        "gateway-port",
        "control-port",
        "worker-port",
        "inference-port",
    ] {
        report.check(name, "ok");
    }
    let (detail, _) = report.check("orchestrator", "ok");
    assert!(detail.contains("--orchestrator"), "{detail}");
    assert!(
        !corner.data_dir().exists(),
        "nothing is made without being told to"
    );

    let done = corner.text(&[]);
    assert_eq!(done.code, report.done.code);
    let first: Vec<&str> = done
        .stdout
        .lines()
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    assert_eq!(first, NAMES, "{}", done.stdout);
    assert_eq!(done.stderr, "");
}

#[test]
fn missing_podman_is_reported_with_fix() {
    let corner = Corner::new();
    let engine = ["--engine", "/nonexistent/podman"];
    let report = corner.report(&engine);
    let (detail, mend) = report.check("engine", "fail");
    assert!(detail.contains("/nonexistent/podman"), "{detail}");
    assert!(
        mend.contains("install podman") && mend.contains("--engine"),
        "{mend}"
    );
    report.check("sandbox", "fail");
    report.check("cgroups", "warn");
    let done = corner.text(&engine);
    assert_eq!(done.code, 1);
    assert!(
        done.stdout.contains("\n      mend: install podman"),
        "{}",
        done.stdout
    );
}

#[test]
fn failing_podman_is_quoted() {
    let corner = Corner::new();
    let report = corner.report(&["--engine-runtime", "no-such-runtime"]);
    report.check("engine", "ok");
    let (detail, _) = report.check("sandbox", "fail");
    assert!(
        detail.contains("what was tried:\n  runtime no-such-runtime"),
        "{detail}"
    );
}

#[test]
fn disk_must_have_the_reserve_for_jobs() {
    let corner = Corner::new();
    let place = corner.home.path().join("jobs");
    let jobs_dir = ["--jobs-dir", place.to_str().unwrap()];
    let report = corner.report(&[&jobs_dir[..], &["--min-free-disk", "4096TiB"]].concat());
    let (detail, mend) = report.check("disk", "fail");
    assert!(
        detail.contains("(jobs), which needs 4194304.0 GiB"),
        "{detail}"
    );
    assert!(mend.contains("--min-free-disk"), "{mend}");
}

#[test]
fn occupied_port_is_named_with_its_flag() {
    let corner = Corner::new();
    let strangers = [(); 2].map(|()| {
        Listener::open("127.0.0.1:0", &Calls::default(), |_, answer| {
            answer.status(200, &json!("hello"))
        })
    });
    let [worker, gateway] = strangers
        .each_ref()
        .map(|stranger| stranger.address.to_string());
    let report = corner.report(&["--worker-listen", &worker, "--gateway-listen", &gateway]);
    let (detail, mend) = report.check("worker-port", "fail");
    assert!(detail.contains(&worker), "{detail}");
    assert!(mend.contains("--worker-listen"), "{mend}");
    // A machine that is a node has no orchestrator's ports.
    let (_, mend) = report.check("gateway-port", "warn");
    assert!(mend.contains("--gateway-listen"), "{mend}");
}

#[test]
fn doctor_does_not_wait_for_silent_peers() {
    let corner = Corner::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let report = corner.report(&["--inference-port", &port]);
    let (_, mend) = report.check("inference-port", "fail");
    assert!(mend.contains("--inference-port"), "{mend}");
}

#[test]
fn ollama_is_recognised_at_configured_port() {
    let corner = Corner::new();
    let ollama = Listener::open("127.0.0.1:0", &Calls::default(), |call, answer| {
        if call.path == "/api/version" {
            answer.status(200, &json!({"version": "0.5.1"}));
        } else {
            answer.refuse(404);
        }
    });
    let (address, port) = (
        ollama.address.to_string(),
        ollama.address.port().to_string(),
    );
    let report = corner.report(&["--inference-port", &port, "--worker-listen", &address]);
    let (detail, _) = report.check("inference-port", "ok");
    assert!(detail.contains("Ollama 0.5.1"), "{detail}");
    let (detail, _) = report.check("worker-port", "fail");
    assert!(detail.contains("Ollama 0.5.1"), "{detail}");
}

#[test]
fn a_running_orchestrator_is_reached_and_known() {
    let corner = Corner::new();
    let orchestrator = Orchestrator::start(corner.home.path(), &[]);
    let report = corner.report(&[
        "--orchestrator",
        &orchestrator.control_url,
        "--gateway-listen",
        orchestrator.gateway.address(),
        "--control-listen",
        orchestrator.control.address(),
    ]);
    let (detail, _) = report.check("orchestrator", "ok");
    assert!(detail.contains("answered within"), "{detail}");
    let (detail, _) = report.check("clock", "ok");
    assert!(detail.contains("orchestrator's"), "{detail}");
    for name in ["gateway-port", "control-port"] {
        let (detail, _) = report.check(name, "ok");
        assert!(detail.contains("a cynode answers"), "{detail}");
    }
}

#[test]
fn an_orchestrator_that_is_away_is_a_failure() {
    let corner = Corner::new();
    let url = format!("http://127.0.0.1:{}", lasting_port());
    let report = corner.report(&["--orchestrator", &url]);
    let (detail, mend) = report.check("orchestrator", "fail");
    assert!(detail.contains(&url), "{detail}");
    assert!(mend.contains("--control-listen"), "{mend}");
    report.check("clock", "warn");
    // The address for users answers, too, and no node can register there.
    let orchestrator = Orchestrator::start(corner.home.path(), &[]);
    let report = corner.report(&["--orchestrator", &orchestrator.gateway_url]);
    let (_, mend) = report.check("orchestrator", "fail");
    assert!(mend.contains("12082"), "{mend}");
    let report = corner.report(&["--orchestrator", orchestrator.control.address()]);
    let (_, mend) = report.check("orchestrator", "fail");
    assert!(mend.contains("http://"), "{mend}");
}

#[test]
fn doctor_refuses_files_that_node_refuses() {
    let corner = Corner::new();
    let path = corner.home.path().join("node.yaml");
    let named = path.to_str().unwrap();
    for (text, status, word) in [
        ("node: {slug: box}\n", "ok", "node.yaml"),
        ("node: {slug: BOX BAD}\n", "fail", "slug"),
        ("node: {labels: [\"bad label\"]}\n", "fail", "bad label"),
        ("orchestrator: {psk_file: nothere}\n", "fail", "nothere"),
        ("sandbox: {max_timeout: 99h}\n", "fail", "max-timeout"),
        ("logging: {level: loud}\n", "fail", "loud"),
    ] {
        fs::write(&path, text).unwrap();
        let mut command = corner.command(&["--config", named, "--output", "json"]);
        let done = run(command.env_remove("CYNODE_CONFIG"));
        let value: Value = serde_json::from_str(&done.stdout).unwrap();
        let check = &value["checks"][0];
        assert_eq!(check["status"], status, "{text}: {check}");
        assert!(
            check["detail"].as_str().unwrap().contains(word),
            "{text}: {check}"
        );
    }
}

#[test]
fn a_model_server_of_another_node_is_named() {
    let corner = Corner::new();
    let name = format!("cynode-ollama-{}", corner.inference_port);
    let labels = [
        "--label=io.cynode.node=another",
        "--label=io.cynode.slug=attic",
    ];
    crate::support::image::ready();
    podman(&[&["create", "--name", &name][..], &labels, &[IMAGE, "true"]].concat()).unwrap();
    let report = corner.report(&[]);
    podman(&["rm", &name]).unwrap();
    let (detail, mend) = report.check("inference-port", "fail");
    assert!(detail.contains("the node attic"), "{detail}");
    assert!(mend.contains("--inference-port"), "{mend}");
    let report = corner.report(&["--inference", "off"]);
    report.check("inference-port", "ok");
}

#[test]
fn open_data_directory_is_closed_on_request() {
    let corner = Corner::new();
    let path = corner.data_dir();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("addresses.json"), "as it is").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;

    let report = corner.report(&[]);
    let (detail, mend) = report.check("data-dir", "warn");
    assert!(
        detail.contains("0755") && mend.contains("--fix"),
        "{detail} {mend}"
    );
    assert_eq!((mode(), report.is_fixed("data-dir")), (0o755, false));
    assert_eq!(report.done.stderr, "");

    let report = corner.report(&["--fix"]);
    report.check("data-dir", "ok");
    assert_eq!((mode(), report.is_fixed("data-dir")), (0o700, true));
    let said = format!("fix: close {}", path.display());
    assert!(report.done.stderr.contains(&said), "{}", report.done.stderr);

    let again = corner.report(&["--fix"]);
    assert!(!again.is_fixed("data-dir"), "there was nothing to do");
    assert_eq!(again.done.stderr, "");
    // The containers were tried in there.
    assert_eq!(files(&path), ["addresses.json"]);
    assert_eq!(
        fs::read_to_string(path.join("addresses.json")).unwrap(),
        "as it is"
    );
}

#[test]
fn no_container_is_left_behind() {
    let corner = Corner::new();
    fs::create_dir(corner.data_dir()).unwrap();
    // Podman is watched through a program in its place that keeps the names of what it runs.
    let (watch, names) = (
        corner.home.path().join("watch"),
        corner.home.path().join("names"),
    );
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in --name=*) echo \"${{word#--name=}}\" >> '{}';; esac; done\nexec podman \"$@\"\n",
        names.display()
    );
    fs::write(&watch, script).unwrap();
    fs::set_permissions(&watch, fs::Permissions::from_mode(0o755)).unwrap();
    let report = corner.report(&["--engine", watch.to_str().unwrap()]);
    report.check("sandbox", "ok");
    let ran = fs::read_to_string(names).unwrap();
    assert!(ran.lines().count() > 0);
    let left = podman(&["ps", "--all", "--format={{.Names}}"]).unwrap();
    for name in ran.lines() {
        assert!(!left.contains(name), "{name} is left");
    }
    assert_eq!(files(&corner.data_dir()), [""; 0]);
}
