//! Overhead of a task over `podman run --rm` of the same command.
//!
//! `make bench`. Three ways to run `true` in the same image, in turn, so that a change of the
//! machine's speed affects all of them alike:
//!
//! - `podman`: `podman run --rm --network=none`, as a process, from start to exit;
//! - `task`: from `POST /v1/tasks` to the `end` event of its log, over a kept connection;
//! - `cynode run`: the client as a process, from start to exit.
//!
//! Prints medians and ratios of this one run; asserts nothing.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use cynode::{
    data_dir::DataDir,
    engine::{Program, probe},
    helpers,
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const ROUNDS: usize = 40;
const BINARY: &str = env!("CARGO_BIN_EXE_cynode");

fn main() {
    // The engine's probe uses the running binary, which is this bench, as a sandbox's init.
    helpers::run_if_requested();
    let home = tempfile::tempdir().unwrap();
    let image = image();
    let podman = podman_arguments(home.path(), &image);
    let server = Server::start(home.path(), &image);

    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        let taken = [
            time(|| run(Command::new("podman").args(&podman))),
            time(|| server.task()),
            time(|| run(server.client().args(["run", "--", "true"]))),
        ];
        // The first round warms caches.
        if round > 0 {
            times
                .iter_mut()
                .zip(taken)
                .for_each(|(times, taken)| times.push(taken));
        }
    }
    let medians = times.map(|mut times| {
        times.sort();
        (
            times[times.len() / 2],
            times[times.len() / 10],
            times[times.len() * 9 / 10],
        )
    });
    let base = medians[0].0.as_secs_f64();
    println!("{ROUNDS} rounds of `true` in {image}");
    println!(
        "{:<12} {:>9} {:>9} {:>9} {:>10} {:>7}",
        "", "median", "p10", "p90", "on top", "ratio"
    );
    for (name, (median, p10, p90)) in ["podman", "task", "cynode run"].iter().zip(medians) {
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        let on_top = (median.as_secs_f64() - base) * 1000.0;
        println!(
            "{name:<12} {:>6.1} ms {:>6.1} ms {:>6.1} ms {on_top:>+7.1} ms {:>7.2}",
            millis(median),
            millis(p10),
            millis(p90),
            median.as_secs_f64() / base,
        );
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn image() -> String {
    let output = Command::new("scripts/demo-image.sh")
        .stderr(Stdio::inherit())
        .output()
        .expect("run it from the repository");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The same runtime and ulimits as the node will use, so that only what cynode does is compared.
fn podman_arguments(home: &Path, image: &str) -> Vec<String> {
    let data_dir = DataDir::open(&home.join("probe")).unwrap();
    let wanted = probe::ProbeRequest {
        program: Program::podman("podman", data_dir.path()).unwrap(),
        runtime: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let probe_env = probe::ProbeEnv {
        init: &std::env::current_exe().unwrap(),
        scratch: data_dir.path(),
        node_uuid: None,
    };
    let engine = runtime.block_on(probe::probe(wanted, probe_env));
    let way = match &engine {
        Ok(engine) => engine.runtime_config().clone(),
        Err(error) => panic!("{error}"),
    };
    let runtime = way.runtime.map(|runtime| format!("--runtime={runtime}"));
    let ulimits = way.ulimits.iter().map(|limit| format!("--ulimit={limit}"));
    runtime
        .into_iter()
        .chain(["run", "--rm", "--network=none"].map(str::to_owned))
        .chain(ulimits)
        .chain([image.to_owned(), "true".to_owned()])
        .collect()
}

/// A `cynode dev` of our own.
struct Server {
    child: Child,
    home: std::path::PathBuf,
    agent: ureq::Agent,
    url: String,
    token: String,
}

impl Server {
    fn start(home: &Path, image: &str) -> Self {
        let mut child = Command::new(BINARY)
            .args([
                "dev",
                "--gateway-listen=127.0.0.1:0",
                "--control-listen=127.0.0.1:0",
            ])
            .args([
                "--worker-listen=127.0.0.1:0",
                "--shutdown-grace=0s",
                "--log-level=warn",
            ])
            .arg("--default-image")
            .arg(image)
            .arg("--data-dir")
            .arg(home.join("data"))
            .env("XDG_CONFIG_HOME", home)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines
                .map_while(Result::ok)
                .any(|line| line.contains("In another terminal")),
            "it did not start"
        );
        let credentials = fs::read(home.join("cynode/credentials.json")).unwrap();
        let credentials: serde_json::Value = serde_json::from_slice(&credentials).unwrap();
        let url = credentials["current"].as_str().unwrap().to_owned();
        let token = credentials["logins"][&url]["access_token"]
            .as_str()
            .unwrap()
            .to_owned();
        Self {
            child,
            home: home.to_owned(),
            agent: ureq::Agent::new_with_defaults(),
            url,
            token,
        }
    }

    fn client(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env("XDG_CONFIG_HOME", &self.home);
        command
    }

    /// Creates a task and reads its log to the end.
    fn task(&self) {
        let bearer = format!("Bearer {}", self.token);
        let mut created = self
            .agent
            .post(format!("{}/v1/tasks", self.url))
            .header("authorization", &bearer)
            .header("content-type", "application/json")
            .send(r#"{"command":["true"]}"#)
            .unwrap();
        let task: serde_json::Value =
            serde_json::from_str(&created.body_mut().read_to_string().unwrap()).unwrap();
        let url = format!(
            "{}/v1/tasks/{}/logs?follow=true",
            self.url,
            task["id"].as_str().unwrap()
        );
        let events = self
            .agent
            .get(url)
            .header("authorization", &bearer)
            .call()
            .unwrap();
        let mut text = String::new();
        events
            .into_body()
            .into_reader()
            .read_to_string(&mut text)
            .unwrap();
        assert!(text.contains("\"status\":\"completed\""), "{text}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}
