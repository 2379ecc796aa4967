//! A required model server that can not run: the node reports the reason to its orchestrator and its operator, ends, and
//! touches no container of others. For one that is not required see `zero_flags.rs`.

use crate::support::{
    ModelPort, Node, Orchestrator, OrchestratorStandIn, Step,
    cluster::wait_ready,
    eventually,
    image::podman,
    model_server::{BROKEN_OLLAMA_IMAGE, BROKEN_REASON, OLLAMA_IMAGE, SILENT_OLLAMA_IMAGE},
};
use serde_json::{Value, json};
use std::{net::TcpListener, path::Path, thread};

/// An orchestrator that configures this image at this port.
fn wanting(image: &str, at: &ModelPort) -> OrchestratorStandIn {
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.change_config(|config| {
        config["inference_backend"] = json!({"enabled": true, "image": image, "port": at.port});
    });
    orchestrator
}

/// Starts a node that can not run the model server, waits for its end, and returns its acknowledgement.
fn refused(home: &Path, orchestrator: &OrchestratorStandIn, more: &[&str]) -> Value {
    let flags = [&["--inference", "on"], more].concat();
    let mut node = Node::launch(home, "box", &orchestrator.url, &flags);
    assert_eq!(node.process.code(), 8);
    let ack = orchestrator.call(Step::Ack, 1).body;
    assert_eq!(
        (&ack["status"], &ack["config_version"]),
        (&json!("failed"), &json!("2"))
    );
    let message = ack["error"]["message"].as_str().unwrap();
    let stderr = node.process.stderr();
    assert!(
        stderr.contains(message.lines().next().unwrap()),
        "the operator sees the same reason: {stderr}"
    );
    assert!(
        stderr.contains("start the model server"),
        "the failed step is named: {stderr}"
    );
    ack["error"].clone()
}

fn assert_told(error: &Value, kind: &str, words: &[&str]) {
    assert_eq!(error["type"], kind, "{error}");
    for word in words {
        assert!(
            error["message"].as_str().unwrap().contains(word),
            "{word}: {error}"
        );
    }
}

#[test]
fn unavailable_image_is_named() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let image = "localhost/nobody-has-it:latest";
    let error = refused(home.path(), &wanting(image, &at), &[]);
    assert_told(&error, "image-unavailable", &[image, "--inference-image"]);
    assert_eq!(at.inspect(), None);
}

#[test]
fn failed_command_is_quoted() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let error = refused(home.path(), &wanting(BROKEN_OLLAMA_IMAGE, &at), &[]);
    let words = ["with code 1;", BROKEN_REASON];
    assert_told(&error, "model-server-not-started", &words);
    assert_eq!(at.inspect(), None);
}

#[test]
fn unresponsive_command_times_out() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let limit = ["--inference-start-timeout", "2s"];
    let error = refused(home.path(), &wanting(SILENT_OLLAMA_IMAGE, &at), &limit);
    assert_told(
        &error,
        "model-server-silent",
        &["within 2 s", "listens on", "--inference-start-timeout"],
    );
    assert_eq!(at.inspect(), None);
}

#[test]
fn invalid_configuration_is_refused() {
    let at = ModelPort::new();
    for (backend, words) in [
        (
            json!({"enabled": true, "image": "dir:/etc"}),
            ["dir:/etc", "orchestrator"],
        ),
        (
            json!({"enabled": true, "image": OLLAMA_IMAGE, "variant": "abacus"}),
            ["abacus", "rocm"],
        ),
    ] {
        let home = tempfile::tempdir().unwrap();
        let orchestrator = wanting(OLLAMA_IMAGE, &at);
        orchestrator.change_config(|config| {
            config["config_version"] = "2".into();
            config["inference_backend"] = backend;
        });
        let error = refused(home.path(), &orchestrator, &[]);
        assert_told(&error, "invalid-configuration", &words);
    }
}

#[test]
fn occupied_port_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let stranger = TcpListener::bind(("127.0.0.1", at.port)).unwrap();
    // The stranger closes every connection.
    thread::spawn(move || stranger.incoming().for_each(drop));
    let error = refused(home.path(), &wanting(OLLAMA_IMAGE, &at), &[]);
    assert_told(
        &error,
        "port-in-use",
        &[&at.port.to_string(), "--inference-port"],
    );
    assert_eq!(at.inspect(), None);
}

#[test]
fn foreign_container_is_never_touched() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    podman(&["create", "--quiet", "--name", &at.name, OLLAMA_IMAGE]).unwrap();
    let before = at.inspect();
    let error = refused(home.path(), &wanting(OLLAMA_IMAGE, &at), &[]);
    assert_told(
        &error,
        "container-not-ours",
        &[&at.name, "no node of cynode"],
    );
    assert_eq!(at.inspect(), before);
}

#[test]
fn nodes_on_one_machine_have_own_servers() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let orchestrator = Orchestrator::start(home.path(), &["--inference-image", OLLAMA_IMAGE]);
    let port = at.port.to_string();
    let flags = ["--inference", "on", "--inference-port", &port];
    let mut first = Node::launch(home.path(), "first", &orchestrator.control_url, &flags);
    wait_ready(&orchestrator);
    let id = at.id();
    let mut second = Node::launch(home.path(), "second", &orchestrator.control_url, &flags);
    assert_eq!(second.process.code(), 8);
    let stderr = second.process.stderr();
    let whose = format!("belongs to the node first ({})", first.node_uuid());
    assert!(stderr.contains(&whose), "{stderr}");
    assert_eq!(at.id(), id);
    first.process.assert_runs();
    let reason = eventually("the orchestrator knows the reason", || {
        let node = orchestrator.login().get("/v1/nodes/second").json(200);
        node["reason"].as_str().map(str::to_owned)
    });
    assert!(reason.contains(&whose), "{reason}");
}
