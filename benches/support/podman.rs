//! Podman as a person would use it, with the runtime and ulimits that the node uses, so that only what cynode does is
//! compared.

use super::run;
use cynode::{
    data_dir::DataDir,
    engine::{Program, probe},
};
use std::{
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Image that all benches use.
pub fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut script = Command::new("scripts/demo-image.sh");
        run(script.stderr(Stdio::inherit())).trim().to_owned()
    })
}

/// Arguments of a `podman run --rm` of `true`.
fn arguments() -> &'static [String] {
    static ARGUMENTS: OnceLock<Vec<String>> = OnceLock::new();
    ARGUMENTS.get_or_init(|| {
        let home = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&home.path().join("probe")).unwrap();
        let request = probe::ProbeRequest {
            program: Program::podman("podman", data_dir.path()).unwrap(),
            runtime: None,
        };
        let probe_env = probe::ProbeEnv {
            init: &std::env::current_exe().unwrap(),
            scratch: data_dir.path(),
            node_uuid: None,
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let engine = runtime.block_on(probe::probe(request, probe_env));
        let config = match &engine {
            Ok(engine) => engine.runtime_config().clone(),
            Err(error) => panic!("{error}"),
        };
        let runtime = config.runtime.map(|runtime| format!("--runtime={runtime}"));
        let ulimits = config
            .ulimits
            .iter()
            .map(|limit| format!("--ulimit={limit}"));
        runtime
            .into_iter()
            .chain(["run", "--rm", "--network=none"].map(str::to_owned))
            .chain(ulimits)
            .chain([image().to_owned(), "true".to_owned()])
            .collect()
    })
}

/// Container by hand that stays, for `podman exec`.
pub struct Container(String);

impl Container {
    pub fn start() -> Self {
        let mut arguments = arguments().to_vec();
        // In place of `true`.
        arguments.pop();
        let at = arguments.iter().position(|word| word == "--rm");
        arguments.insert(at.unwrap(), "--detach".to_owned());
        arguments.extend(["sleep", "3600"].map(str::to_owned));
        let id = run(Command::new("podman").args(arguments));
        Self(id.trim().to_owned())
    }

    pub fn exec_true(&self) {
        run(Command::new("podman").args(["exec", &self.0, "true"]));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        run(Command::new("podman").args(["rm", "--force", "--time=0", &self.0]));
    }
}

/// Runs `true` once.
pub fn run_true() {
    run(Command::new("podman").args(arguments()));
}

/// Runs `true` so many times, with so many of them at a time.
pub fn run_many(count: usize, at_a_time: usize) {
    let script =
        "count=$1 at_a_time=$2; shift 2; seq $count | xargs -P $at_a_time -I{} podman \"$@\"";
    let counts = [count, at_a_time].map(|n| n.to_string());
    run(Command::new("bash")
        .args(["-c", script, "bash"])
        .args(counts)
        .args(arguments()));
}
