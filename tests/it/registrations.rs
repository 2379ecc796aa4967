//! Registrations of a node: each revokes earlier tokens, and no job is lost.

use crate::support::{
    Orchestrator, StandIn, eventually_eq,
    listener::Call,
    stage::{Stage, well},
    stand_in::capability,
};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// Current token of a node's Worker API.
fn worker_token(node: &StandIn) -> String {
    let config = node.config();
    let token = config["worker_api"]["orchestrator_bearer_token"].as_str();
    token.unwrap().to_owned()
}

#[test]
fn new_registration_ends_older_node_tokens() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut node = StandIn::idle(&orchestrator, "box");
    node.join();
    let (older, first) = (node.control.clone(), worker_token(&node));
    node.register();
    for reply in [
        older.get("/v1/nodes/config"),
        older.post("/v1/nodes/report", &capability("box", &node.url)),
        older.post("/v1/nodes/config", &json!({})),
    ] {
        let problem = reply.problem(401, "unauthorized");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("register again"), "{detail}");
    }
    let second = worker_token(&node);
    assert_ne!(second, first, "its Worker API has another token");
    assert_eq!(worker_token(&node), second);
    node.report(&capability("box", &node.url)).expect(204);
    // Repeated, as after lost answers.
    for _ in 0..3 {
        node.ask_to_register().json(200);
    }
    node.join();
    let ready = orchestrator.login().get("/v1/nodes/box").json(200);
    assert_eq!(ready["status"], "ready", "{ready}");
}

#[test]
fn acknowledgement_of_replaced_token_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut node = StandIn::idle(&orchestrator, "box");
    node.register();
    let first = node.config()["config_version"].clone();
    node.register();
    let second = node.config()["config_version"].clone();
    assert_ne!(first, second);
    node.ack(&first, "applied").problem(409, "conflict");
    let status = || orchestrator.login().get("/v1/nodes/box").json(200)["status"].clone();
    assert_eq!(status(), "not_ready");
    node.ack(&second, "applied").expect(204);
    assert_eq!(status(), "ready");
}

/// Answers as a Worker API that accepts only these tokens.
fn takes_tokens(tokens: &Arc<Mutex<Vec<String>>>) -> Stage {
    let tokens = Arc::clone(tokens);
    Stage::set_without_joining(move |_, call, answer| {
        if tokens.lock().unwrap().contains(&call.token) {
            well(call, answer);
        } else {
            answer.problem(401, "unauthorized");
        }
    })
}

#[test]
fn node_between_tokens_stays_reachable() {
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let mut stage = takes_tokens(&tokens).joined();
    let first = worker_token(&stage.node);
    tokens.lock().unwrap().push(first.clone());
    let run = |stage: &Stage| stage.finish(&stage.create(json!({}))).0["status"].clone();
    assert_eq!(run(&stage), "completed");
    // The node has registered again, and still uses its old token.
    stage.node.register();
    assert_eq!(run(&stage), "completed");
    // The node was served a new token, and has not applied it.
    let config = stage.node.config();
    let second = worker_token(&stage.node);
    assert_eq!(run(&stage), "completed");
    // The node has applied it without acknowledgement, and no longer accepts the old token.
    *tokens.lock().unwrap() = vec![second];
    assert_eq!(run(&stage), "completed");
    stage
        .node
        .ack(&config["config_version"], "applied")
        .expect(204);
    let shown = |call: &Call| call.token == first;
    let before = stage.node.calls().iter().filter(|call| shown(call)).count();
    assert_eq!(run(&stage), "completed");
    let after = stage.node.calls().iter().filter(|call| shown(call)).count();
    assert_eq!(after, before, "the older token is no longer used");
}

/// A registration of a slug without a key gets no data of the earlier node.
#[test]
fn older_token_is_not_shown_elsewhere() {
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let mut stage = takes_tokens(&tokens).joined();
    let first = worker_token(&stage.node);
    let mut thief = StandIn::start(&stage.orchestrator, "box", |_, answer| answer.refuse(401));
    *thief.readyz.lock().unwrap() = (200, "ready".to_owned());
    thief.register();
    let status = || stage.user.get("/v1/nodes/box").json(200)["status"].clone();
    assert_eq!(status(), "not_ready", "the node has acknowledged nothing");
    let version = thief.config()["config_version"].clone();
    thief.ack(&version, "applied").expect(204);
    stage.create(json!({}));
    thief.call("run a job", Call::is_run);
    // Same with a report of a later registration.
    stage.node.register();
    let version = stage.node.config()["config_version"].clone();
    stage.node.ack(&version, "applied").expect(204);
    let second = worker_token(&stage.node);
    thief.register();
    thief
        .report(&capability("box", &stage.node.url))
        .expect(204);
    thief.report(&capability("box", &thief.url)).expect(204);
    let version = thief.config()["config_version"].clone();
    thief.ack(&version, "applied").expect(204);
    let runs = |node: &StandIn| node.calls().iter().filter(|call| call.is_run()).count();
    let before = runs(&thief);
    eventually_eq("the node is called again", true, || runs(&thief) > before);
    let shown: Vec<Value> = thief.calls().iter().map(|call| json!(call.token)).collect();
    assert!(
        !shown.contains(&json!(first)) && !shown.contains(&json!(second)),
        "{shown:?}"
    );
}
