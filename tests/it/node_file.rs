//! `node.yaml`: settings of a node in a file.

use crate::support::{
    Api, IMAGE, Node, Orchestrator, OrchestratorStandIn, Process, Step, Worker,
    cluster::{PSK, finish, wait_ready},
    cynode, image,
    process::{Done, run},
    server::role,
};
use serde_json::json;
use std::{fs, path::Path};

/// Runs a node that can not start, with this file.
fn refused(home: &Path, text: &str, more: &[&str]) -> Done {
    let file = home.join("node.yaml");
    fs::write(&file, text).unwrap();
    let mut command = role(home, "node", &home.join("node"));
    run(command.arg("--config").arg(file).args(more))
}

#[test]
fn unknown_key_is_named_with_line() {
    let home = tempfile::tempdir().unwrap();
    for (text, words) in [
        ("node:\n  slug: box\n  slog: box\n", ["slog", "3"]),
        (
            "orchestrator: {url: 'http://x'}\nsandboxes: {}\n",
            ["sandboxes", "2"],
        ),
        (
            "sandbox:\n  max_concurrency: many\n",
            ["max_concurrency", "2"],
        ),
        ("sandbox:\n  max_concurrency: 0\n", ["1 or more", "2"]),
        (
            "sandbox:\n  max_timeout: 5 minutes\n",
            ["90s, 5m or 2h", "2"],
        ),
        (
            "inference:\n\n  mode: sometimes\n",
            ["expected one of", "3"],
        ),
        ("inference: {port: 70000}\n", ["inference", "1"]),
        ("node: {slug: a}\nnode: {slug: b}\n", ["node", "2"]),
        ("node: [\n", ["node.yaml", "1"]),
    ] {
        let done = refused(home.path(), text, &[]);
        assert_eq!(done.code, 2, "{text}: {done:?}");
        for word in words {
            assert!(done.stderr.contains(word), "{word} of {text}: {done:?}");
        }
        assert!(done.stderr.contains("node.yaml"), "{done:?}");
        assert!(
            !home.path().join("node").exists(),
            "no directory is created"
        );
    }
}

#[test]
fn misplaced_secret_is_not_repeated() {
    let home = tempfile::tempdir().unwrap();
    let text = "orchestrator:\n  url: http://127.0.0.1:1\n  psk: a secret of the operator\n";
    let done = refused(home.path(), text, &[]);
    assert!(done.stderr.contains("psk_file"), "{done:?}");
    assert!(!done.stderr.contains("a secret"), "{done:?}");
}

#[test]
fn missing_or_incomplete_file_is_explained() {
    let home = tempfile::tempdir().unwrap();
    let mut command = role(home.path(), "node", &home.path().join("node"));
    let done = run(command.args(["--config", "/nonexistent/node.yaml"]));
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("/nonexistent/node.yaml"), "{done:?}");
    for (text, word) in [
        ("# nothing\n", "--orchestrator"),
        ("orchestrator: {url: 'http://127.0.0.1:1'}\n", "--psk-file"),
        (
            "orchestrator: {url: 'http://127.0.0.1:1', psk_file: none}\n",
            "orchestrator.psk_file",
        ),
    ] {
        let done = refused(home.path(), text, &[]);
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains(word), "{word}: {done:?}");
    }
    for (limit, words) in [
        (
            "sandbox: {max_timeout: 31d}",
            "--max-timeout must be 1s to 30d",
        ),
        (
            "storage: {job_log_size: 9TiB}",
            "--job-log-size must be from 1MiB to 1TiB",
        ),
    ] {
        let text = format!("orchestrator: {{url: 'http://127.0.0.1:1'}}\n{limit}\n");
        let done = refused(home.path(), &text, &["--psk", PSK]);
        assert_eq!(done.code, 2);
        assert!(done.stderr.contains(words), "{done:?}");
    }
}

#[test]
fn flag_overrides_variable_overrides_file() {
    image::ready();
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    fs::write(home.path().join("key"), format!("{PSK}\n")).unwrap();
    let file = format!(
        "# A node of the tests.\n\
         orchestrator:\n  url: {}\n  psk_file: key\n  timeout: 20s\n\
         node:\n  slug: file\n  name: file\n  labels: [file, zone=attic]\n\
         worker_api:\n  listen: 127.0.0.1:0\n\
         sandbox:\n  max_concurrency: 3\n  engine: podman\n\
         inference:\n  mode: \"off\"\n\
         storage:\n  data_dir: state\n\
         logging:\n  level: debug\n  format: json\n",
        orchestrator.url
    );
    fs::write(home.path().join("node.yaml"), file).unwrap();
    let mut command = cynode(home.path());
    command
        .args(["node", "--config", "node.yaml", "--slug", "flag"])
        .envs([("CYNODE_SLUG", "variable"), ("CYNODE_NAME", "variable")]);
    let mut node = Process::start("node", home.path(), &mut command);
    let register = orchestrator.call(Step::Register, 1).body;
    let mut node_info = register["capability"]["node"].clone();
    node_info.as_object_mut().unwrap().remove("instance_id");
    assert_eq!(
        node_info,
        json!({"node_slug": "flag", "name": "variable", "labels": ["file", "zone=attic"]})
    );
    assert_eq!(register["capability"]["sandbox"]["max_concurrency"], 3);
    assert_eq!(register["capability"]["inference"]["mode"], "off");
    orchestrator.call(Step::Ack, 1);
    assert!(
        home.path().join("state/node/key").exists(),
        "as seen from the file"
    );
    assert!(
        node.stderr().lines().all(|line| line.starts_with('{')),
        "{}",
        node.stderr()
    );
    assert!(node.stderr().contains("\"DEBUG\""));
    assert_eq!(node.terminate(), 0);
}

#[test]
fn stricter_limit_of_node_wins() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let file = home.path().join("limits.yaml");
    fs::write(
        &file,
        "sandbox:\n  max_timeout: 1s\n  allowed_images: ['localhost/cynode-test*']\n\
         worker_api:\n  max_request_bytes: 2048\n",
    )
    .unwrap();
    let flags = ["--config", file.to_str().unwrap()];
    let node = Node::start(home.path(), "box", &orchestrator.control_url, &flags);
    wait_ready(&orchestrator);
    let user = orchestrator.login();
    let end = |task: &serde_json::Value| {
        let id = user.post("/v1/tasks", task).json(201)["id"].clone();
        let id = id.as_str().unwrap();
        finish(&user, id);
        user.get(&format!("/v1/tasks/{id}/result")).json(200)["jobs"][0].clone()
    };
    let long = end(&json!({"command": ["sleep", "600"], "image": IMAGE, "timeout_seconds": 60}));
    assert_eq!(long["status"], "timeout");
    assert_eq!(long["result_object"]["effective"]["timeout_seconds"], 1);
    let other = end(&json!({"command": ["true"], "image": "localhost/other"}));
    assert_eq!(other["result_object"]["error"]["type"], "image-not-allowed");
    let token = fs::read_to_string(node.data_dir.join("node/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&token).unwrap();
    let token = config["worker_api"]["orchestrator_bearer_token"]
        .as_str()
        .unwrap();
    let api = Api::new(node.url()).with_token(token);
    let big = json!({"version": 1, "padding": "x".repeat(2048)});
    assert_eq!(api.post("/v1/worker/jobs:run", &big).status, 413);
}

#[test]
fn file_of_another_implementation_is_understood() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = OrchestratorStandIn::start();
    image::ready();
    fs::write(home.path().join("key"), PSK).unwrap();
    let file = format!(
        "version: 1\n\
         orchestrator:\n  url: {}\n  registration_psk_file: key\n\
         node:\n  id: foreign\n\
         worker_api:\n  listen_host: 127.0.0.1\n  listen_port: 0\n\
         sandbox:\n  mode: sandbox_only\n  runtime: podman\n  timeouts:\n    default_seconds: 1\n\
         storage:\n  state_dir: state\n",
        orchestrator.url
    );
    fs::write(home.path().join("node.yaml"), file).unwrap();
    let mut command = cynode(home.path());
    command.args(["node", "--config", "node.yaml"]);
    let mut node = Process::start("node", home.path(), &mut command);
    let register = orchestrator.call(Step::Register, 1).body;
    let capability = &register["capability"];
    assert_eq!(capability["node"]["node_slug"], "foreign");
    assert_eq!(capability["inference"]["mode"], "off");
    orchestrator.call(Step::Ack, 1);
    let url = capability["worker_api"]["base_url"].as_str().unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let api = Api::new(url).with_token(&orchestrator.worker_token());
    let result = api.post("/v1/worker/jobs:run", &Worker::job(&["sleep", "600"]));
    let result = result.json(200);
    assert_eq!(result["status"], "timeout");
    assert_eq!(result["effective"]["timeout_seconds"], 1);
    assert!(home.path().join("state/node/key").exists());
    assert_eq!(node.terminate(), 0);
}

#[test]
fn duplicate_names_of_setting_stop_start() {
    let home = tempfile::tempdir().unwrap();
    for (text, word) in [
        (
            "node: {slug: a, id: b}",
            "node.slug and node.id are two names",
        ),
        ("version: 2", "version 2 is not supported"),
        (
            "sandbox: {mode: disabled}",
            "sandbox.mode: disabled is not supported",
        ),
        (
            "sandbox: {timeouts: {default_seconds: 7200}}",
            "--default-timeout must be 1s to 1h",
        ),
    ] {
        let text = format!("orchestrator: {{url: 'http://127.0.0.1:1'}}\n{text}\n");
        let done = refused(home.path(), &text, &["--psk", "a key of sixteen bytes"]);
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains(word), "{word}: {done:?}");
    }
}

#[test]
fn example_file_is_valid() {
    let home = tempfile::tempdir().unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/node.yaml");
    let text = fs::read_to_string(example).unwrap();
    // All keys are there as comments, and are valid, too.
    let all: String = text
        .lines()
        .map(|line| {
            if line.starts_with("#  ") {
                &line[1..]
            } else {
                line
            }
        })
        .fold(String::new(), |all, line| all + line + "\n");
    for text in [text.as_str(), &all] {
        // The start fails at the pre-shared key, which is missing.
        let done = refused(home.path(), text, &[]);
        assert_eq!(done.code, 2, "{done:?}\n{text}");
        assert!(
            done.stderr.contains("orchestrator.psk_file"),
            "{done:?}\n{text}"
        );
    }
}
