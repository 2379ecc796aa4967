//! Nodes over TLS: whom they trust, and that the pre-shared key reaches nobody else.

use crate::support::{
    Node, OrchestratorStandIn, Step,
    cluster::PSK,
    eventually,
    tls_front::{Identity, TlsFront},
};
use std::{fs, path::Path};

/// Log message at the end of a node's start.
const TAKES_JOBS: &str = "the node takes jobs";

fn launch(home: &Path, front: &TlsFront, more: &[&str]) -> Node {
    Node::launch(home, "box", &front.url, more)
}

/// Waits until a node has logged this so often.
fn logged(node: &mut Node, text: &str) {
    eventually(&format!("the node logs {text:?}"), || {
        node.process.assert_runs();
        node.process.stderr().contains(text).then_some(())
    });
}

/// Fails unless the node ends with this code and these words.
fn refuses(mut node: Node, code: i32, words: &[&str]) {
    assert_eq!(node.process.code(), code);
    let log = node.process.stderr();
    for word in words {
        assert!(log.contains(word), "{word:?} in {log}");
    }
}

#[test]
fn key_reaches_no_server_with_other_pin() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let (identity, other) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&identity, &orchestrator.url);
    let node = launch(home.path(), &front, &["--pin", &other.pin]);
    refuses(node, 3, &[&identity.pin, &other.pin]);
    let node = launch(home.path(), &front, &[]);
    refuses(
        node,
        3,
        &["no authority", &format!("--pin {}", identity.pin)],
    );
    assert_eq!(front.take_received(), "");
    assert_eq!(orchestrator.calls().len(), 0);
}

#[test]
fn pinned_node_joins_and_notices_swap() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let (identity, other) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&identity, &orchestrator.url);
    orchestrator.deliver(&front.url);
    let mut node = launch(home.path(), &front, &["--pin", &identity.pin]);
    logged(&mut node, TAKES_JOBS);
    assert!(front.take_received().contains(PSK));

    front.swap(&other);
    front.wait_refused();
    logged(&mut node, "heartbeat failed");
    logged(&mut node, &other.pin);
    let reports = orchestrator.steps().len();
    front.wait_refused();
    assert_eq!(orchestrator.steps().len(), reports, "no call goes there");

    front.swap(&identity);
    logged(&mut node, "heartbeat accepted again");
}

#[test]
fn outage_that_turns_untrusted_is_logged() {
    let home = tempfile::tempdir().unwrap();
    let mut orchestrator = OrchestratorStandIn::start();
    let (identity, other) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&identity, &orchestrator.url);
    orchestrator.deliver(&front.url);
    let mut node = launch(home.path(), &front, &["--pin", &identity.pin]);
    logged(&mut node, TAKES_JOBS);
    orchestrator.close();
    logged(&mut node, "heartbeat failed");
    assert!(!node.process.stderr().contains(&other.pin));
    front.swap(&other);
    logged(&mut node, &other.pin);
}

#[test]
fn pin_is_remembered_for_same_url() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let (identity, other) = (Identity::new(), Identity::new());
    let front = TlsFront::start(&identity, &orchestrator.url);
    orchestrator.deliver(&front.url);
    let mut node = launch(home.path(), &front, &["--pin", &identity.pin]);
    logged(&mut node, TAKES_JOBS);
    assert_eq!(node.process.terminate(), 0);
    let mut node = launch(home.path(), &front, &[]);
    logged(&mut node, TAKES_JOBS);
    assert_eq!(node.process.terminate(), 0);

    let elsewhere = TlsFront::start(&identity, &orchestrator.url);
    let node = launch(home.path(), &elsewhere, &[]);
    refuses(node, 2, &[&front.url, "--pin", "node/orchestrator.json"]);
    // An address for examples: nothing is sent there.
    let node = Node::launch(home.path(), "box", "http://192.0.2.1:12082", &[]);
    refuses(node, 2, &[&front.url, "is not encrypted", "https://"]);
    front.swap(&other);
    front.take_received();
    let node = launch(home.path(), &front, &[]);
    refuses(node, 3, &[&identity.pin, &other.pin]);
    assert_eq!(front.take_received(), "");
}

#[test]
fn node_refuses_plain_urls_of_encrypted_orchestrator() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let identity = Identity::new();
    let front = TlsFront::start(&identity, &orchestrator.url);
    let node = launch(home.path(), &front, &["--pin", &identity.pin]);
    refuses(node, 6, &["is not encrypted", "--public-url"]);
    assert_eq!(orchestrator.steps(), [Step::Register]);
}

#[test]
fn node_trusts_private_authority() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let identity = Identity::new();
    let front = TlsFront::start(&identity, &orchestrator.url);
    orchestrator.deliver(&front.url);
    let file = home.path().join("ca.pem");
    fs::write(&file, identity.pem()).unwrap();
    // They replace the pin that an earlier start has remembered.
    let mut node = launch(home.path(), &front, &["--pin", &identity.pin]);
    logged(&mut node, TAKES_JOBS);
    assert_eq!(node.process.terminate(), 0);
    let mut node = launch(home.path(), &front, &["--ca-file", file.to_str().unwrap()]);
    logged(&mut node, TAKES_JOBS);
    assert_eq!(node.process.terminate(), 0);
    let node = launch(home.path(), &front, &[]);
    refuses(node, 3, &["no authority"]);
}

#[test]
fn node_waits_for_valid_dates() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let expired = Identity::between(2001, 2002);
    let renewed = expired.renewed();
    let front = TlsFront::start(&expired, &orchestrator.url);
    orchestrator.deliver(&front.url);
    let file = home.path().join("ca.pem");
    fs::write(&file, [expired.pem(), renewed.pem()].concat()).unwrap();
    let mut node = launch(home.path(), &front, &["--ca-file", file.to_str().unwrap()]);
    logged(&mut node, "has expired");
    assert_eq!(front.take_received(), "");
    front.swap(&renewed);
    logged(&mut node, TAKES_JOBS);
}

#[test]
fn expired_stranger_ends_node() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    // Waiting for its dates would be in vain: no authority vouches for it.
    let front = TlsFront::start(&Identity::between(2001, 2002), &orchestrator.url);
    let file = home.path().join("ca.pem");
    fs::write(&file, Identity::new().pem()).unwrap();
    let node = launch(home.path(), &front, &["--ca-file", file.to_str().unwrap()]);
    refuses(node, 3, &["no authority"]);
    assert_eq!(front.take_received(), "");
}

#[test]
fn pin_needs_encrypted_url() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    let pin = Identity::new().pin;
    let node = Node::launch(home.path(), "box", &orchestrator.url, &["--pin", &pin]);
    refuses(node, 2, &["--pin needs an encrypted connection"]);
    assert_eq!(orchestrator.calls().len(), 0);
}
