//! An orchestrator of another implementation, which serves only the published contract: without policy, id
//! or interval, and with versions that are not numbers.

use crate::support::{
    Api, Node, OrchestratorStandIn, Step, Worker,
    orchestrator_stand_in::{CONFIG, FIRST, REPORT},
};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

const VERSION: &str = "01JKZ5V8N2QW3E4R5T6Y7Z8A9B";
const TOKEN: &str = "phase1-static-token";

/// Orchestrator whose configurations have these fields, too.
fn serving(more: &Value) -> OrchestratorStandIn {
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.change_config(|config| {
        let endpoints = config["orchestrator"].clone();
        *config = json!({
            "version": 1, "config_version": VERSION, "issued_at": "2026-02-16T12:00:00Z", "node_slug": "",
            "orchestrator": endpoints, "model_cache": {"cache_url": ""},
            "worker_api": {"orchestrator_bearer_token": TOKEN},
        });
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
    });
    orchestrator
}

/// Answers registrations with this, and all other calls successfully.
fn bootstrap(
    orchestrator: &OrchestratorStandIn,
    change: impl Fn(&mut Value) + Send + Sync + 'static,
) {
    let url = orchestrator.url.clone();
    let jwt = "the-token-of-registration-1";
    orchestrator.script(move |call, answer| {
        if call.path != FIRST {
            return Some(answer);
        }
        let endpoints = json!({
            "node_report_url": format!("{url}{REPORT}"), "node_config_url": format!("{url}{CONFIG}"),
        });
        let mut body = json!({
            "version": 1, "orchestrator": {"endpoints": endpoints}, "auth": {"node_jwt": jwt},
        });
        change(&mut body);
        answer.status(201, &body);
        None
    });
}

fn refused(home: &Path, orchestrator: &OrchestratorStandIn) -> String {
    let mut node = Node::launch(home, "box", &orchestrator.url, &[]);
    assert_eq!(node.process.code(), 6, "{}", node.process.stderr());
    node.process.stderr()
}

#[test]
fn published_configurations_are_applied() {
    let home = tempfile::tempdir().unwrap();
    for more in [
        json!({}),
        json!({"sandbox_registry": {"registry_url": "docker.io"}, "policy": {}}),
        json!({
            "sandbox_registries": [{"registry_url": "quay.io", "pull_token": "x"}],
            "policy": {"sandbox": {"allow_privileged": true}, "updates": {"poll_interval_seconds": 60}},
            "constraints": {"max_job_timeout_seconds": 60}, "inference_backend": {"variant": "cpu"},
            "managed_services": {"services": []}, "require_digest_pinning": false,
        }),
    ] {
        let orchestrator = serving(&more);
        let mut node = Node::start(home.path(), "box", &orchestrator.url, &[]);
        let ack = orchestrator.call(Step::Ack, 1).body;
        assert_eq!(
            (&ack["status"], &ack["config_version"]),
            (&json!("applied"), &json!(VERSION)),
            "{more}"
        );
        let worker = Api::new(node.url().trim_start_matches("http://")).with_token(TOKEN);
        let result = worker
            .post("/v1/worker/jobs:run", &Worker::script("echo hello"))
            .json(200);
        assert_eq!(
            (&result["status"], &result["stdout"]),
            (&json!("completed"), &json!("hello\n"))
        );
        assert_eq!(node.process.terminate(), 0);
    }
}

#[test]
fn bootstrap_needs_token_and_two_urls() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = serving(&json!({}));
    // The stand-in learns the slug and gives its first token.
    let mut node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    orchestrator.call(Step::Ack, 1);
    assert_eq!(node.process.terminate(), 0);
    bootstrap(&orchestrator, |_| {});
    let mut node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    assert_eq!(orchestrator.call(Step::Ack, 2).body["status"], "applied");
    assert_eq!(node.process.terminate(), 0);

    bootstrap(&orchestrator, |body| {
        body["orchestrator"]["endpoints"]["node_report_url"] = json!("ftp://elsewhere:1/r");
    });
    let stderr = refused(home.path(), &orchestrator);
    assert!(stderr.contains("node_report_url"), "{stderr}");
    bootstrap(&orchestrator, |body| {
        body["auth"] = json!({});
    });
    let stderr = refused(home.path(), &orchestrator);
    assert!(stderr.contains("node_jwt"), "{stderr}");
    bootstrap(&orchestrator, |body| body["version"] = json!(2));
    let stderr = refused(home.path(), &orchestrator);
    assert!(stderr.contains("payload version 2"), "{stderr}");
}

#[test]
fn unenforceable_configuration_is_acknowledged_as_failed() {
    let home = tempfile::tempdir().unwrap();
    for (more, word) in [
        (
            json!({"policy": {"sandbox": {"default_network_policy": "allow-list-v2"}}}),
            "allow-list-v2",
        ),
        (json!({"worker_api": {}}), "orchestrator_bearer_token"),
        (json!({"worker_api": null}), "orchestrator_bearer_token"),
    ] {
        let orchestrator = serving(&more);
        let stderr = refused(home.path(), &orchestrator);
        assert!(stderr.contains(word), "{stderr}");
        let ack = orchestrator.call(Step::Ack, 1).body;
        assert_eq!(
            (
                &ack["status"],
                &ack["config_version"],
                &ack["error"]["type"]
            ),
            (
                &json!("failed"),
                &json!(VERSION),
                &json!("invalid-configuration")
            )
        );
        let message = ack["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn node_reports_at_configured_interval() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = serving(&json!({"report_interval_seconds": 1}));
    let _node = Node::start(home.path(), "box", &orchestrator.url, &[]);
    let [second, fifth] = [2, 5].map(|nth| orchestrator.call(Step::Report, nth).at);
    let three = fifth - second;
    assert!(
        three < Duration::from_secs(9),
        "three reports took {three:?}"
    );
    assert!(
        three > Duration::from_secs(2),
        "three reports took {three:?}"
    );
}
