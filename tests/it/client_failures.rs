//! Failures of client commands: exit codes that scripts can rely on, and errors with advice.

use crate::support::{
    Orchestrator,
    client::{client, fails},
    cynode,
    process::run,
    uuid,
};
use serde_json::json;

/// Command lines that are wrong before anything is asked.
const MISUSED: &[&[&str]] = &[
    &["run"],
    &["run", "--timeout", "soon", "--", "true"],
    &["run", "--env", "NOT_SET_ANYWHERE", "--", "true"],
    &["task", "list", "--limit", "0"],
    &["task"],
    &["frobnicate"],
    &["--frobnicate"],
    &[],
    &["task", "get"],
    &["whoami", "--gateway-url", "not a url"],
    &["whoami", "--output", "yaml"],
    &["login", "--password-file", "/no/such/file"],
];

/// Command lines that the API refuses. Its problem names the flag, and not a field or a query parameter.
const REFUSED: &[(&[&str], &str)] = &[
    (&["run", "--image=-v", "--", "true"], "--image is not"),
    (
        &["run", "--env", "CYNODE_JOB_ID=y", "--", "true"],
        "--env CYNODE_JOB_ID is set by cynode",
    ),
    (&["run", "--env", "A B=y", "--", "true"], "--env A B is not"),
    (
        &["run", "--timeout", "0", "--", "true"],
        "--timeout must be",
    ),
    (
        &["run", "--max-attempts", "0", "--", "true"],
        "--max-attempts must be",
    ),
    (
        &["run", "--priority", "-101", "--", "true"],
        "--priority must be",
    ),
    (&["task", "create", "--script", " "], "the script must"),
    (
        &["task", "list", "--status", "done"],
        "--status must be queued, running, completed, failed or canceled, got \"done\"",
    ),
    (
        &["task", "list", "--cursor", "nonsense"],
        "--cursor must be",
    ),
];

#[test]
fn every_failure_has_exit_code_and_advice() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let as_admin = |arguments: &[&str]| {
        run(client(home.path(), &orchestrator.gateway_url, arguments)
            .env("CYNODE_TOKEN", user.token()))
    };
    for arguments in MISUSED {
        let done = as_admin(arguments);
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (2, ""),
            "{arguments:?}: {done:?}"
        );
        assert!(!done.stderr.is_empty());
    }
    let token = ["whoami"];
    fails(
        &run(client(home.path(), &orchestrator.gateway_url, &token).env("CYNODE_TOKEN", "garbage")),
        3,
        "log in",
    );
    for id in [uuid().as_str(), "nonsense", "a b", "../users/me", "x?y#z"] {
        for command in ["get", "result", "logs", "wait", "cancel"] {
            fails(&as_admin(&["task", command, id]), 4, "there is no task \"");
        }
    }
    let unknown = "there is no node \"no\\u{1b}body\"; cynode nodes list shows";
    for arguments in [
        &["nodes", "show", "no\u{1b}body"][..],
        &["nodes", "drain", "no\u{1b}body"],
        &["models", "pull", "a", "--node", "no\u{1b}body"],
    ] {
        fails(&as_admin(arguments), 4, unknown);
    }
    for (arguments, text) in REFUSED {
        fails(&as_admin(arguments), 6, text);
    }
    fails(
        &run(client(home.path(), "http://127.0.0.1:1", &["whoami"]).env("CYNODE_TOKEN", "x")),
        7,
        "--gateway-url",
    );
    fails(
        &run(client(home.path(), "http://127.0.0.1:1", &["login"]).env("CYNODE_PASSWORD", "x")),
        7,
        "127.0.0.1:1",
    );
    assert_eq!(
        user.get("/v1/tasks").json(200)["tasks"],
        json!([]),
        "nothing was stored"
    );
}

#[test]
fn every_command_has_help_and_version() {
    let home = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 25] = [
        &[],
        &["dev"],
        &["serve-orchestrator"],
        &["node"],
        &["worker"],
        &["run"],
        &["task"],
        &["task", "create"],
        &["task", "list"],
        &["task", "get"],
        &["task", "result"],
        &["task", "logs"],
        &["task", "cancel"],
        &["task", "wait"],
        &["nodes"],
        &["nodes", "list"],
        &["nodes", "show"],
        &["nodes", "drain"],
        &["nodes", "resume"],
        &["nodes", "forget"],
        &["login"],
        &["logout"],
        &["whoami"],
        &["status"],
        &["version"],
    ];
    for command in commands {
        let done = run(cynode(home.path()).args(command).arg("--help"));
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{command:?}");
        assert!(
            done.stdout.contains("Usage: cynode"),
            "{command:?}: {}",
            done.stdout
        );
    }
    for arguments in ["version", "--version"] {
        let done = run(cynode(home.path()).arg(arguments));
        assert_eq!(done.code, 0);
        assert!(done.stdout.contains(env!("CARGO_PKG_VERSION")), "{done:?}");
    }
}
