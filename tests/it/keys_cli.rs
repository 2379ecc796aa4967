//! Commands of `cynode keys`, and the client with a key in place of a login.

use crate::support::{
    Orchestrator,
    client::fails,
    cynode,
    process::{Done, run},
};
use serde_json::{Value, json};
use std::path::Path;

/// Runs a client command with this token.
fn cli(home: &Path, orchestrator: &Orchestrator, token: &str, arguments: &[&str]) -> Done {
    run(cynode(home)
        .args(arguments)
        .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
        .env("CYNODE_TOKEN", token))
}

#[test]
fn key_stands_in_for_login() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let cli = |token: &str, arguments: &[&str]| cli(home.path(), &orchestrator, token, arguments);
    let create = ["keys", "create", "ci", "--scope", "tasks"];
    let created = cli(admin.token(), &create);
    assert_eq!(created.code, 0, "{created:?}");
    assert!(created.stderr.contains("shown only once"), "{created:?}");
    let key = created.stdout.trim();
    let tasks = cli(key, &["task", "list"]);
    assert_eq!(tasks.code, 0, "{tasks:?}");
    fails(&cli(key, &["whoami"]), 3, "log in with a password");
    fails(&cli(key, &["keys", "list"]), 3, "log in with a password");
    fails(&cli(key, &["audit"]), 3, "needs the scope all");
    let wrong = cli("cyk_wrong", &["task", "list"]);
    fails(&wrong, 3, "CYNODE_TOKEN is invalid");
    let revoked = cli(admin.token(), &["keys", "revoke", "ci"]);
    assert_eq!(revoked.code, 0, "{revoked:?}");
    fails(&cli(key, &["task", "list"]), 3, "CYNODE_TOKEN is invalid");
}

#[test]
fn key_commands_match_api_calls() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let cli = |arguments: &[&str]| cli(home.path(), &orchestrator, admin.token(), arguments);
    let scopes = ["--scope", "tasks", "--scope", "inference"];
    let created = cli(&[&["keys", "create", "ci", "--expires", "90d"][..], &scopes].concat());
    let key = created.stdout.trim();
    let list = cli(&["keys", "list"]);
    let rows: Vec<Vec<&str>> = list
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let shown = format!("{}…", &key[..12]);
    assert_eq!(rows[0][..4], ["KEY", "NAME", "USER", "SCOPES"]);
    assert_eq!(
        rows[1][..4],
        [&shown, "ci", "admin", "inference,tasks"],
        "{list:?}"
    );
    assert!(
        list.stdout.contains("never") && list.stdout.contains("in 89d"),
        "{list:?}"
    );

    fails(&cli(&["keys", "create", " ci"]), 6, "the name must be");
    assert_eq!(cli(&["keys", "create", "ci", "--scope", "root"]).code, 2);
    let json = cli(&["keys", "create", "ci", "--output", "json"]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&json["scopes"], json.get("expires_at")),
        (&json!(["all"]), None)
    );
    fails(&cli(&["keys", "revoke", "ci"]), 5, "2 keys are named");
    fails(&cli(&["keys", "revoke", "nobody"]), 4, "no API key");
    let second = json["id"].as_str().unwrap();
    for revoked in [&shown[..12], second] {
        assert_eq!(cli(&["keys", "revoke", revoked]).code, 0);
    }
    let list = cli(&["keys", "list", "--output", "json"]);
    let list: Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!(list, json!({"keys": [], "next_cursor": ""}));
}
