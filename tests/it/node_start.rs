//! Start and heartbeat of a node, from the orchestrator's side: its calls, their order, URLs and tokens.

use crate::support::{
    Api, Node, OrchestratorStandIn, Reaction, Step,
    cluster::PSK,
    eventually,
    orchestrator_stand_in::{CONFIG, ENROL, FIRST, REPORT},
};
use serde_json::{Value, json};
use std::{
    net::TcpStream,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Log message at the end of a node's start.
const TAKES_JOBS: &str = "the node takes jobs";

/// Starts a node without waiting for its start to end.
fn launch(home: &Path, orchestrator: &OrchestratorStandIn, more: &[&str]) -> Node {
    Node::launch(home, "box", &orchestrator.url, more)
}

/// Waits until a node has logged this.
fn logged(node: &mut Node, text: &str) {
    eventually(&format!("the node logs {text:?}"), || {
        node.process.assert_runs();
        node.process.stderr().contains(text).then_some(())
    });
}

/// Status of the Worker API at this URL for a caller with this token.
fn worker_api(url: &str, token: &str) -> u16 {
    let api = Api::new(url).with_token(token);
    api.get("/v1/worker/jobs").status
}

/// URL of the Worker API in a registration or report.
fn base_url(capability: &Value) -> &str {
    capability["worker_api"]["base_url"].as_str().unwrap()
}

/// Whether the node's Worker API answers, checked at each call before its answer.
type Meanwhile = Arc<Mutex<Vec<(Step, bool)>>>;

/// Makes the orchestrator check the Worker API at each call, before it answers.
fn watch(orchestrator: &OrchestratorStandIn) -> Meanwhile {
    let meanwhile = Meanwhile::default();
    let (seen, url) = (Arc::clone(&meanwhile), Mutex::new(String::new()));
    let token = orchestrator.worker_token();
    orchestrator.script(move |call, answer| {
        let Some(step) = Step::of(call) else {
            return Some(answer);
        };
        let mut url = url.lock().unwrap();
        if step == Step::Register {
            base_url(&call.body["capability"]).clone_into(&mut url);
        }
        let serves = match step {
            Step::Register | Step::Config => {
                TcpStream::connect(url.trim_start_matches("http://")).is_ok()
            }
            Step::Ack | Step::Report => worker_api(&url, &token) == 200,
        };
        seen.lock().unwrap().push((step, serves));
        Some(answer)
    });
    meanwhile
}

#[test]
fn node_start_follows_contract_order() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let meanwhile = watch(&orchestrator);
    let node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    // The first comes with the acknowledgement, the others are heartbeats.
    let reports = [1, 2, 3].map(|nth| orchestrator.call(Step::Report, nth));
    let meanwhile = meanwhile.lock().unwrap().clone();
    let order = [
        (Step::Register, false),
        (Step::Config, false),
        (Step::Report, true),
        (Step::Ack, true),
    ];
    assert_eq!(
        meanwhile[..4],
        order,
        "the Worker API listens once the node has the token"
    );
    assert_eq!(worker_api(node.url(), "another"), 401);

    let [register, config, ack] =
        [Step::Register, Step::Config, Step::Ack].map(|step| orchestrator.call(step, 1));
    let paths = [&register, &config, &ack, &reports[0], &reports[1]].map(|call| call.path.as_str());
    assert_eq!(paths, [FIRST, CONFIG, CONFIG, REPORT, REPORT]);
    let mut steps = orchestrator.steps();
    steps.retain(|step| *step != Step::Report);
    assert_eq!(steps.len(), 3, "each step once: {steps:?}");
    for call in [&config, &ack].into_iter().chain(&reports) {
        assert_eq!(call.token, orchestrator.jwt(), "{call:?}");
    }

    let capability = &register.body["capability"];
    assert_eq!(
        register.token, PSK,
        "the pre-shared key is in the head, too"
    );
    assert_eq!(register.body["psk"], PSK);
    assert_eq!(config.body, Value::Null);
    let fields = ["version", "node_slug", "config_version", "status"].map(|field| &ack.body[field]);
    assert_eq!(json!(fields), json!([1, "box", "1", "applied"]));
    let hash = ack.body["effective_config_hash"].as_str().unwrap();
    assert!(hash.starts_with("sha256:"), "{hash}");
    for report in [capability, &reports[0].body, &reports[2].body] {
        assert_eq!(report["node"]["node_slug"], "box");
        assert_eq!(base_url(report), node.url());
    }
    let pause = reports[2].at - reports[1].at;
    assert!(pause > Duration::from_secs(5), "a report every {pause:?}");
}

#[test]
fn every_start_step_retries_until_success() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.fail(Step::Register, Reaction::Problem(500, "internal"));
    let mut node = launch(home.path(), &orchestrator, &[]);
    let first = orchestrator.call(Step::Register, 3);
    assert_eq!(first.path, FIRST, "no other URL was delivered yet");
    assert!(!orchestrator.steps().contains(&Step::Config));
    orchestrator.fail(Step::Config, Reaction::Problem(503, "unavailable"));
    orchestrator.call(Step::Config, 2);
    assert!(!orchestrator.steps().contains(&Step::Ack));
    orchestrator.fail(Step::Ack, Reaction::Problem(500, "internal"));
    orchestrator.call(Step::Ack, 2);
    orchestrator.well_again();
    logged(&mut node, TAKES_JOBS);
    let mut steps = orchestrator.steps();
    steps.retain(|step| *step != Step::Report);
    steps.dedup();
    assert_eq!(steps[..3], [Step::Register, Step::Config, Step::Ack]);
}

#[test]
fn node_start_waits_for_unreachable_orchestrator() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = OrchestratorStandIn::start();
    orchestrator.close();
    let mut node = launch(home.path(), &orchestrator, &[]);
    logged(&mut node, "operation failed; retrying");
    orchestrator.reopen();
    orchestrator.call(Step::Ack, 1);
    orchestrator.close();
    logged(&mut node, "heartbeat failed; retrying");
    orchestrator.reopen();
    logged(&mut node, "heartbeat accepted again");
    let mut steps = orchestrator.steps();
    steps.retain(|step| *step != Step::Report);
    let start = [Step::Register, Step::Config, Step::Ack];
    assert_eq!(steps, start, "the node did not register again");
}

#[test]
fn expired_token_is_replaced_without_restart() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let mut node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    // The acknowledgement must be answered before its token expires.
    logged(&mut node, TAKES_JOBS);
    let old = orchestrator.jwt();
    orchestrator.revoke();
    assert_eq!(orchestrator.call(Step::Report, 2).token, old);
    let again = orchestrator.call(Step::Register, 2);
    assert_eq!(
        (again.path.as_str(), &again.body["psk"]),
        (ENROL, &json!(PSK))
    );
    let report = orchestrator.call(Step::Report, 3);
    assert_ne!(report.token, old);
    assert_eq!(report.token, orchestrator.jwt());
    // The orchestrator may have known the node already, or its answer may have been lost.
    assert_eq!(orchestrator.call(Step::Ack, 2).body["status"], "applied");
    let token = orchestrator.worker_token();
    assert_eq!(
        worker_api(node.url(), &token),
        200,
        "the Worker API never stopped"
    );
}

#[test]
fn token_expired_during_start_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    for step in [Step::Config, Step::Report, Step::Ack] {
        let before = orchestrator.steps().len();
        orchestrator.fail(step, Reaction::Problem(401, "unauthorized"));
        let mut node = launch(home.path(), &orchestrator, &[]);
        let tried = orchestrator.steps().iter().filter(|s| **s == step).count();
        orchestrator.call(step, tried + 2);
        orchestrator.well_again();
        logged(&mut node, TAKES_JOBS);
        let steps = orchestrator.steps();
        let registered = steps[before..].iter().filter(|s| **s == Step::Register);
        assert!(registered.count() > 1, "{step:?}");
        assert_eq!(node.process.terminate(), 0);
    }
}

#[test]
fn deleted_node_registers_again_while_serving() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let mut node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    logged(&mut node, TAKES_JOBS);
    let old = orchestrator.worker_token();
    orchestrator.change_config(|config| {
        config["node_slug"] = "".into();
        config["worker_api"]["orchestrator_bearer_token"] = "another worker token".into();
    });
    orchestrator.revoke();
    assert_eq!(orchestrator.call(Step::Ack, 2).body["config_version"], "2");
    let mut steps = orchestrator.steps();
    steps.retain(|step| *step != Step::Report);
    let start = [Step::Register, Step::Config, Step::Ack];
    assert_eq!(steps, [start, start].concat());
    assert_eq!(worker_api(node.url(), "another worker token"), 200);
    assert_eq!(worker_api(node.url(), &old), 401);
}

#[test]
fn lost_registration_answer_restarts_registration() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let mut node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    logged(&mut node, TAKES_JOBS);
    // The orchestrator forgets the node and registers it again, and the answer is lost. The next registration looks
    // like that of a known node.
    orchestrator.fail(Step::Register, Reaction::Problem(503, "unavailable"));
    orchestrator.change_config(|config| {
        config["worker_api"]["orchestrator_bearer_token"] = "another worker token".into();
    });
    orchestrator.revoke();
    orchestrator.call(Step::Register, 2);
    orchestrator.well_again();
    assert_eq!(orchestrator.call(Step::Ack, 2).body["config_version"], "2");
    assert_eq!(worker_api(node.url(), "another worker token"), 200);
}

#[test]
fn node_without_network_waits_for_network() {
    let home = tempfile::tempdir().unwrap();
    // At every address, the reported one is that on the route to the orchestrator.
    let flags = ["--worker-listen", "0.0.0.0:0"];
    let url = "http://no-such-host.invalid:12082";
    let mut node = Node::launch(home.path(), "box", url, &flags);
    logged(&mut node, "operation failed; retrying");
    let stderr = node.process.stderr();
    assert!(stderr.contains("no-such-host.invalid"), "{stderr}");
    assert_eq!(node.process.terminate(), 0);
}

#[test]
fn permanent_refusal_ends_node_start() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    for (step, problem, code) in [
        (Step::Register, (409, "slug-taken"), 5),
        (Step::Register, (401, "unauthorized"), 3),
        (Step::Config, (400, "invalid"), 6),
        (Step::Ack, (409, "conflict"), 5),
    ] {
        orchestrator.fail(step, Reaction::Problem(problem.0, problem.1));
        let before = orchestrator.calls().len();
        let mut node = launch(home.path(), &orchestrator, &[]);
        assert_eq!(node.process.code(), code, "{problem:?} at {step:?}");
        let stderr = node.process.stderr();
        assert!(stderr.contains("error: "), "{stderr}");
        let asked = &orchestrator.steps()[before..];
        let times = asked.iter().filter(|asked| **asked == step).count();
        assert_eq!(
            times, 1,
            "{problem:?} at {step:?} is not tried again: {asked:?}"
        );
        assert_eq!(asked.last(), Some(&step));
    }
}

#[test]
fn node_waiting_for_answer_stops_on_signal() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    for step in [Step::Register, Step::Config, Step::Ack] {
        orchestrator.fail(step, Reaction::Silence);
        let before = orchestrator.steps().iter().filter(|s| **s == step).count();
        let mut node = launch(home.path(), &orchestrator, &[]);
        orchestrator.call(step, before + 1);
        assert_eq!(node.process.terminate(), 0, "while it waits for {step:?}");
    }
}

#[test]
fn node_without_inference_applies_inference_configuration() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.change_config(|config| {
        config["inference_backend"] = json!({"enabled": true, "image": "localhost/nobody-has-it"});
    });
    let flags = ["--inference", "off"];
    let _node = Node::start(home.path(), "box", &orchestrator.url, &flags);
    let ack = orchestrator.call(Step::Ack, 1).body;
    assert_eq!(
        (&ack["status"], &ack["config_version"]),
        (&json!("applied"), &json!("2"))
    );
    let register = orchestrator.call(Step::Register, 1).body;
    assert_eq!(register["capability"]["inference"]["supported"], false);
}
