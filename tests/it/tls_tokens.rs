//! Join tokens of an encrypted orchestrator: their URL, and whether they hold its pin.

use crate::support::{
    Node, Orchestrator, PASSWORD,
    client::{client, fails},
    eventually,
    process::{Done, run},
    tls::{CertificateFiles, pin_at},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Log message at the end of a node's start.
const TAKES_JOBS: &str = "the node takes jobs";

/// Orchestrator with the admin logged in.
struct Encrypted {
    orchestrator: Orchestrator,
    pin: String,
    /// URL of the control plane.
    url: String,
}

impl Encrypted {
    fn start(home: &Path, flags: &[&str]) -> Self {
        let orchestrator = Orchestrator::start(home, flags);
        let started = Self {
            pin: pin_at(orchestrator.gateway.address()),
            url: format!("https://{}", orchestrator.control.address()),
            orchestrator,
        };
        let done = started.cli(home, &["login", "--pin", &started.pin]);
        assert_eq!(done.code, 0, "{done:?}");
        started
    }

    /// Runs a command of the admin.
    fn cli(&self, home: &Path, arguments: &[&str]) -> Done {
        let gateway = format!("https://{}", self.orchestrator.gateway.address());
        run(client(home, &gateway, arguments).env("CYNODE_PASSWORD", PASSWORD))
    }

    /// Creates a token, and returns it with its content.
    fn token(&self, home: &Path, more: &[&str]) -> (String, Value) {
        let create = ["nodes", "token", "create", "--url", self.url.as_str()];
        let done = self.cli(home, &[&create[..], more].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let token = done.stdout.trim().to_owned();
        let content = URL_SAFE_NO_PAD.decode(token.strip_prefix("cyj_").unwrap());
        let content: Value = serde_json::from_slice(&content.unwrap()).unwrap();
        assert_eq!(content["u"], self.url);
        (token, content)
    }
}

/// Starts a node with a token.
fn join(home: &Path, token: &str, more: &[&str]) -> Node {
    let file = home.join("token");
    fs::write(&file, token).unwrap();
    let flags = ["--join-file", file.to_str().unwrap()];
    Node::join(home, "box", &[&flags[..], more].concat())
}

/// Waits until a node takes jobs.
fn takes_jobs(node: &mut Node) {
    eventually(TAKES_JOBS, || {
        node.process.assert_runs();
        node.process.stderr().contains(TAKES_JOBS).then_some(())
    });
}

#[test]
fn node_joins_by_pinned_token() {
    let home = tempfile::tempdir().unwrap();
    let started = Encrypted::start(home.path(), &["--tls", "on"]);
    let (token, content) = started.token(home.path(), &[]);
    assert_eq!(content["p"], started.pin);
    takes_jobs(&mut join(home.path(), &token, &[]));
}

/// The same token with another pin.
fn with_pin(content: &Value, pin: &str) -> String {
    let mut content = content.clone();
    content["p"] = pin.into();
    format!("cyj_{}", URL_SAFE_NO_PAD.encode(content.to_string()))
}

#[test]
fn later_pin_outlives_that_of_token() {
    let home = tempfile::tempdir().unwrap();
    let started = Encrypted::start(home.path(), &["--tls", "on"]);
    let [old, other] = ["ab", "cd"].map(|digits| format!("sha256:{}", digits.repeat(32)));
    let (_, content) = started.token(home.path(), &[]);
    // The key has changed since the token was made: the operator gives the new pin once.
    let token = with_pin(&content, &old);
    let mut node = join(home.path(), &token, &[]);
    assert_eq!(node.process.code(), 3);
    let mut node = join(home.path(), &token, &["--pin", &started.pin]);
    takes_jobs(&mut node);
    assert_eq!(node.process.terminate(), 0);
    let mut node = join(home.path(), &token, &[]);
    takes_jobs(&mut node);
    assert_eq!(node.process.terminate(), 0);
    // A token with another pin is a newer one.
    let mut node = join(home.path(), &with_pin(&content, &other), &[]);
    assert_eq!(node.process.code(), 3);
    let log = node.process.stderr();
    assert!(log.contains(&other), "{log}");
}

#[test]
fn token_of_plain_http_asks_for_new_one() {
    let home = tempfile::tempdir().unwrap();
    let started = Encrypted::start(home.path(), &["--tls", "on"]);
    let (_, mut content) = started.token(home.path(), &[]);
    content["u"] = started.url.replace("https://", "http://").into();
    content.as_object_mut().unwrap().remove("p");
    let token = format!("cyj_{}", URL_SAFE_NO_PAD.encode(content.to_string()));
    let mut node = join(home.path(), &token, &[]);
    assert_eq!(node.process.code(), 6);
    let log = node.process.stderr();
    for words in ["speaks TLS only", "cynode nodes token create"] {
        assert!(log.contains(words), "{words} in {log}");
    }
    assert!(!log.contains("URL of --orchestrator"), "{log}");
}

#[test]
fn token_of_plain_http_is_marked() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--tls", "off"]);
    let body = json!({"url": orchestrator.control_url});
    let created = orchestrator.login().post("/v1/join-tokens", &body);
    let created = created.json(201);
    assert_eq!(created["url"], body["url"]);
    assert_eq!(created["status"], "valid");
    drop(orchestrator);
    let started = Encrypted::start(home.path(), &["--tls", "on"]);
    started.token(home.path(), &[]);
    let list = started.cli(home.path(), &["nodes", "token", "list"]);
    for status in ["plain url", "valid"] {
        assert!(list.stdout.contains(status), "{status}: {list:?}");
    }
    assert!(
        list.stderr.contains("cynode nodes token create"),
        "{list:?}"
    );
}

#[test]
fn token_without_pin_needs_authority() {
    let home = tempfile::tempdir().unwrap();
    let files = CertificateFiles::make(home.path(), "server");
    let started = Encrypted::start(home.path(), &files.flags());
    let none: &[&str] = &[];
    for more in [none, &["--no-pin"]] {
        let (_, content) = started.token(home.path(), more);
        assert_eq!(content["p"], Value::Null);
    }
    let (token, _) = started.token(home.path(), &["--no-pin"]);
    let mut node = join(home.path(), &token, &[]);
    assert_eq!(node.process.code(), 3);
    let log = node.process.stderr();
    assert!(log.contains("no authority"), "{log}");
    let authority = files.certificate.to_str().unwrap();
    takes_jobs(&mut join(home.path(), &token, &["--ca-file", authority]));
}

#[test]
fn encrypted_orchestrator_gives_no_plain_url() {
    let home = tempfile::tempdir().unwrap();
    let started = Encrypted::start(home.path(), &["--tls", "on"]);
    let url = started.url.replace("https://", "http://");
    let done = started.cli(home.path(), &["nodes", "token", "create", "--url", &url]);
    fails(&done, 6, "https://");
    let (_, content) = started.token(home.path(), &["--no-pin"]);
    assert_eq!(content["p"], Value::Null);
}
