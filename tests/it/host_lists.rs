//! Lists of hosts: which a user may ask for, what a node gets of them, and what a task shows.

use crate::support::{
    Api, Cluster, Orchestrator, StandIn,
    client::{client, fails},
    cluster::finish,
    lasting_port,
    process::{cynode, run},
    stage::{Stage, well},
    stand_in::capability,
};
use serde_json::{Value, json};

fn task(egress: Value) -> Value {
    json!({"command": ["true"], "network_policy": "allowlist", "egress": egress})
}

/// Reports a node that knows how to let jobs reach hosts.
fn report_egress(node: &StandIn) {
    let mut report = capability(&node.slug, &node.url);
    report["sandbox"]["features"] = json!(["egress"]);
    node.report(&report).expect(204);
}

/// Sandbox of the job that a node was sent.
fn sent_sandbox(node: &StandIn, id: &str) -> Value {
    let call = node.call("run", |call| call.is_run() && call.body["task_id"] == id);
    call.body["sandbox"].clone()
}

#[test]
fn list_beyond_operators_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--egress-allow", "*.example.com,profile:python"];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let user = orchestrator.login();
    for (egress, pointer, entry) in [
        (
            json!({"allow": ["a.example.com", "example.com"]}),
            "#/egress/allow/1",
            "example.com",
        ),
        (json!({"allow": ["*.com"]}), "#/egress/allow/0", "*.com"),
        (
            json!({"allow": ["a.example.com:22"]}),
            "#/egress/allow/0",
            "a.example.com:22",
        ),
        (
            json!({"profiles": ["python", "git"]}),
            "#/egress/profiles/1",
            "profile:git",
        ),
    ] {
        for path in ["/v1/tasks", "/v1/sandboxes"] {
            let mut body = task(egress.clone());
            if path == "/v1/sandboxes" {
                body.as_object_mut().unwrap().remove("command");
            }
            let problem = user.post(path, &body).problem(403, "forbidden");
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
            let advice = format!("start the orchestrator with --egress-allow {entry}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(
                detail.contains("does not let jobs reach") && detail.ends_with(&advice),
                "{detail}"
            );
        }
    }
    for egress in [
        json!({"allow": ["a.example.com", "*.b.example.com:443"]}),
        json!({"profiles": ["python"], "allow": ["PyPI.org:443"]}),
    ] {
        user.post("/v1/tasks", &task(egress.clone())).expect(201);
        let sandbox = json!({"network_policy": "allowlist", "egress": egress, "wait_seconds": 0});
        user.post("/v1/sandboxes", &sandbox).expect(201);
    }
}

#[test]
fn nothing_is_allowed_by_default() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let problem = user
        .post("/v1/tasks", &task(json!({"allow": ["a.b"]})))
        .problem(403, "forbidden");
    assert_eq!(
        problem["detail"],
        "`egress.allow.0` names a.b, but the operator lets jobs reach no host at all; ask the operator to start the \
         orchestrator with --egress-allow a.b"
    );
    // Wrong requests are wrong whatever the operator says.
    for (body, pointer) in [
        (task(Value::Null), "#/egress"),
        (task(json!({})), "#/egress"),
        (task(json!({"allow": ["10.0.0.1"]})), "#/egress/allow/0"),
        (task(json!({"allow": ["a.b", "*"]})), "#/egress/allow/1"),
        (task(json!({"profiles": ["perl"]})), "#/egress/profiles/0"),
        (
            json!({"command": ["true"], "egress": {"allow": ["a.b"]}}),
            "#/egress",
        ),
    ] {
        let problem = user
            .post("/v1/tasks", &body)
            .problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
}

#[test]
fn node_gets_list_without_profiles() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--egress-allow", "*", "--egress-bytes", "1GiB"];
    let stage = Stage::raise(home, &flags, |_, call, answer| well(call, answer)).joined();
    report_egress(&stage.node);
    let egress = json!({"allow": ["API.example.com"], "profiles": ["python"]});
    let id = stage.create(json!({"network_policy": "allowlist", "egress": egress}));
    assert_eq!(stage.finish(&id).0["status"], "completed");
    let hosts = json!([
        "api.example.com",
        "files.pythonhosted.org:443",
        "pypi.org:443"
    ]);
    let sandbox = sent_sandbox(&stage.node, &id);
    assert_eq!(sandbox["network_policy"], "allowlist");
    assert_eq!(
        sandbox["egress"],
        json!({"allow": hosts, "max_bytes": 1 << 30})
    );
    let shown = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(shown["network_policy"], "allowlist");
    assert_eq!(shown["egress"], json!({ "allow": hosts }));
    let listed = &stage.user.get("/v1/tasks").json(200)["tasks"][0];
    assert_eq!(
        (&listed["network_policy"], &listed["egress"]),
        (&json!("allowlist"), &Value::Null)
    );
    // A job without a network is sent as before.
    let plain = stage.create(json!({}));
    stage.finish(&plain);
    assert_eq!(sent_sandbox(&stage.node, &plain)["egress"], Value::Null);
}

#[test]
fn task_waits_for_node_that_knows_egress() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--egress-allow", "a.b"];
    let stage = Stage::raise(home, &flags, |_, call, answer| well(call, answer)).joined();
    let egress = json!({"allow": ["a.b"]});
    let id = stage.create(json!({"network_policy": "allowlist", "egress": egress}));
    let plain = stage.create(json!({}));
    stage.finish(&plain);
    let waiting = stage.user.get(&format!("/v1/tasks/{id}")).json(200);
    assert_eq!(
        waiting["waiting_for"],
        "no suitable node supports egress (of box); upgrade cynode there"
    );
    report_egress(&stage.node);
    assert_eq!(stage.finish(&id).0["status"], "completed");
}

#[test]
fn shortened_list_counts_for_queued_tasks() {
    let home = tempfile::tempdir().unwrap();
    let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", lasting_port()));
    let start =
        |more: &[&str]| Orchestrator::start_at(home.path(), [&addresses[0], &addresses[1]], more);
    let mut first = start(&["--egress-allow", "*"]);
    let body = task(json!({"allow": ["a.example", "b.example"]})).to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "one"),
    ];
    let user = first.login();
    let create = |user: &Api| user.call("POST", "/v1/tasks", &headers, body.as_bytes());
    let id = create(&user).json(201)["id"].as_str().unwrap().to_owned();
    assert_eq!(first.process.terminate(), 0);

    let private = [
        "--egress-allow-private",
        "10.0.0.0/8,fd00::/8",
        "--egress-bytes",
        "0",
    ];
    let second = start(&[&["--egress-allow", "b.example"][..], &private[..]].concat());
    let user = second.login();
    // The same request again is answered with the task that there is.
    let again = create(&user);
    assert!([200, 201].contains(&again.status), "{}", again.text());
    assert!(again.text().contains(&id), "{}", again.text());
    let mut node = StandIn::start(&second, "box", well);
    node.join();
    report_egress(&node);
    assert_eq!(finish(&user, &id)["status"], "completed");
    assert_eq!(
        sent_sandbox(&node, &id)["egress"],
        json!({"allow": ["b.example"], "allow_private": ["10.0.0.0/8", "fd00::/8"]})
    );
}

#[test]
fn command_line_asks_and_shows() {
    let home = tempfile::tempdir().unwrap();
    let flags = [
        "--egress-allow",
        "api.example.com",
        "--egress-allow",
        "profile:rust",
    ];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    let user = orchestrator.login();
    let cli = |arguments: &[&str]| {
        run(client(home.path(), &orchestrator.gateway_url, arguments)
            .env("CYNODE_TOKEN", user.token()))
    };
    let asked = ["--allow", "api.example.com", "--egress-profile", "rust"];
    let done = cli(&[
        &["run", "--detach", "--name", "mine"][..],
        &asked[..],
        &["--", "true"][..],
    ]
    .concat());
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    let shown = cli(&["task", "get", "mine"]).stdout;
    let hosts = "api.example.com, crates.io:443, index.crates.io:443, static.crates.io:443, static.rust-lang.org:443";
    for (name, value) in [("network", "allowlist"), ("hosts", hosts)] {
        let line = format!("{name:<12} {value}");
        assert!(
            shown.lines().any(|found| found == line),
            "{line:?} in {shown}"
        );
    }
    let created = cli(&[&["sandbox", "create", "--no-wait"][..], &asked[..]].concat());
    assert_eq!(created.code, 0, "{created:?}");

    for (asked, text) in [
        (
            ["--allow", "evil.example"],
            "--allow names evil.example, which the operator does not let jobs reach",
        ),
        (
            ["--egress-profile", "git"],
            "--egress-profile names git, which the operator does not let jobs reach",
        ),
    ] {
        fails(
            &cli(&[&["run", "--detach"][..], &asked[..], &["true"][..]].concat()),
            3,
            text,
        );
        fails(
            &cli(&[&["sandbox", "create"][..], &asked[..]].concat()),
            3,
            text,
        );
    }
    for (asked, text) in [
        (["--allow", "10.0.0.1"], "this host is an IP address"),
        (
            ["--egress-profile", "perl"],
            "expected one of python, node, rust, debian, alpine, models, git",
        ),
    ] {
        let done = cli(&[&["run"][..], &asked[..], &["true"][..]].concat());
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains(text), "{text}: {done:?}");
    }
}

#[test]
fn wrong_lists_of_operator_keep_roles_from_starting() {
    let home = tempfile::tempdir().unwrap();
    for role in ["serve-orchestrator", "dev", "node", "worker"] {
        for (flag, value, text) in [
            ("--egress-allow", "10.0.0.0/8", "this entry is"),
            (
                "--egress-allow",
                "a.b,profile:perl",
                "this entry names no profile",
            ),
            (
                "--egress-allow-private",
                "here",
                "expected an address or network",
            ),
        ] {
            let done = run(cynode(home.path()).args([role, flag, value]));
            assert_eq!(done.code, 2, "{role} {done:?}");
            assert!(done.stderr.contains(text), "{role} {text}: {done:?}");
        }
    }
}

#[test]
fn wrong_upstream_is_refused_and_not_shown() {
    let home = tempfile::tempdir().unwrap();
    let wrong = "https://user:a-password@proxy:1";
    let done = run(cynode(home.path())
        .args(["dev", "--data-dir", "state"])
        .env("CYNODE_EGRESS_UPSTREAM", wrong));
    assert_eq!(done.code, 2, "{done:?}");
    assert!(
        done.stderr.contains("expected http://HOST:PORT"),
        "{done:?}"
    );
    let help = run(cynode(home.path())
        .args(["dev", "--help"])
        .env("CYNODE_EGRESS_UPSTREAM", wrong));
    for done in [done, help] {
        assert!(!format!("{done:?}").contains("a-password"), "{done:?}");
    }
}

#[test]
fn node_with_limits_runs_jobs() {
    let limits = [
        "--egress-allow",
        "profile:debian",
        "--egress-allow-private",
        "10.0.0.0/8",
    ];
    let upstream = ["--egress-upstream", "http://127.0.0.1:1"];
    let cluster = Cluster::start_with(&[&limits[..], &upstream[..]].concat());
    let id = cluster.script("echo on");
    assert_eq!(cluster.finish(&id)["status"], "completed");
    cluster.node.assert_clean();
}
