//! Secrets of the first start: generated ones are shown once; weak or missing ones stop the start.

use crate::support::{
    Orchestrator, PASSWORD,
    cluster::PSK,
    cynode, eventually,
    process::run,
    read,
    server::{Server, role},
};
use std::path::Path;

/// An orchestrator in the data directory `made` that has told how to join, and the URL of its gateway.
fn start(home: &Path, more: &[&str]) -> (Server, String) {
    let mut command = role(home, "serve-orchestrator", &home.join("made"));
    let listen = [
        "--gateway-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
        "--public-url",
        "http://box.example:7",
    ];
    let mut server = Server::launch(home, "made", command.args(listen).args(more));
    let gateway = server.address("gateway");
    eventually("it tells how to join", || {
        server
            .process
            .stdout()
            .contains("cynode node")
            .then_some(())
    });
    (server, format!("http://{gateway}"))
}

#[test]
fn first_start_shows_generated_secrets_once() {
    let home = tempfile::tempdir().unwrap();
    let start = |more: &[&str]| start(home.path(), more);
    let (mut first, gateway) = start(&[]);
    let shown = first.process.stdout();
    let password = shown
        .lines()
        .find_map(|line| line.trim().strip_prefix("password"))
        .unwrap()
        .trim()
        .to_owned();
    let psk = read(first.data_dir.join("keys/psk")).trim().to_owned();
    let join =
        format!("echo {psk} | cynode node --orchestrator http://box.example:7 --psk-file -\n");
    assert!(shown.contains(&join), "{shown}");
    assert!(password.len() >= 20 && psk.len() >= 20, "{shown}");
    let login = run(cynode(home.path())
        .args(["login", "--handle", "admin", "--gateway-url", &gateway])
        .env("CYNODE_PASSWORD", &password));
    assert_eq!(login.code, 0, "{login:?}");
    for secret in [&password, &psk] {
        assert!(
            !first.process.stderr().contains(secret.as_str()),
            "not through the logger"
        );
    }
    assert_eq!(first.process.terminate(), 0);

    let password_file =
        crate::support::cluster::secret_file(home.path(), "other", "another password entirely");
    let (mut second, gateway) = start(&["--admin-password-file", &password_file]);
    let shown = second.process.stdout();
    assert!(
        !shown.contains(&password) && !shown.contains("another password"),
        "{shown}"
    );
    let login = run(cynode(home.path())
        .args(["login", "--gateway-url", &gateway])
        .env("CYNODE_PASSWORD", &password));
    assert_eq!(
        login.code, 0,
        "a given password counts only when the admin is made: {login:?}"
    );
    assert_eq!(second.process.terminate(), 0);

    let mut given = Orchestrator::start(home.path(), &["--public-url", "http://box.example:7"]);
    eventually("it tells how to join", || {
        given
            .process
            .stdout()
            .contains("--psk-file FILE")
            .then_some(())
    });
    let all = given.process.stdout() + &given.process.stderr();
    assert!(!all.contains(PASSWORD) && !all.contains(PSK), "{all}");
    assert_eq!(given.process.terminate(), 0);
}

#[test]
fn weak_or_missing_secret_stops_start() {
    let home = tempfile::tempdir().unwrap();
    let weak = crate::support::cluster::secret_file(home.path(), "weak", "short");
    let empty = crate::support::cluster::secret_file(home.path(), "empty", "");
    let listen = [
        "--gateway-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
    ];
    let cases: [(&str, &[&str], &str); 6] = [
        (
            "serve-orchestrator",
            &["--admin-password-file", &weak],
            "12 characters",
        ),
        (
            "serve-orchestrator",
            &["--admin-password-file", &empty],
            "empty",
        ),
        (
            "serve-orchestrator",
            &["--psk-file", "/no/such/file"],
            "--psk-file",
        ),
        ("serve-orchestrator", &["--psk-file", &empty], "empty"),
        (
            "node",
            &["--orchestrator", "http://127.0.0.1:1"],
            "--psk-file",
        ),
        (
            "worker",
            &["--worker-listen", "127.0.0.1:0"],
            "--token-file",
        ),
    ];
    for (name, arguments, hint) in cases {
        let mut command = role(home.path(), name, &home.path().join("none"));
        if name == "serve-orchestrator" {
            command.args(listen);
        }
        let done = run(command.args(arguments));
        assert_ne!(done.code, 0, "{name} {arguments:?}");
        let error = done
            .stderr
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_else(|| panic!("{done:?}"));
        assert!(error.contains(hint), "{name} {arguments:?}: {error}");
    }
}
