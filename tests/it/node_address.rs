//! Addresses at which the orchestrator calls a node, and those that it refuses to call.

use crate::support::{
    Orchestrator, Reply, StandIn,
    cluster::PSK,
    eventually, lasting_port,
    listener::{Calls, Listener},
    stage::{Stage, well},
    stand_in::capability,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::path::Path;

/// Address of another machine.
const ELSEWHERE: &str = "10.9.9.9";

/// Address of this machine.
const HERE: &str = "127.0.0.1";

/// An orchestrator that trusts this machine's X-Forwarded-For.
fn start(home: &Path, more: &[&str]) -> Orchestrator {
    Orchestrator::start(home, &[&["--trusted-proxy", "127.0.0.1"], more].concat())
}

/// Registers a node at `url`, as it would from this address.
fn register(orchestrator: &Orchestrator, from: &str, slug: &str, url: &str) -> Reply {
    let body = json!({"psk": PSK, "capability": capability(slug, url)}).to_string();
    let mut headers = vec![("Content-Type", "application/json")];
    if from != HERE {
        headers.push(("X-Forwarded-For", from));
    }
    let control = &orchestrator.control;
    control.call("POST", "/v1/nodes/register", &headers, body.as_bytes())
}

/// Reports a worker at `url`, as the node would from this address.
fn report(node: &StandIn, from: &str, url: &str) -> Reply {
    let token = format!("Bearer {}", node.control.token());
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", token.as_str()),
        ("X-Forwarded-For", from),
    ];
    let body = capability(&node.slug, url).to_string();
    let control = node.control.anonymous();
    control.call("POST", "/v1/nodes/report", &headers, body.as_bytes())
}

fn refused_url(reply: &Reply) -> String {
    let problem = reply.problem(400, "invalid-request");
    let detail = problem["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("worker_api.base_url"), "{detail}");
    detail
}

#[test]
fn worker_url_is_scheme_host_and_port() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    for url in [
        "http://127.0.0.1:1/v1/users",
        "http://127.0.0.1:1//",
        "http://u:p@127.0.0.1:1",
        "http://127.0.0.1:1/?x=",
        "http://127.0.0.1:1#x",
        "https://127.0.0.1:1",
    ] {
        refused_url(&register(&orchestrator, HERE, "box", url));
    }
    register(&orchestrator, HERE, "box", "http://127.0.0.1:1/").expect(201);
}

#[test]
fn remote_node_cannot_name_special_addresses() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = start(home.path(), &[]);
    for host in [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "169.254.169.254",
        "169.254.7.7",
        "224.0.0.1",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "[64:ff9b::7f00:1]",
    ] {
        let url = format!("http://{host}:12090");
        let detail = refused_url(&register(&orchestrator, ELSEWHERE, "box", &url));
        assert!(detail.contains("--advertise-url"), "{detail}");
    }
    for host in ["10.9.9.9", "192.168.7.7", "203.0.113.5", "[fd12::1]"] {
        let url = format!("http://{host}:12090");
        let reply = register(&orchestrator, ELSEWHERE, "box", &url);
        assert!([200, 201].contains(&reply.status), "{}", reply.text());
    }
    let here = "http://127.0.0.1:12090";
    register(&orchestrator, HERE, "here", here).expect(201);
    let metadata = "http://169.254.169.254:80";
    refused_url(&register(&orchestrator, HERE, "here", metadata));
    refused_url(&register(
        &orchestrator,
        "169.254.7.7",
        "neighbour",
        metadata,
    ));
    register(
        &orchestrator,
        "169.254.7.7",
        "neighbour",
        "http://169.254.7.7:1",
    )
    .expect(201);
}

#[test]
fn changed_worker_url_is_checked_and_audited() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = start(home.path(), &[]);
    let mut node = StandIn::start(&orchestrator, "box", |_, answer| answer.refuse(404));
    node.join();
    let old = node.url.clone();
    refused_url(&report(&node, ELSEWHERE, &old));
    let new = "http://10.9.9.9:12090";
    report(&node, ELSEWHERE, new).expect(204);
    report(&node, ELSEWHERE, new).expect(204);
    let admin = orchestrator.login();
    let log = admin.get("/v1/audit?action=node.change_worker_url");
    let events = log.json(200)["events"].clone();
    assert_eq!(events.as_array().unwrap().len(), 1, "{events}");
    let event = &events[0];
    assert_eq!(event["reason"], format!("from {old} to {new}"), "{event}");
    assert_eq!(
        (&event["actor"], &event["address"]),
        (&json!("box"), &json!(ELSEWHERE))
    );
}

#[test]
fn allowed_networks_narrow_worker_urls() {
    let home = tempfile::tempdir().unwrap();
    let allow = [
        "--worker-url-allow=10.1.0.0/16,127.0.0.0/8",
        "--worker-url-allow=fd12::/16",
        "--worker-url=named=http://10.2.0.1:1/prefix",
    ];
    let orchestrator = start(home.path(), &allow);
    let ask = |slug: &str, url: &str| register(&orchestrator, ELSEWHERE, slug, url);
    for url in ["http://10.1.2.3:1", "http://[fd12::7]:1"] {
        let reply = ask("box", url);
        assert!([200, 201].contains(&reply.status), "{}", reply.text());
    }
    let detail = refused_url(&ask("box", "http://10.2.0.1:1"));
    assert!(detail.contains("--worker-url-allow"), "{detail}");
    // The allow list only narrows.
    refused_url(&ask("box", "http://127.0.0.1:1"));
    // The operator's URL overrides the node's.
    ask("named", "http://127.0.0.1:1").expect(201);
}

/// The address of a name may change after its check.
#[test]
fn address_is_checked_at_each_connection() {
    let inside = Calls::default();
    let address = format!("127.0.0.1:{}", lasting_port());
    let listener = Listener::open(&address, &inside, |_, answer| answer.refuse(500));
    for host in ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"] {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = start(home.path(), &[]);
        let mut node = StandIn::start(&orchestrator, "box", well);
        let routable = "http://10.255.255.1:1";
        let reply = register(&orchestrator, ELSEWHERE, "box", routable).json(201);
        let token = reply["auth"]["node_jwt"].as_str().unwrap();
        node.control = orchestrator.control.with_token(token);
        let version = node.config()["config_version"].clone();
        node.ack(&version, "applied").expect(204);
        drop(orchestrator);
        let port = address.rsplit_once(':').unwrap().1;
        let database = Connection::open(home.path().join("orchestrator/cynode.db")).unwrap();
        let url = format!("http://{host}:{port}");
        database
            .execute("UPDATE nodes SET worker_url = ?1", [&url])
            .unwrap();
        drop(database);
        let orchestrator = start(home.path(), &[]);
        let admin = orchestrator.login();
        let task = json!({"command": ["true"]});
        admin.post("/v1/tasks", &task).expect(201);
        eventually("the node is not called, and the reason is shown", || {
            let node = admin.get("/v1/nodes/box").json(200);
            node["reason"]
                .as_str()?
                .contains("--advertise-url")
                .then_some(())
        });
    }
    assert_eq!(inside.all().len(), 0, "{:?}", inside.all());
    drop(listener);
}

#[test]
fn node_redirects_are_not_followed() {
    let inside = Calls::default();
    let listener = Listener::open("127.0.0.1:0", &inside, |_, answer| answer.refuse(500));
    let target = format!("http://{}/v1/worker/jobs:run", listener.address);
    let stage = Stage::set(move |_, call, answer| {
        if call.is_run() {
            answer.redirect(307, &target);
        } else {
            answer.status(204, &Value::Null);
        }
    });
    stage.create(json!({}));
    // The orchestrator has read the answer when it polls the job.
    stage.node.call("report the job", |call| {
        call.method == "GET" && call.path.starts_with("/v1/worker/jobs/")
    });
    assert_eq!(inside.all().len(), 0, "{:?}", inside.all());
}
