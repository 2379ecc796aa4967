//! Whose slug it is: the machine that registered it first, until an admin has it forgotten.

use crate::support::{Orchestrator, StandIn, cluster::PSK, stand_in::capability};
use serde_json::{Value, json};

const KEY: &str = "a key of this machine";
const OTHER: &str = "a key of another machine";

/// A stand-in of the slug `box` that shows this key.
fn machine(orchestrator: &Orchestrator, key: Option<&str>) -> StandIn {
    let mut machine = StandIn::idle(orchestrator, "box");
    machine.key = key.map(str::to_owned);
    machine
}

fn detail(problem: &Value) -> &str {
    problem["detail"].as_str().unwrap()
}

#[test]
fn a_slug_belongs_to_the_key_that_registered_it_first() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let mut owner = machine(&orchestrator, Some(KEY));
    owner.ask_to_register().json(201);
    owner.ask_to_register().json(200);
    owner.join();
    let before = orchestrator.login().get("/v1/nodes/box").json(200);
    for key in [None, Some(OTHER), Some(&KEY[..16])] {
        let problem = machine(&orchestrator, key)
            .ask_to_register()
            .problem(409, "slug-taken");
        for text in ["box", "--slug", "cynode nodes forget box"] {
            assert!(detail(&problem).contains(text), "{problem}");
        }
    }
    let after = orchestrator.login().get("/v1/nodes/box").json(200);
    assert_eq!(after, before, "a refused machine changes nothing");
    owner.config();
    // A restart of the orchestrator doesn't forget whose it is.
    drop(orchestrator);
    let orchestrator = Orchestrator::start(home.path(), &[]);
    machine(&orchestrator, Some(OTHER))
        .ask_to_register()
        .problem(409, "slug-taken");
    machine(&orchestrator, Some(KEY))
        .ask_to_register()
        .json(200);
}

#[test]
fn a_slug_that_came_without_a_key_stays_without() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    machine(&orchestrator, None).ask_to_register().json(201);
    for key in [Some(KEY), Some(OTHER), None] {
        machine(&orchestrator, key).ask_to_register().json(200);
    }
}

#[test]
fn a_key_is_neither_short_nor_long_and_the_pre_shared_key_comes_first() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let ask = |psk: &str, key: Value| {
        let capability = capability("box", "http://127.0.0.1:1");
        let body = json!({"psk": psk, "node_key": key, "capability": capability});
        orchestrator.control.post("/v1/nodes/register", &body)
    };
    for key in [
        json!(""),
        json!("x".repeat(15)),
        json!("x".repeat(257)),
        json!(16),
    ] {
        let problem = ask(PSK, key).problem(400, "invalid-request");
        assert!(detail(&problem).contains("node_key"), "{problem}");
    }
    ask(PSK, json!("x".repeat(256))).json(201);
    ask(PSK, json!("x".repeat(16))).problem(409, "slug-taken");
    // Of a slug that is taken, and of a key that is none, only who has the key hears.
    for key in [json!("x".repeat(16)), json!("")] {
        ask("wrong", key).problem(401, "unauthorized");
    }
}
