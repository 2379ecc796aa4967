//! Secrets as they are stored: set, shared, removed, with a key that can be rotated or lost.

use crate::support::{
    Api, Cluster, Orchestrator, Reply, cynode,
    process::{at_terminal, piped, run},
};
use serde_json::{Value, json};
use std::fs;

/// Sets a secret.
pub(crate) fn set(api: &Api, path: &str, value: &str) -> Reply {
    let path = format!("/v1/secrets/{path}");
    api.call("PUT", &path, &[], value.as_bytes())
}

/// Removes a secret.
pub(crate) fn remove(api: &Api, path: &str) -> Reply {
    api.call("DELETE", &format!("/v1/secrets/{path}"), &[], b"")
}

#[test]
fn unknown_secret_is_refused_with_next_step() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    set(&admin, "A", "swordfish").expect(200);
    for path in ["/v1/tasks", "/v1/sandboxes"] {
        let mut wanted = json!({"secrets": ["A", "MISSING"]});
        if path == "/v1/tasks" {
            wanted["script"] = json!("true");
        }
        let problem = admin.post(path, &wanted).problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], "#/secrets/1", "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("cynode secrets set MISSING"), "{detail}");
    }
    let prompt = json!({"prompt": "x", "secrets": ["A"]});
    admin.post("/v1/tasks", &prompt).expect(400);
    let twice = json!({"script": "x", "secrets": ["A"], "env": {"A": "b"}});
    admin.post("/v1/tasks", &twice).expect(400);
}

#[test]
fn only_admins_share_secrets() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let bob = orchestrator.add_user(&admin, "bob");
    set(&bob, "A?for=everyone", "x").problem(403, "forbidden");
    remove(&bob, "A?for=everyone").problem(403, "forbidden");
    set(&admin, "A?for=everyone", "swordfish").expect(200);
    set(&admin, "B", "swordfish").expect(200);
    set(&bob, "A?for=me", "swordfish").expect(200);
    set(&bob, "A?for=all", "x").problem(400, "invalid-request");
    let list = bob.get("/v1/secrets").json(200);
    let list: Vec<_> = list["secrets"].as_array().unwrap().iter().collect();
    let names = |secret: &&Value| (secret["name"].clone(), secret["shared"].clone());
    let names: Vec<_> = list.iter().map(names).collect();
    assert_eq!(
        names,
        [(json!("A"), json!(false)), (json!("A"), json!(true))]
    );
    assert!(!json!(list).to_string().contains("swordfish"));
    let task = json!({"script": "true", "secrets": ["B"]});
    bob.post("/v1/tasks", &task).expect(400);
    remove(&bob, "A").expect(204);
    let problem = remove(&bob, "A").problem(404, "not-found");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("A --for everyone"), "{detail}");
    let log = admin.get("/v1/audit?action=secret.set").json(200);
    let log = log["events"].to_string();
    assert!(
        log.contains("for everyone") && !log.contains("swordfish"),
        "{log}"
    );
}

#[test]
fn names_and_values_are_checked() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    for name in ["a", "1A", "A-B", "%C3%84", &"A".repeat(65)] {
        let problem = set(&admin, name, "x").problem(400, "invalid-request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("such as API_TOKEN"), "{detail}");
    }
    for value in ["", "a\0b"] {
        set(&admin, "A", value).problem(400, "invalid-request");
    }
    let longest = "x".repeat(64 * 1024);
    set(&admin, "A", &longest).expect(200);
    set(&admin, "A", &format!("{longest}x")).problem(413, "payload-too-large");
    set(&admin, "B", &longest).expect(200);
    set(&admin, "C", "x").expect(200);
    let task = json!({"script": "true", "secrets": ["A", "B", "C"]});
    let problem = admin
        .post("/v1/tasks", &task)
        .problem(400, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "#/secrets", "{problem}");
}

#[test]
fn scoped_keys_use_but_do_not_change_secrets() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    set(&admin, "A", "swordfish").expect(200);
    let key = json!({"name": "ci", "scopes": ["tasks"]});
    let key = admin.post("/v1/keys", &key).json(201);
    let program = orchestrator
        .gateway
        .with_token(key["key"].as_str().unwrap());
    let task = json!({"script": "true", "secrets": ["A"]});
    let task = program.post("/v1/tasks", &task).json(201);
    set(&program, "A", "x").problem(403, "forbidden");
    remove(&program, "A").problem(403, "forbidden");
    let log = admin.get("/v1/audit?action=secret.use").json(200);
    let event = &log["events"][0];
    assert_eq!(
        (&event["target"], &event["reason"]),
        (&task["id"], &json!("A")),
        "{log}"
    );
}

#[test]
fn key_is_rotated_and_values_stay() {
    let cluster = Cluster::start();
    let bob = cluster.orchestrator.add_user(&cluster.user, "bob");
    let file = cluster.orchestrator.data_dir.join("keys/secrets.key");
    assert!(!file.exists(), "the first secret makes it");
    set(&cluster.user, "A", "first value").expect(200);
    set(&cluster.user, "B?for=everyone", "other value").expect(200);
    let before = fs::read_to_string(&file).unwrap();
    bob.act("/v1/secrets:rotate-key").problem(403, "forbidden");
    let rotated = cluster.user.act("/v1/secrets:rotate-key").json(200);
    assert_eq!(
        (&rotated["secrets"], &rotated["unreadable"]),
        (&json!(2), &json!(0))
    );
    let after = fs::read_to_string(&file).unwrap();
    assert_eq!(after.lines().count(), 1);
    assert_ne!(before, after);
    let task = json!({"script": "echo $A $B", "secrets": ["A", "B"], "mask": false});
    let task = cluster.create(&task);
    cluster.finish(&task);
    let result = &cluster.result(&task)["jobs"][0]["result_object"];
    assert_eq!(result["stdout"], "first value other value\n");
}

#[test]
fn lost_key_is_said_with_next_step() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    set(&orchestrator.login(), "A", "swordfish").expect(200);
    let file = orchestrator.data_dir.join("keys/secrets.key");
    let warning = "keys/secrets.key lacks their key";
    assert!(!orchestrator.process.stderr().contains(warning));
    drop(orchestrator);
    fs::remove_file(&file).unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let log = orchestrator.process.stderr();
    assert!(log.contains(warning) && log.contains("secrets=1"), "{log}");
    let admin = orchestrator.login();
    let task = json!({"script": "true", "secrets": ["A"]});
    let problem = admin.post("/v1/tasks", &task).problem(409, "conflict");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("cynode secrets set A"), "{detail}");
    let words = problem["errors"][0]["detail"].as_str().unwrap();
    assert!(words.starts_with("names the secret A"), "{words}");
    let list = admin.get("/v1/secrets").json(200);
    assert_eq!(list["secrets"][0]["name"], "A");
    let rotated = admin.act("/v1/secrets:rotate-key").json(200);
    assert_eq!(rotated["unreadable"], 1);
    set(&admin, "A", "swordfish").expect(200);
    admin.post("/v1/tasks", &task).expect(201);
}

#[test]
fn command_line_stores_and_uses_secrets() {
    let cluster = Cluster::start();
    let stored = piped(
        &mut cluster.cli(&["secrets", "set", "TOKEN", "--from-file", "-"]),
        b"swordfish\n",
    );
    assert_eq!(stored.code, 0, "{stored:?}");
    assert!(stored.stderr.contains("--secret TOKEN"), "{stored:?}");
    let list = cluster.run(&["secrets", "list"]);
    assert!(
        list.stdout.contains("TOKEN") && list.stdout.contains("admin"),
        "{list:?}"
    );
    let script = "echo \"$API\" \"$(printf %s \"$API\" | wc -c)\"";
    let flags = ["run", "--secret", "TOKEN:API"];
    let command = ["--", "sh", "-c", script];
    let masked = cluster.run(&[&flags[..], &command].concat());
    assert_eq!(
        (masked.code, masked.stdout.as_str()),
        (0, "*** 9\n"),
        "{masked:?}"
    );
    let shown = cluster.run(&[&flags[..], &["--no-mask"], &command].concat());
    assert_eq!(shown.stdout, "swordfish 9\n", "{shown:?}");
    let unknown = cluster.run(&["run", "--secret", "NONE", "--", "true"]);
    assert!(
        unknown.stderr.contains("cynode secrets set NONE"),
        "{unknown:?}"
    );
    let set = ["secrets", "set", "TYPED"];
    let typed = at_terminal(&mut cluster.cli(&set), "typed value\n");
    assert_eq!(typed.code, 0, "{typed:?}");
    assert!(typed.stdout.contains("Value of TYPED"), "{typed:?}");
    let flags = ["run", "--secret", "TYPED", "--no-mask"];
    let command = ["--", "sh", "-c", "echo \"$TYPED\""];
    let shown = cluster.run(&[&flags[..], &command].concat());
    assert_eq!(shown.stdout, "typed value\n", "{shown:?}");
    let argument = run(&mut cluster.cli(&["secrets", "set", "TOKEN", "swordfish"]));
    assert_ne!(argument.code, 0, "a value is never an argument");
    let rotated = cluster.run(&["secrets", "rotate-key"]);
    assert_eq!(rotated.code, 0, "{rotated:?}");
    let removed = cluster.run(&["secrets", "rm", "TOKEN"]);
    assert_eq!(
        (removed.code, removed.stdout.as_str()),
        (0, "TOKEN removed\n")
    );
    assert!(!cluster.run(&["secrets", "list"]).stdout.contains("TOKEN"));
}

#[test]
fn value_in_the_clear_gives_warning() {
    let home = tempfile::tempdir().unwrap();
    for (url, warns) in [("http://0.0.0.0:1", true), ("http://127.0.0.1:1", false)] {
        let set = ["secrets", "set", "A", "--from-file", "-"];
        let mut set = {
            let mut command = cynode(home.path());
            command.args(set).args(["--gateway-url", url]);
            command
        };
        let done = piped(set.env("CYNODE_TOKEN", "token"), b"swordfish");
        assert_ne!(done.code, 0, "{done:?}");
        let warning = "the secret can be read on the network";
        assert_eq!(done.stderr.contains(warning), warns, "{done:?}");
    }
}

#[test]
fn pasted_lines_are_refused() {
    let cluster = Cluster::start();
    let set = ["secrets", "set", "PASTED"];
    let pasted = at_terminal(
        &mut cluster.cli(&set),
        "first line\nsecond line\nthird line\n",
    );
    assert_ne!(pasted.code, 0, "{pasted:?}");
    assert!(pasted.stdout.contains("--from-file"), "{pasted:?}");
    let list = cluster.run(&["secrets", "list"]);
    assert!(!list.stdout.contains("PASTED"), "{list:?}");
}
