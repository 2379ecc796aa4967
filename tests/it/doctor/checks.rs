//! Checks of this machine: podman, disk, settings.

use super::{Corner, NAMES};
use crate::support::process::run;
use serde_json::Value;
use std::fs;

#[test]
fn working_machine_passes_every_check() {
    let corner = Corner::new();
    let report = corner.report(&[]);
    report.check("engine", "ok");
    let (detail, _) = report.check("sandbox", "ok");
    assert!(detail.contains("a container ran with runtime "), "{detail}");
    let (detail, _) = report.check("data-dir", "ok");
    assert!(detail.ends_with("will be created"), "{detail}");
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
        "nothing is created without --fix"
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
    let (detail, fix) = report.check("engine", "fail");
    assert!(detail.contains("/nonexistent/podman"), "{detail}");
    assert!(
        fix.contains("install podman") && fix.contains("--engine"),
        "{fix}"
    );
    report.check("sandbox", "fail");
    report.check("cgroups", "warn");
    let done = corner.text(&engine);
    assert_eq!(done.code, 1);
    assert!(
        done.stdout.contains("\n      fix: install podman"),
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
fn disk_must_have_reserve_for_jobs() {
    let corner = Corner::new();
    let place = corner.home.path().join("jobs");
    let jobs_dir = ["--jobs-dir", place.to_str().unwrap()];
    let report = corner.report(&[&jobs_dir[..], &["--min-free-disk", "4096TiB"]].concat());
    let (detail, fix) = report.check("disk", "fail");
    assert!(
        detail.contains("(jobs), but 4194304.0 GiB needed"),
        "{detail}"
    );
    assert!(fix.contains("--min-free-disk"), "{fix}");
}

#[test]
fn doctor_refuses_files_that_node_refuses() {
    let corner = Corner::new();
    let path = corner.home.path().join("node.yaml");
    let named = path.to_str().unwrap();
    for (text, status, word) in [
        ("node: {slug: box}\n", "ok", "node.yaml"),
        (
            "worker_api: {public_url: \"http://127.0.0.1:1\"}\n",
            "warn",
            "use worker_api.advertise_url",
        ),
        ("node: {slug: BOX BAD}\n", "fail", "slug"),
        ("node: {labels: [\"bad label\"]}\n", "fail", "bad label"),
        ("orchestrator: {psk_file: nothere}\n", "fail", "nothere"),
        ("sandbox: {max_timeout: 99d}\n", "fail", "max-timeout"),
        ("logging: {level: loud}\n", "fail", "logging.level"),
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
fn doctor_refuses_variables_that_node_refuses() {
    let corner = Corner::new();
    let config = |variables: &[(&str, &str)]| {
        let mut command = corner.command(&["--output", "json"]);
        let done = run(command.envs(variables.iter().copied()));
        let value: Value = serde_json::from_str(&done.stdout).unwrap();
        let check = &value["checks"][0];
        let detail = check["detail"].as_str().unwrap().to_owned();
        (check["status"].as_str().unwrap().to_owned(), detail)
    };
    let old = ("CYNODE_LEDGER_RETAIN", "1d");
    for (variables, status, word) in [
        (&[][..], "ok", "/dev/null"),
        (&[old], "warn", "use CYNODE_RESULT_RETENTION"),
        (
            &[old, ("CYNODE_RESULT_RETENTION", "2d")],
            "fail",
            "keep only CYNODE_RESULT_RETENTION",
        ),
        (
            &[("CYNODE_INFERENCE_TIMEOUT", "1 fortnight")],
            "fail",
            "CYNODE_INFERENCE_TIMEOUT",
        ),
        (&[("CYNODE_PSK", "short")], "fail", "pre-shared key"),
    ] {
        let (found, detail) = config(variables);
        assert_eq!(found, status, "{variables:?}: {detail}");
        assert!(detail.contains(word), "{variables:?}: {detail}");
    }
}
