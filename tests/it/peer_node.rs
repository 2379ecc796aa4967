//! A node manager of another implementation, which implements only the published contract: no node key,
//! a report with the required fields only, sent once a minute to `/v1/nodes/capability`.

use crate::support::{
    Orchestrator, Reply, StandIn,
    cluster::{PSK, finish},
    eventually, eventually_eq,
    stage::well,
};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

/// A report with the required fields of the published contract only.
fn fewest(node: &StandIn) -> Value {
    json!({
        "version": 1, "reported_at": "2026-02-16T12:00:00Z", "node": {"node_slug": node.slug},
        "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": 3, "ram_mb": 65536},
        "worker_api": {"base_url": node.url},
    })
}

/// A peer that registers, fetches, acknowledges, and then is silent for a minute.
fn join(orchestrator: &Orchestrator) -> StandIn {
    let mut node = StandIn::start(orchestrator, "peer", well);
    *node.readyz.lock().unwrap() = (200, "ready".to_owned());
    register(&mut node, 201);
    let version = node.config()["config_version"].clone();
    node.ack(&version, "applied").expect(204);
    node
}

fn register(node: &mut StandIn, status: u16) {
    let body = json!({"psk": PSK, "capability": fewest(node)});
    let control = node.control.anonymous();
    let bootstrap = control.post("/v1/nodes/register", &body).json(status);
    let token = bootstrap["auth"]["node_jwt"].as_str().unwrap();
    node.control = control.with_token(token);
}

fn report(node: &StandIn, report: &Value) -> Reply {
    node.control.post("/v1/nodes/capability", report)
}

fn start(home: &Path) -> (Orchestrator, StandIn) {
    let orchestrator = Orchestrator::start(home, &[]);
    let node = join(&orchestrator);
    (orchestrator, node)
}

fn readyz_calls(node: &StandIn) -> Vec<std::time::Instant> {
    let calls = node.calls().into_iter();
    let asked = calls.filter(|call| call.path == "/readyz");
    asked.map(|call| call.at).collect()
}

#[test]
fn node_reporting_each_minute_gets_jobs() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, node) = start(home.path());
    let user = orchestrator.login();
    let view = || user.get("/v1/nodes/peer").json(200);
    let first = view();
    assert_eq!(
        (&first["status"], &first["max_concurrency"]),
        (&json!("ready"), &json!(3))
    );
    // The third probe comes when the node would be offline by its report alone.
    eventually("the node is probed a third time", || {
        assert_eq!(view()["status"], "ready", "{}", view());
        (readyz_calls(&node).len() >= 3).then_some(())
    });
    let silence = view()["last_seen_at"].clone();
    assert!(
        silence.as_str() > first["last_seen_at"].as_str(),
        "{silence}"
    );
    let asked = readyz_calls(&node);
    for pair in asked.windows(2) {
        let pause = pair[1] - pair[0];
        assert!(
            pause > Duration::from_millis(9900),
            "probed again after {pause:?}"
        );
    }
    let task = user
        .post("/v1/tasks", &json!({"command": ["true"]}))
        .json(201);
    let task = finish(&user, task["id"].as_str().unwrap());
    assert_eq!(task["status"], "completed", "{task}");
    report(&node, &fewest(&node)).expect(204);
    assert_eq!(view()["status"], "ready");
    assert!(
        readyz_calls(&node).len() <= 5,
        "a node that reports is not probed"
    );
}

#[test]
fn unready_late_node_gets_no_job() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, node) = start(home.path());
    let user = orchestrator.login();
    let view = || user.get("/v1/nodes/peer").json(200);
    let words = format!("\u{1b}[2Jno podman in /home/ann {}", "x".repeat(4000));
    *node.readyz.lock().unwrap() = (503, words);
    eventually_eq("it takes no jobs", json!("not_ready"), || {
        view()["status"].clone()
    });
    let reason = view()["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("is not ready") && !reason.contains("/home/ann"),
        "{reason}"
    );
    let public = orchestrator
        .gateway
        .get("/readyz")
        .problem(503, "unavailable");
    let public = public["detail"].as_str().unwrap();
    assert!(
        public.contains("is not ready") && !public.contains("/home/ann"),
        "{public}"
    );
    let task = user
        .post("/v1/tasks", &json!({"command": ["true"]}))
        .json(201);
    *node.readyz.lock().unwrap() = (200, "ready".to_owned());
    let task = finish(&user, task["id"].as_str().unwrap());
    assert_eq!(task["status"], "completed", "{task}");
}

#[test]
fn report_needs_only_version_and_slug() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, node) = start(home.path());
    let user = orchestrator.login();
    let view = || user.get("/v1/nodes/peer").json(200);
    let least = json!({"version": 1, "node": {"node_slug": "peer"}, "managed_services": {"supported": true}});
    report(&node, &least).expect(204);
    assert_eq!(
        (&view()["status"], view().get("worker_api_target_url")),
        (&json!("not_ready"), None)
    );
    let mut next = least.clone();
    next["worker_api"] = json!({"base_url": node.url});
    next["inference"] = json!({"mode": "allow", "running": true, "existing_service": true});
    report(&node, &next).expect(204);
    assert_eq!(
        (
            &view()["status"],
            &view()["max_concurrency"],
            &view()["inference"]["supported"]
        ),
        (&json!("ready"), &json!(1), &json!(true))
    );
    report(&node, &json!({"version": 1})).problem(400, "invalid-request");
    let problem = report(&node, &json!({"version": 2})).problem(400, "unsupported-payload-version");
    assert_eq!(problem["title"], "Unsupported payload version");
}

#[test]
fn last_applied_version_keeps_node_ready() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    drop(orchestrator);
    let image = ["--inference-image", "docker.io/ollama/ollama:latest"];
    let orchestrator = Orchestrator::start(home.path(), &image);
    let view = || orchestrator.login().get("/v1/nodes/peer").json(200);
    let stands = || {
        let view = view();
        [
            "status",
            "config_version",
            "acked_config_version",
            "config_stale",
        ]
        .map(|field| view[field].clone())
    };
    node.control = orchestrator.control.with_token(node.control.token());
    register(&mut node, 200);
    assert_eq!(json!(stands()), json!(["ready", "1", "1", true]));
    assert_eq!(node.config()["config_version"], "2");
    assert_eq!(
        json!(stands()),
        json!(["ready", "2", "1", true]),
        "not applied yet"
    );
    node.ack(&json!("2"), "failed").expect(204);
    assert_eq!(json!(stands()), json!(["not_ready", "2", "2", null]));
    node.ack(&json!("2"), "applied").expect(204);
    assert_eq!(json!(stands()), json!(["ready", "2", "2", null]));
}

#[test]
fn acknowledgement_of_replaced_token_is_ignored() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    let token = |node: &StandIn| node.config()["worker_api"]["orchestrator_bearer_token"].clone();
    let old = token(&node);
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let status = |orchestrator: &Orchestrator| {
        orchestrator.login().get("/v1/nodes/peer").json(200)["status"].clone()
    };
    assert_eq!(status(&orchestrator), "ready", "its token is the same");
    drop(orchestrator);
    fs::remove_file(home.path().join("orchestrator/keys/worker-token.key")).unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--new-keys"]);
    assert_eq!(status(&orchestrator), "not_ready");
    let log = orchestrator.process.stderr();
    assert!(log.contains("restart this node"), "{log}");
    node.control = orchestrator.control.with_token(node.control.token());
    register(&mut node, 200);
    assert_eq!(
        status(&orchestrator),
        "not_ready",
        "the node still has the old token"
    );
    let config = node.config();
    assert_ne!(token(&node), old);
    node.ack(&config["config_version"], "applied").expect(204);
    assert_eq!(status(&orchestrator), "ready");
}
