//! Claims of a node to the control plane, accepted and refused: keys, tokens, slugs, versions, sizes.

use crate::support::{Orchestrator, StandIn, cluster::PSK, stand_in::capability};
use serde_json::{Value, json};
use std::path::Path;

/// An orchestrator, and a stand-in node that is not registered yet.
fn start(home: &Path) -> (Orchestrator, StandIn) {
    let orchestrator = Orchestrator::start(home, &[]);
    let node = StandIn::idle(&orchestrator, "box");
    (orchestrator, node)
}

#[test]
fn wrong_psk_is_refused_and_slowed() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, node) = start(home.path());
    let register = |psk: &str| {
        let body = json!({"psk": psk, "capability": capability("box", &node.url)});
        orchestrator.control.post("/v1/nodes/register", &body)
    };
    for psk in ["", "wrong", &PSK[1..], &format!("{PSK}x")] {
        register(psk).problem(401, "unauthorized");
    }
    register(PSK).json(201);
    let statuses: Vec<u16> = (0..4).map(|_| register("wrong").status).collect();
    assert_eq!(statuses, [401, 429, 429, 429], "the first five are free");
}

/// Places in what a report says about the machine, values that are refused there, and the field that the problem names.
fn wrong_machines() -> Vec<(&'static str, Value, &'static str)> {
    let (long, lots) = ("x".repeat(100_000), vec!["x"; 10_000]);
    let devices = vec![json!({"vendor": "x"}); 10_000];
    vec![
        ("/node/labels", json!(lots), "labels"),
        ("/node/labels", json!(["-x"]), "labels"),
        ("/node/labels", json!(["x".repeat(64)]), "labels"),
        ("/node/name", json!(long), "name"),
        ("/platform/os", json!(long), "os"),
        ("/platform/arch", json!(long), "arch"),
        ("/compute/cpu_model", json!(long), "cpu_model"),
        ("/compute/cpu_cores", json!(-1), "cpu_cores"),
        ("/container_runtime", json!({"runtime": long}), "runtime"),
        (
            "/container_runtime",
            json!({"runtime": "podman", "version": long}),
            "version",
        ),
        (
            "/gpu",
            json!({"present": true, "devices": devices}),
            "devices",
        ),
        (
            "/gpu",
            json!({"present": true, "devices": [{"model": long}]}),
            "model",
        ),
        (
            "/gpu",
            json!({"present": true, "devices": [{"features": {"a": long}}]}),
            "features",
        ),
    ]
}

/// As `wrong_machines`, about what the node offers and where it is.
fn wrong_offers() -> Vec<(&'static str, Value, &'static str)> {
    let (long, lots) = ("x".repeat(100_000), vec!["x"; 10_000]);
    vec![
        (
            "/sandbox",
            json!({"supported": true, "features": lots}),
            "features",
        ),
        (
            "/sandbox",
            json!({"supported": true, "max_concurrency": 0}),
            "max_concurrency",
        ),
        (
            "/inference",
            json!({"supported": true, "models": lots}),
            "models",
        ),
        (
            "/inference",
            json!({"supported": true, "mode": long}),
            "mode",
        ),
        (
            "/network",
            json!({"outbound_policy": long}),
            "outbound_policy",
        ),
        (
            "/tls",
            json!({"trust_material_status": long}),
            "trust_material_status",
        ),
        (
            "/worker_api/base_url",
            json!("file:///etc/passwd"),
            "base_url",
        ),
        (
            "/worker_api/base_url",
            json!("http://user@host"),
            "base_url",
        ),
        (
            "/worker_api/base_url",
            json!(format!("http://{long}")),
            "base_url",
        ),
        ("/reported_at", json!("yesterday"), "reported_at"),
    ]
}

#[test]
fn node_texts_are_bounded() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    node.register();
    for (pointer, value, field) in wrong_machines().into_iter().chain(wrong_offers()) {
        let mut report = capability("box", &node.url);
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        report.pointer_mut(parent).unwrap()[name] = value;
        let problem = node.report(&report).problem(400, "invalid-request");
        assert!(
            problem["detail"].as_str().unwrap().contains(field),
            "{pointer}: {problem}"
        );
        let body = json!({"psk": PSK, "capability": report});
        orchestrator
            .control
            .post("/v1/nodes/register", &body)
            .problem(400, "invalid-request");
    }
    for slug in [
        "",
        "-x",
        "UPPER",
        "a b",
        "a.b",
        "é",
        &"x".repeat(64),
        "../x",
    ] {
        let body = json!({"psk": PSK, "capability": capability(slug, &node.url)});
        orchestrator
            .control
            .post("/v1/nodes/register", &body)
            .problem(400, "invalid-request");
    }
    let nodes = orchestrator.login().get("/v1/nodes").json(200);
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 1, "{nodes}");
}

#[test]
fn node_reports_own_slug_in_version_1() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    node.register();
    node.config();
    node.report(&capability("box", &node.url)).expect(204);
    node.report(&capability("other", &node.url))
        .problem(400, "invalid-request");
    let ack = |changes: Value| {
        let mut ack = json!({"version": 1, "node_slug": "box", "config_version": "1", "ack_at": "2026-01-01T00:00:00Z", "status": "applied"});
        ack.as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        node.control.post("/v1/nodes/config", &ack)
    };
    ack(json!({"node_slug": "other"})).problem(400, "invalid-request");
    ack(json!({"status": "perhaps"})).problem(400, "invalid-request");
    ack(json!({"config_version": "one"})).problem(400, "invalid-request");
    ack(json!({"config_version": 1})).problem(400, "invalid-request");
    for version in ["0", "2", "-1", "9999999999"] {
        ack(json!({"config_version": version})).problem(409, "conflict");
    }
    let mut report = capability("box", &node.url);
    report["version"] = json!(2);
    let register = json!({"psk": PSK, "capability": report});
    let another_shape = json!({"version": 2, "nodes": []});
    for reply in [
        ack(json!({"version": 2})),
        node.report(&report),
        orchestrator.control.post("/v1/nodes/register", &register),
        node.report(&another_shape),
        node.control.post("/v1/nodes/config", &another_shape),
    ] {
        let problem = reply.problem(400, "unsupported-payload-version");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains('2') && detail.contains("version 1"),
            "{detail}"
        );
    }
    let view = orchestrator.login().get("/v1/nodes/box").json(200);
    assert_eq!(
        view.get("ack_status"),
        None,
        "none of these was taken: {view}"
    );
    ack(json!({"unknown_field": {"is": "ignored"}, "error": {"type": "x", "message": "y"}}))
        .expect(204);
}

#[test]
fn node_is_identified_by_token_alone() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Orchestrator::start(elsewhere.path(), &[]);
    let mut stranger = StandIn::idle(&other, "box");
    stranger.register();
    node.register();
    for token in ["garbage", stranger.control.token()] {
        let control = orchestrator.control.with_token(token);
        control.get("/v1/nodes/config").problem(401, "unauthorized");
        control
            .post("/v1/nodes/report", &capability("box", &node.url))
            .problem(401, "unauthorized");
        control
            .post("/v1/nodes/config", &json!({}))
            .problem(401, "unauthorized");
    }
}

#[test]
fn nodes_get_url_they_reached() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    let port = orchestrator
        .control_url
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let headers = [
        ("Content-Type", "application/json"),
        ("Host", "box.localhost:4"),
    ];
    let body_of = |url: &str| json!({"psk": PSK, "capability": capability("box", url)}).to_string();
    let reply = orchestrator.control.call(
        "POST",
        "/v1/nodes/register",
        &headers,
        body_of(&node.url).as_bytes(),
    );
    let bootstrap: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(
        bootstrap["orchestrator"]["base_url"], "http://box.localhost:4",
        "a name or a forwarded port"
    );
    assert!(
        node.register()["orchestrator"]["base_url"]
            .as_str()
            .unwrap()
            .ends_with(&port)
    );
    // Anybody may name a scheme, but only a proxy is believed.
    let forwarded = [headers[0], ("X-Forwarded-Proto", "https")];
    let base_url = |orchestrator: &Orchestrator| {
        let reply = orchestrator.control.call(
            "POST",
            "/v1/nodes/register",
            &forwarded,
            body_of(&node.url).as_bytes(),
        );
        let bootstrap: Value = serde_json::from_slice(&reply.body).unwrap();
        bootstrap["orchestrator"]["base_url"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(base_url(&orchestrator).starts_with("http://"));
    drop(orchestrator);
    let proxied = Orchestrator::start(home.path(), &["--trusted-proxy", "127.0.0.1"]);
    assert!(base_url(&proxied).starts_with("https://"));
    drop(proxied);
    let public = Orchestrator::start(home.path(), &["--public-url", "http://public.example:7/"]);
    node.control = public.control.clone();
    assert_eq!(
        node.register()["orchestrator"]["base_url"],
        "http://public.example:7"
    );
}
