//! The Node API from a node's first call until the orchestrator is ready, step by step and with
//! real nodes.

use crate::support::{
    Node, Orchestrator, Process, StandIn,
    cluster::{PSK, secret_file, wait_ready},
    eventually, eventually_eq, process,
    server::role,
    stand_in::capability,
};
use serde_json::{Value, json};
use std::path::Path;

/// An orchestrator and a stand-in node that it doesn't know yet.
fn start(home: &Path) -> (Orchestrator, StandIn) {
    let orchestrator = Orchestrator::start(home, &[]);
    let node = StandIn::idle(&orchestrator, "box");
    (orchestrator, node)
}

fn why_not_ready(orchestrator: &Orchestrator) -> String {
    let problem = orchestrator.gateway.get("/readyz");
    let problem = problem.problem(503, "unavailable");
    problem["detail"].as_str().unwrap().to_owned()
}

/// Fails unless this is the answer to a registration at `base`.
#[track_caller]
fn assert_bootstrap(bootstrap: &Value, base: &str) {
    assert_eq!(bootstrap["version"], 1);
    assert_eq!(bootstrap["orchestrator"]["base_url"], base);
    for url in [
        "worker_registration_url",
        "node_report_url",
        "node_config_url",
    ] {
        let url = bootstrap["orchestrator"]["endpoints"][url]
            .as_str()
            .unwrap();
        assert!(url.starts_with(base), "{url}");
    }
    assert!(bootstrap["auth"]["expires_at"].as_str() > bootstrap["issued_at"].as_str());
}

/// Fails unless this is the first configuration of the node `box` at `url`.
#[track_caller]
fn assert_config(config: &Value, url: &str) {
    assert_eq!(
        (
            &config["version"],
            &config["config_version"],
            &config["node_slug"]
        ),
        (&json!(1), &json!("1"), &json!("box"))
    );
    assert_eq!(
        config["orchestrator"]["endpoints"]["worker_api_target_url"],
        url
    );
    assert_eq!(
        (
            &config["sandbox_registry"]["registry_url"],
            &config["model_cache"]["cache_url"]
        ),
        (&json!(""), &json!(""))
    );
    assert_eq!(
        config["policy"]["sandbox"]["default_network_policy"],
        "restricted"
    );
    assert!(
        config["worker_api"]["orchestrator_bearer_token"]
            .as_str()
            .unwrap()
            .len()
            >= 32
    );
    assert_eq!(config.get("inference_backend"), None);
}

/// Fails unless this is the view of the node at `url`, ready and idle.
#[track_caller]
fn assert_ready(ready: &Value, url: &str) {
    assert_eq!(
        (
            &ready["status"],
            &ready["acked_config_version"],
            &ready["ack_status"]
        ),
        (&json!("ready"), &json!("1"), &json!("applied"))
    );
    assert_eq!(
        (&ready["worker_api_target_url"], &ready["labels"]),
        (&json!(url), &json!(["stand-in"]))
    );
    assert_eq!(
        (&ready["running_jobs"], &ready["max_concurrency"]),
        (&json!(0), &json!(2))
    );
}

#[test]
fn the_start_of_a_node_step_by_step() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    let user = orchestrator.login();
    let reason = || why_not_ready(&orchestrator);
    assert!(reason().contains("no node is registered"), "{}", reason());

    let body = json!({"psk": PSK, "capability": capability("box", &node.url)});
    let bootstrap = orchestrator
        .control
        .post("/v1/nodes/register", &body)
        .json(201);
    assert_bootstrap(&bootstrap, &orchestrator.control_url);
    orchestrator
        .control
        .post("/v1/nodes/register", &body)
        .json(200);
    node.register();
    let view = || user.get("/v1/nodes/box").json(200);
    assert_eq!(
        (&view()["status"], &view()["config_version"]),
        (&json!("not_ready"), &json!("0"))
    );
    node.ack(&json!("1"), "applied").problem(409, "conflict");

    let config = node.config();
    assert_config(&config, &node.url);
    let again = node.config();
    assert_eq!(
        (&again["config_version"], &again["worker_api"]),
        (&config["config_version"], &config["worker_api"])
    );
    assert!(reason().contains("acknowledged"), "{}", reason());

    node.ack(&json!("1"), "failed").expect(204);
    assert_eq!(
        (&view()["status"], &view()["ack_status"]),
        (&json!("not_ready"), &json!("failed"))
    );
    assert!(reason().contains("could not apply"), "{}", reason());
    node.ack(&json!("1"), "applied").expect(204);
    assert_eq!(
        orchestrator
            .gateway
            .get("/readyz")
            .expect(200)
            .text()
            .trim(),
        "ready"
    );
    let ready = view();
    assert_ready(&ready, &node.url);
    assert_eq!(user.get("/v1/nodes").json(200)["nodes"], json!([ready]));

    user.act("/v1/nodes/box/drain").expect(204);
    assert_eq!(view()["status"], "draining");
    assert!(reason().contains("draining"), "{}", reason());
    user.act("/v1/nodes/box/resume").expect(204);
    assert_eq!(view()["status"], "ready");
}

#[test]
fn ready_needs_required_inference() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    drop(orchestrator);
    let strict = Orchestrator::start(home.path(), &["--require-inference", "true"]);
    node.control = strict.control.clone();
    node.join();
    let problem = strict.gateway.get("/readyz").problem(503, "unavailable");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("node box: runs no inference"), "{problem}");
    let mut report = capability("box", &node.url);
    report["inference"] = json!({"supported": true, "running": true});
    node.report(&report).expect(204);
    strict.gateway.get("/readyz").expect(200);
}

#[test]
fn node_configuration_names_models() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    drop(orchestrator);
    let image = ["--inference-image", "docker.io/ollama/ollama:latest"];
    let models = ["--inference-model", "b:1,a", "--inference-model", "c"];
    let orchestrator = Orchestrator::start(home.path(), &[&image[..], &models].concat());
    node.control = orchestrator.control.clone();
    node.join();
    let first = node.config();
    assert_eq!(
        first["inference_backend"],
        json!({"enabled": true, "image": image[1], "models": ["b:1", "a", "c"]})
    );
    drop(orchestrator);
    // Another list of models is a new configuration, in force once the node has applied it.
    let orchestrator = Orchestrator::start(home.path(), &image);
    let stale = || orchestrator.login().get("/v1/nodes/box").json(200)["config_stale"] == true;
    assert!(stale());
    node.control = orchestrator.control.with_token(node.control.token());
    let second = node.config();
    assert_eq!(
        second["inference_backend"],
        json!({"enabled": true, "image": image[1]})
    );
    assert_eq!(
        [&first["config_version"], &second["config_version"]],
        ["1", "2"]
    );
    assert!(stale(), "the node still runs the first configuration");
    node.ack(&second["config_version"], "applied").expect(204);
    assert!(!stale());
}

#[test]
fn invalid_model_name_stops_start() {
    let home = tempfile::tempdir().unwrap();
    let start = |arguments: &[&str]| {
        let mut command = role(home.path(), "serve-orchestrator", &home.path().join("data"));
        let done = process::run(command.args(arguments));
        assert_eq!(done.code, 2, "{done:?}");
        done.stderr
    };
    let image = ["--inference-image", "docker.io/ollama/ollama:latest"];
    for name in ["", "-x", "a b", "a,,b", &"x".repeat(257)] {
        let model = format!("--inference-model={name}");
        let error = start(&[image[0], image[1], &model]);
        assert!(error.contains("--inference-model"), "{error}");
        assert!(error.contains("is not a valid model name"), "{error}");
    }
    let error = start(&["--inference-model", "Not_a_slug=a"]);
    assert!(error.contains("lower-case letters"), "{error}");
}

#[test]
fn silent_node_goes_offline_and_returns() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, mut node) = start(home.path());
    let user = orchestrator.login();
    let view = || user.get("/v1/nodes").json(200)["nodes"][0].clone();
    node.join();
    assert_eq!(view()["status"], "ready");
    eventually_eq("the node is offline", json!("offline"), || {
        view()["status"].clone()
    });
    let reason = view()["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("no contact for "), "{reason}");
    let problem = orchestrator
        .gateway
        .get("/readyz")
        .problem(503, "unavailable");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("node box: no contact for "), "{problem}");
    node.report(&capability("box", &node.url)).expect(204);
    assert_eq!(view()["status"], "ready");
    orchestrator.gateway.get("/readyz").expect(200);
}

#[test]
fn real_node_reports_acknowledges_and_survives_restart() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    let labels = [
        "--label",
        "zone=attic",
        "--label",
        "gpu",
        "--name",
        "The box",
        "--connect",
        "listen",
    ];
    let mut node = Node::start(home.path(), "box", &orchestrator.control_url, &labels);
    wait_ready(&orchestrator);
    let view = user.get("/v1/nodes/box").json(200);
    assert_eq!(
        (&view["name"], &view["labels"]),
        (&json!("The box"), &json!(["zone=attic", "gpu"]))
    );
    assert_eq!(
        (&view["max_concurrency"], &view["ack_status"]),
        (&json!(4), &json!("applied"))
    );
    assert_eq!(view["inference"]["supported"], false);
    assert!(view["gpu"]["present"].is_boolean());
    let id = node.node_uuid();
    assert_eq!(node.process.terminate(), 0);
    let listen = ["--connect", "listen"];
    let node = Node::start(home.path(), "box", &orchestrator.control_url, &listen);
    eventually_eq(
        "the node's new address is known",
        Value::from(node.url()),
        || user.get("/v1/nodes/box").json(200)["worker_api_target_url"].clone(),
    );
    wait_ready(&orchestrator);
    assert_eq!(
        node.node_uuid(),
        id,
        "its containers are known by the same label"
    );
    assert_eq!(
        user.get("/v1/nodes").json(200)["nodes"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn registration_limit_names_its_cause() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let wrong = json!({"psk": "an old pre-shared key", "capability": capability("old", "http://127.0.0.1:1")});
    let limited = eventually("registrations are limited", || {
        let reply = orchestrator.control.post("/v1/nodes/register", &wrong);
        (reply.status != 401).then_some(reply)
    });
    let problem = limited.problem(429, "too-many-requests");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("wrong pre-shared key"), "{detail}");
}

#[test]
fn bearer_token_is_not_counted_as_guess() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let (control, path) = (&orchestrator.control, "/v1/nodes/register");
    let body = json!({"psk": PSK, "capability": capability("peer", "http://127.0.0.1:1")});
    let token = control.post(path, &body).json(201)["auth"]["node_jwt"].clone();
    let own = control.with_token(token.as_str().unwrap());
    for token in [&own, &control.with_token("an older token")] {
        for _ in 0..8 {
            token.post(path, &body).expect(200);
        }
    }
    control.post(path, &body).expect(200);
    let wrong = json!({"psk": "an old pre-shared key", "capability": body["capability"]});
    for _ in 0..4 {
        own.post(path, &wrong).problem(401, "unauthorized");
    }
    own.post(path, &json!({"version": 1})).expect(400);
    control.post(path, &body).problem(429, "too-many-requests");
}

#[test]
fn node_with_wrong_psk_ends_with_advice() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let psk = secret_file(home.path(), "wrong", "not the pre-shared key");
    let mut command = role(home.path(), "node", &home.path().join("box"));
    command.args([
        "--orchestrator",
        &orchestrator.control_url,
        "--psk-file",
        &psk,
        "--worker-listen",
        "127.0.0.1:0",
    ]);
    let mut node = Process::start("node", home.path(), &mut command);
    assert_eq!(node.code(), 3);
    let stderr = node.stderr();
    let error = stderr
        .lines()
        .find(|line| line.starts_with("error: "))
        .unwrap_or_else(|| panic!("{stderr}"));
    for words in ["keys/psk", "--psk-file", "start it again"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(!stderr.contains("not the pre-shared key"), "{stderr}");
}
