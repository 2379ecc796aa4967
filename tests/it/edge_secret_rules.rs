//! Secrets that only a host gets, and hosts whose TLS the proxy opens: what a user may ask for, what a node gets of it, and
//! what is shown.

use crate::{
    stored_secrets::set,
    support::{
        Api, Orchestrator, StandIn,
        client::client,
        eventually,
        process::{Done, run},
        stage::{Stage, well},
        stand_in::capability,
    },
};
use serde_json::{Value, json};

/// Reports a node that knows these features.
fn report(node: &StandIn, features: &[&str]) {
    let mut report = capability(&node.slug, &node.url);
    report["sandbox"]["features"] = json!(features);
    node.report(&report).expect(204);
}

/// An orchestrator that lets jobs reach everything, and a node.
fn stage() -> Stage {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--egress-allow", "*"];
    let stage = Stage::raise(home, &flags, |_, call, answer| well(call, answer)).joined();
    set(&stage.user, "A", "swordfish").expect(200);
    stage
}

fn request() -> Value {
    json!({
        "network_policy": "allowlist",
        "egress": {"allow": ["*.example.com", "plain.example:80"], "terminate": ["API.example.com"]},
        "secrets": [
            {"name": "A", "host": "api.example.com"},
            {"name": "A", "env": "KEY", "host": "plain.example:80", "header": "X-Api-Key"},
            {"name": "A", "env": "OPEN"},
        ],
    })
}

/// Secrets that are refused, with the field and a part of the text of each problem.
fn wrong_secrets() -> [(Value, &'static str, &'static str); 10] {
    let at = |host: Value| json!({"name": "A", "host": host});
    let header = |header: &str| json!({"name": "A", "host": "api.example.com", "header": header});
    [
        (at(json!("*.example.com")), "host", "name one host"),
        (at(json!("10.0.0.1")), "host", "is an IP address"),
        (at(json!(7)), "host", "must be a string"),
        (
            json!({"name": "A", "hosts": "api.example.com"}),
            "hosts",
            "unknown field",
        ),
        (
            at(json!("other.example")),
            "host",
            "add other.example:443 to egress.allow",
        ),
        (
            at(json!("b.example.com")),
            "host",
            "add b.example.com to egress.terminate",
        ),
        (
            json!({"name": "A", "header": "x-api-key"}),
            "header",
            "needs host",
        ),
        (header("a b"), "header", "is not the name of a header"),
        (header("Host"), "header", "sets itself"),
        (header("Proxy-Authorization"), "header", "sets itself"),
    ]
}

/// Hosts that are refused, with the pointer and a part of the text of each problem.
fn wrong_hosts() -> [(Value, &'static str, &'static str); 4] {
    [
        (
            json!({"allow": ["a.b"], "terminate": ["c.d"]}),
            "#/egress/terminate/0",
            "add c.d:443 to egress.allow",
        ),
        (
            json!({"allow": ["*.a.b"], "terminate": ["c.a.b", "*.a.b"]}),
            "#/egress/terminate/1",
            "name one host",
        ),
        (
            json!({"allow": ["a.b"], "terminate": vec!["a.b"; 65]}),
            "#/egress/terminate",
            "at most 64",
        ),
        (
            json!({"terminate": ["a.b"]}),
            "#/egress",
            "must have an entry",
        ),
    ]
}

/// Fails unless a body is refused with this pointer and a part of the text.
#[track_caller]
fn refused(user: &Api, path: &str, body: &Value, pointer: &str, part: &str) {
    let problem = user.post(path, body).problem(400, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(part), "{part}: {detail}");
}

#[test]
fn wrong_request_is_told_what_to_write() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--egress-allow", "*"]);
    let user = orchestrator.login();
    set(&user, "A", "swordfish").expect(200);
    for path in ["/v1/tasks", "/v1/sandboxes"] {
        let mut fine = request();
        if path == "/v1/tasks" {
            fine["command"] = json!(["true"]);
        } else {
            fine["wait_seconds"] = json!(0);
        }
        let with = |field: &str, value: Value| {
            let mut body = fine.clone();
            body[field] = value;
            body
        };
        for (secret, field, part) in wrong_secrets() {
            let body = with("secrets", json!(["B", secret]));
            let pointer = format!("#/secrets/1/{field}");
            refused(&user, path, &body, &pointer, part);
        }
        for (egress, pointer, part) in wrong_hosts() {
            let body = with("egress", egress);
            refused(&user, path, &body, pointer, part);
        }
        let closed = with("network_policy", json!("none"));
        let part = "needs network_policy \"allowlist\"";
        refused(&user, path, &closed, "#/egress", part);
        user.post(path, &fine).expect(201);
    }
    let alone = json!({"command": ["true"], "secrets": [{"name": "A", "host": "a.b"}]});
    let part = "set network_policy \"allowlist\"";
    refused(&user, "/v1/tasks", &alone, "#/secrets/0/host", part);
}

#[test]
fn node_gets_hosts_and_values_of_secrets() {
    let stage = stage();
    report(&stage.node, &["egress", "egress-terminate", "secrets"]);
    let id = stage.create(request());
    assert_eq!(stage.finish(&id).0["status"], "completed");
    let sent = stage
        .node
        .call("run", |call| call.is_run() && call.body["task_id"] == id);
    let sandbox = &sent.body["sandbox"];
    assert_eq!(sandbox["egress"]["terminate"], json!(["api.example.com"]));
    let secrets = json!([
        {"name": "A", "env": "A", "host": "api.example.com", "header": "authorization"},
        {"name": "A", "env": "KEY", "host": "plain.example:80", "header": "x-api-key"},
        {"name": "A", "env": "OPEN"},
    ]);
    assert_eq!(sandbox["secrets"], secrets);
    let values = json!({"A": "swordfish", "KEY": "swordfish", "OPEN": "swordfish"});
    assert_eq!(sent.body["secrets"], values);
    let shown = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(shown["secrets"], secrets);
    assert_eq!(shown["egress"]["terminate"], json!(["api.example.com"]));
    assert!(!shown.to_string().contains("swordfish"), "{shown}");
}

#[test]
fn task_waits_for_node_that_keeps_secrets_at_the_edge() {
    let stage = stage();
    report(&stage.node, &["egress", "secrets"]);
    let plain = json!({
        "network_policy": "allowlist", "egress": {"allow": ["a.b:80"]},
        "secrets": [{"name": "A", "host": "a.b:80"}],
    });
    let opened = json!({
        "network_policy": "allowlist", "egress": {"allow": ["a.b"], "terminate": ["a.b"]},
    });
    let tasks = [plain, opened].map(|task| stage.create(task));
    for id in &tasks {
        let reason = eventually("the task waits", || {
            let task = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
            task["waiting_for"].as_str().map(str::to_owned)
        });
        assert!(reason.contains("supports egress-terminate"), "{reason}");
    }
    report(&stage.node, &["egress", "egress-terminate", "secrets"]);
    for id in &tasks {
        assert_eq!(stage.finish(id).0["status"], "completed");
    }
}

/// Fails where the output of a command lacks a line with this name and value.
#[track_caller]
fn has_line(done: &Done, name: &str, value: &str) {
    let line = format!("{name:<12} {value}");
    let has_it = done.stdout.lines().any(|found| found == line);
    assert!(has_it, "{line:?} in {done:?}");
}

#[test]
fn command_line_asks_and_shows() {
    let home = tempfile::tempdir().unwrap();
    let flags = [
        "--egress-allow",
        "*.example.com,*.example.com:8443,plain.example",
    ];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let user = orchestrator.login();
    set(&user, "A", "swordfish").expect(200);
    let cli = |arguments: &[&str]| {
        run(client(home.path(), &orchestrator.gateway_url, arguments)
            .env("CYNODE_TOKEN", user.token()))
    };
    let asked = [
        "--secret",
        "A@api.example.com",
        "--secret",
        "A:KEY@plain.example:80/X-Api-Key",
        "--egress-terminate",
        "files.example.com:8443",
    ];
    let commands: [(&[&str], &[&str], &[&str]); 3] = [
        (
            &["run", "--detach", "--name", "one"],
            &["true"],
            &["task", "get", "one"],
        ),
        (
            &["task", "create", "--name", "two"],
            &["true"],
            &["task", "get", "two"],
        ),
        (
            &["sandbox", "create", "--no-wait", "--name", "three"],
            &[],
            &["sandbox", "show", "three"],
        ),
    ];
    for (command, program, show) in commands {
        let done = cli(&[command, &asked[..], program].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let shown = cli(show);
        let secrets = "A@api.example.com, A:KEY@plain.example:80/x-api-key";
        has_line(&shown, "secrets", secrets);
        has_line(&shown, "network", "allowlist");
        let hosts = "api.example.com:443, files.example.com:8443, plain.example:80";
        has_line(&shown, "hosts", hosts);
        let opened = "api.example.com, files.example.com:8443";
        has_line(&shown, "tls opened", opened);
    }
    let listed = user.get("/v1/sandboxes").json(200);
    let listed = &listed["sandboxes"][0];
    assert_eq!(
        (
            &listed["network_policy"],
            &listed["egress"],
            &listed["secrets"]
        ),
        (&json!("allowlist"), &Value::Null, &Value::Null)
    );
}

#[test]
fn wrong_flags_are_told_what_to_write() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--egress-allow", "api.example.com"];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let user = orchestrator.login();
    set(&user, "A", "swordfish").expect(200);
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--secret", "A@*.a.b"], 2, "name one host"),
        (&["--secret", "A@10.0.0.1"], 2, "its host is an IP address"),
        (
            &["--secret", "A@ftp://a.b"],
            2,
            "its host has an invalid port",
        ),
        (&["--secret", "A@a.b/Host"], 2, "its header is a header"),
        (&["--egress-terminate", "*.a.b"], 2, "this host has *"),
        (&["--no-mask"], 2, "--secret"),
        (
            &["--secret", "A@evil.example"],
            3,
            "--allow names evil.example:443, which the operator does not let jobs reach",
        ),
        (
            &["--secret", "NONE@api.example.com"],
            6,
            "cynode secrets set NONE",
        ),
    ];
    let nothing: &[&str] = &[];
    for (asked, code, text) in cases {
        for (before, after) in [
            (&["run", "--detach"][..], &["true"][..]),
            (&["sandbox", "create", "--no-wait"][..], nothing),
        ] {
            let arguments = [before, asked, after].concat();
            let done = run(client(home.path(), &orchestrator.gateway_url, &arguments)
                .env("CYNODE_TOKEN", user.token()));
            assert_eq!(done.code, code, "{done:?}");
            assert!(done.stderr.contains(text), "{text}: {done:?}");
        }
    }
}
