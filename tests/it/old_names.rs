//! Renamed settings: old and new names mean the same, the old ones are noticed, and both at once are refused.

use crate::support::{
    Process,
    cluster::secret_file,
    cynode, eventually,
    process::{Done, run},
    server::role,
};
use std::{fs, path::Path};

/// Flags of a node that can't start: its podman is missing.
const BROKEN: [&str; 8] = [
    "--orchestrator",
    "http://127.0.0.1:1",
    "--psk",
    "a key of the tests",
    "--engine",
    "/nonexistent/podman",
    "--worker-listen",
    "127.0.0.1:0",
];

/// Runs a node up to its missing podman, with these flags and variables.
fn node(home: &Path, flags: &[&str], variables: &[(&str, &str)]) -> Done {
    let mut command = role(home, "node", &home.join("node"));
    command.args(BROKEN).args(flags);
    run(command.envs(variables.iter().copied()))
}

#[test]
fn old_and_new_names_are_accepted() {
    let home = tempfile::tempdir().unwrap();
    for (old, new, value) in [
        ("default-image", "prefetch-image", "localhost/a"),
        ("inference-timeout", "inference-pull-timeout", "1m"),
        ("ledger-retain", "result-retention", "1d"),
    ] {
        let [old_flag, new_flag] = [old, new].map(|name| format!("--{name}"));
        let [old_variable, new_variable] =
            [old, new].map(|name| format!("CYNODE_{}", name.to_uppercase().replace('-', "_")));
        for (name, replacement, is_flag) in [
            (&old_flag, Some(&new_flag), true),
            (&new_flag, None, true),
            (&old_variable, Some(&new_variable), false),
            (&new_variable, None, false),
        ] {
            let done = if is_flag {
                node(home.path(), &[name, value], &[])
            } else {
                node(home.path(), &[], &[(name, value)])
            };
            assert_eq!(done.code, 8, "{name}: {done:?}");
            assert!(done.stderr.contains("/nonexistent/podman"), "{done:?}");
            assert!(!done.stderr.contains("unknown environment"), "{done:?}");
            let notices = done.stderr.matches("is deprecated").count();
            assert_eq!(notices, usize::from(replacement.is_some()), "{done:?}");
            if let Some(new) = replacement {
                let notice = format!("{name} is deprecated; use {new}");
                assert!(done.stderr.contains(&notice), "{done:?}");
            }
            let wrong = ["1 fortnight", "--privileged"][usize::from(old == "default-image")];
            let done = if is_flag {
                node(home.path(), &[&format!("{name}={wrong}")], &[])
            } else {
                node(home.path(), &[], &[(name, wrong)])
            };
            assert_eq!(done.code, 2, "the value of {name} has no effect: {done:?}");
            if old != "default-image" {
                let text = format!("for '{name}");
                assert!(done.stderr.contains(&text), "{name}: {done:?}");
            }
        }
    }
}

#[test]
fn contradicting_names_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for flags in [
        ["--default-image=a", "--prefetch-image=b"],
        ["--ledger-retain=1d", "--result-retention=2d"],
    ] {
        let done = node(home.path(), &flags, &[]);
        assert_eq!(done.code, 2, "{done:?}");
        let new = flags[1].split('=').next().unwrap();
        let text = format!("keep only {new}");
        assert!(done.stderr.contains(&text), "{done:?}");
    }
    let done = node(home.path(), &["--result-retention=1d"; 2], &[]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("multiple times"), "{done:?}");
    let values = |new| {
        [
            ("CYNODE_LEDGER_RETAIN", "1d"),
            ("CYNODE_RESULT_RETENTION", new),
        ]
    };
    let done = node(home.path(), &[], &values("2d"));
    assert_eq!(done.code, 2, "{done:?}");
    assert!(
        done.stderr.contains("keep only CYNODE_RESULT_RETENTION"),
        "{done:?}"
    );
    assert_eq!(node(home.path(), &[], &values("1d")).code, 8);
    // A flag overrides both.
    let done = node(home.path(), &["--result-retention=3d"], &values("2d"));
    assert_eq!(done.code, 8, "{done:?}");
}

#[test]
fn worker_token_file_has_its_own_variable() {
    let home = tempfile::tempdir().unwrap();
    let token = secret_file(home.path(), "token", "a token of the tests");
    let other = secret_file(home.path(), "other", "another token");
    let worker = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = role(home.path(), "worker", &home.path().join("worker"));
        command
            .args(["--engine", "/nonexistent/podman"])
            .args(flags);
        run(command.envs(variables.iter().copied()))
    };
    let (old, new) = ("CYNODE_TOKEN_FILE", "CYNODE_WORKER_TOKEN_FILE");
    for (variables, code, notices) in [
        (vec![(new, token.as_str())], 8, 0),
        (vec![(old, &token)], 8, 1),
        (vec![(old, &token), (new, &token)], 8, 0),
        (vec![(old, &token), (new, &other)], 2, 0),
        (vec![], 2, 0),
        // A login, which is not the worker's token.
        (vec![("CYNODE_TOKEN", "a login")], 2, 0),
    ] {
        let done = worker(&variables, &[]);
        assert_eq!(done.code, code, "{variables:?}: {done:?}");
        assert_eq!(
            done.stderr.matches("is deprecated").count(),
            notices,
            "{done:?}"
        );
    }
    let both = [(old, token.as_str()), (new, &other)];
    let done = worker(&both, &["--token-file", &token]);
    assert_eq!(done.code, 8, "{done:?}");
}

#[test]
fn old_keys_of_node_yaml_are_noticed() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("node.yaml");
    fs::write(&file, "worker_api:\n  public_url: http://127.0.0.1:1\n").unwrap();
    let done = node(home.path(), &["--config", file.to_str().unwrap()], &[]);
    assert_eq!(done.code, 8, "{done:?}");
    let notice = "worker_api.public_url is deprecated; use worker_api.advertise_url";
    assert!(done.stderr.contains(notice), "{done:?}");
}

#[test]
fn log_flags_elsewhere_are_noticed() {
    let home = tempfile::tempdir().unwrap();
    for words in [
        ["--log-level", "debug", "version"],
        ["version", "--log-format", "json"],
    ] {
        let done = run(cynode(home.path()).args(words));
        assert_eq!((done.code, done.stdout.lines().count()), (0, 1), "{done:?}");
        assert!(done.stderr.contains("deprecated here"), "{done:?}");
    }
    let mut command = cynode(home.path());
    command.args(["--log-format=json", "node"]).args(BROKEN);
    let mut node = Process::start("node", home.path(), &mut command);
    eventually("the node exits", || (node.code() == 8).then_some(()));
    let log = node.stderr();
    assert!(log.lines().all(|line| line.starts_with('{')), "{log}");
}
