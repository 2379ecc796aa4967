//! Output of doctor, compared with golden files.
//!
//! Paths, ports, sizes and versions are replaced by names, and so are the details of checks that depend on the machine
//! of the test.

use super::{Corner, NAMES};
use crate::support::golden::{assert_golden, golden_files};
use serde_json::{Value, json};
use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _};

/// Checks whose result depends on the machine of the test, with and without podman.
const OF_MACHINE: &[&str] = &["rootless", "linger", "sandbox", "cgroups", "disk", "gpu"];
const OF_MACHINE_WITHOUT_PODMAN: &[&str] = &["rootless", "linger", "disk", "gpu"];

/// Names for values that differ between runs and machines.
struct Names {
    values: Vec<(String, &'static str)>,
    of_machine: &'static [&'static str],
}

impl Names {
    fn of(corner: &Corner, of_machine: &'static [&'static str]) -> Self {
        let home = corner.home.path().to_str().unwrap().to_owned();
        let port = format!("127.0.0.1:{}", corner.inference_port);
        Self {
            values: vec![(home, "HOME"), (port, "INFERENCE-ADDRESS")],
            of_machine,
        }
    }

    fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (value, name) in &self.values {
            text = text.replace(value, name);
        }
        // "podman" and a version stand together only in the check of the engine.
        match text.split_once("podman ") {
            Some((before, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => {
                format!("{before}podman VERSION")
            }
            _ => text,
        }
    }

    /// The report without what depends on the machine.
    fn report(&self, corner: &Corner, more: &[&str]) -> Value {
        let mut value = corner.report(more).value;
        for check in value["checks"].as_array_mut().unwrap() {
            let name = check["name"].as_str().unwrap();
            if self.of_machine.contains(&name) {
                *check = json!({"name": name, "detail": "(depends on the machine)"});
            }
            for field in ["detail", "fix"] {
                if let Some(text) = check[field].as_str() {
                    check[field] = self.hide(text).into();
                }
            }
        }
        value["ok"] = Value::Null;
        value
    }

    /// The text for people without what depends on the machine.
    fn text(&self, corner: &Corner, more: &[&str]) -> String {
        let output = corner.text(more).stdout;
        let mut lines = Vec::new();
        let mut is_of_machine = false;
        for line in output.lines() {
            if let Some(name) = NAMES
                .iter()
                .find(|name| line.split_whitespace().nth(1) == Some(**name))
                && !line.starts_with(' ')
            {
                is_of_machine = self.of_machine.contains(name);
                if is_of_machine {
                    lines.push(format!("…     {name:<14}  (depends on the machine)"));
                }
            }
            if !is_of_machine {
                lines.push(self.hide(line));
            }
        }
        lines.join("\n")
    }
}

#[test]
fn doctor_output_matches_golden_files() {
    let corner = Corner::new();
    let names = Names::of(&corner, OF_MACHINE);
    assert_golden("doctor/working.txt", &names.text(&corner, &[]));
    let report = names.report(&corner, &[]);
    let report = serde_json::to_string_pretty(&report).unwrap();
    assert_golden("doctor/working.json", &report);
    assert_golden("doctor/broken.txt", &broken());
    let files = ["broken.txt", "working.json", "working.txt"];
    assert_eq!(golden_files("doctor"), files, "files without a test");
}

/// Output for a machine on which nearly everything is wrong.
fn broken() -> String {
    let corner = Corner::new();
    let mut names = Names::of(&corner, OF_MACHINE_WITHOUT_PODMAN);
    fs::create_dir(corner.data_dir()).unwrap();
    fs::set_permissions(corner.data_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(corner.data_dir().join("keys")).unwrap();
    fs::write(corner.data_dir().join("keys/user-token.key"), "x").unwrap();
    let silent = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [worker, gateway] = silent
        .each_ref()
        .map(|listener| listener.local_addr().unwrap().to_string());
    for (address, name) in [(&worker, "WORKER-ADDRESS"), (&gateway, "GATEWAY-ADDRESS")] {
        let port = address.rsplit(':').next().unwrap();
        names.values.push((format!(":{port}'"), ":PORT'"));
        names.values.insert(0, (address.clone(), name));
    }
    let flags = [
        "--engine",
        "/nonexistent/podman",
        "--worker-listen",
        &worker,
        "--gateway-listen",
        &gateway,
        "--orchestrator",
        "192.168.1.5",
    ];
    names.text(&corner, &flags)
}
