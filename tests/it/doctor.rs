//! `cynode doctor` checks this machine, shows how to fix what is wrong, changes only what `--fix` permits, and leaves
//! nothing behind.

mod checks;
mod fixes;
mod golden;
mod peers;

use crate::support::{
    cynode, lasting_port,
    process::{Done, run},
};
use serde_json::Value;
use std::{
    fs,
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

/// A directory and free addresses, for one run of doctor after another.
struct Corner {
    home: TempDir,
    inference_port: u16,
}

impl Corner {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        // A TMPDIR of its own, to find files that are left there.
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
            // Variables, since flags would forbid the same flags in `more`.
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
        Self::report_of(&mut self.command(more))
    }

    /// Report with these variables.
    fn report_with(&self, variables: &[(&str, &str)]) -> Report {
        Self::report_of(self.command(&[]).envs(variables.iter().copied()))
    }

    fn report_of(command: &mut Command) -> Report {
        let done = run(command.args(["--output", "json"]));
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

/// JSON output of one run.
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

    /// Detail and fix of a check, which must have this status.
    fn check(&self, name: &str, status: &str) -> (String, String) {
        let check = self
            .checks()
            .iter()
            .find(|check| check["name"] == name)
            .unwrap();
        assert_eq!(check["status"], status, "{check}");
        assert_eq!(check["fix"].is_null(), status == "ok", "{check}");
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        (text("detail"), text("fix"))
    }

    fn is_fixed(&self, name: &str) -> bool {
        self.checks()
            .iter()
            .any(|check| check["name"] == name && check["fixed"] == true)
    }
}

/// Names of all entries of a directory.
fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
