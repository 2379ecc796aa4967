//! Commands of `cynode keys`, and the client with a key in place of a login.

use crate::support::{Orchestrator, client::fails, cynode, process::run};
use serde_json::{Value, json};

#[test]
fn key_commands_match_api_calls() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let cli_as = |token: &str, arguments: &[&str]| {
        run(cynode(home.path())
            .args(arguments)
            .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
            .env("CYNODE_TOKEN", token))
    };
    let cli = |arguments: &[&str]| cli_as(admin.token(), arguments);
    let created = cli(&[
        "keys",
        "create",
        "ci",
        "--scope",
        "tasks",
        "--scope",
        "inference",
        "--expires",
        "90d",
    ]);
    assert_eq!(created.code, 0, "{created:?}");
    assert!(created.stderr.contains("shown only once"), "{created:?}");
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

    let tasks = cli_as(key, &["task", "list"]);
    assert_eq!(tasks.code, 0, "{tasks:?}");
    fails(&cli_as(key, &["whoami"]), 3, "log in with a password");
    fails(&cli_as(key, &["keys", "list"]), 3, "log in with a password");
    fails(&cli_as(key, &["audit"]), 3, "needs the scope all");
    fails(
        &cli_as("cyk_wrong", &["task", "list"]),
        3,
        "API key is invalid",
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
    fails(&cli_as(key, &["task", "list"]), 3, "was revoked");
}
