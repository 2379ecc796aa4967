//! Official Python clients at a running system, with a model server that says everything back, and with a real one.
//! The clients' own checks are in `tests/clients/`; they come from PyPI, so that only `make test-inference-clients` and
//! `make test-inference-real` run these tests.

use crate::support::{
    Cluster, IMAGE, Node, Orchestrator, Process, eventually, exposition::Exposition,
    model_server::binary,
};
use serde_json::json;
use std::{
    env,
    path::Path,
    process::{Child, Command, Stdio},
};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// Python with the packages.
fn python() -> Command {
    let python = env::var_os("CLIENTS_PYTHON").expect("make test-inference-clients sets it");
    let mut command = Command::new(python);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(CLIENTS);
    command
}

/// A model server on this machine; its port.
fn model_server(home: &Path, upstream: Option<&str>) -> (Process, String) {
    let mut command = Command::new(binary());
    command
        .env_clear()
        .env("OLLAMA_HOST", "127.0.0.1:0")
        .env("OLLAMA_MODELS", home.join("models"))
        .env("STAND_IN_MODELS", "tiny")
        .envs(upstream.map(|address| ("STAND_IN_UPSTREAM", address)));
    let mut server = Process::start("model server", home, &mut command);
    let port = eventually("the model server listens", || {
        server.assert_runs();
        let text = server.stdout();
        let (_, port) = text.strip_suffix('\n')?.rsplit_once(':')?;
        Some(port.to_owned())
    });
    (server, port)
}

/// Runs the clients at a system whose node uses the model server of this port.
fn run_clients(home: &Path, port: &str, model: &str) {
    let orchestrator = Orchestrator::start(home, &[]);
    let inference = ["--inference", "on", "--inference-port", port];
    let _node = Node::start(home, "box", &orchestrator.control_url, &inference);
    let user = orchestrator.login();
    eventually("the model is listed", || {
        let list = user.get("/v1/models").json(200);
        (list["data"][0]["id"] == "tiny:latest").then_some(())
    });
    let key = user.post("/v1/keys", &json!({"name": "clients"})).json(201);
    let mut clients = python();
    clients
        .args(["-m", "unittest", "--verbose", "test_clients", "test_docs"])
        .env("CYNODE_URL", &orchestrator.gateway_url)
        .env("CYNODE_KEY", key["key"].as_str().unwrap())
        .env("CYNODE_MODEL", model);
    let output = clients.output().unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");

    let metrics = Exposition::of(&orchestrator.gateway);
    for api in ["openai", "anthropic", "ollama"] {
        let completed =
            format!("cynode_inference_requests_total{{api=\"{api}\",status=\"completed\"}}");
        assert!(metrics.value(&completed) > 0.0, "{completed}");
        let failed = format!("cynode_inference_requests_total{{api=\"{api}\",status=\"failed\"}}");
        assert_eq!(metrics.value(&failed), 0.0, "{failed}");
    }
    for kind in ["prompt", "completion"] {
        let tokens = format!("cynode_inference_tokens_total{{kind=\"{kind}\",node=\"box\"}}");
        assert!(metrics.value(&tokens) > 0.0, "{tokens}");
    }
    eventually("no call is left at the node", || {
        let running = "cynode_inference_running{node=\"box\"}";
        (Exposition::of(&orchestrator.gateway).value(running) == 0.0).then_some(())
    });
}

#[test]
#[ignore = "needs clients from PyPI: make test-inference-clients"]
fn clients_work_with_echo() {
    let home = tempfile::tempdir().unwrap();
    let (_server, port) = model_server(home.path(), None);
    run_clients(home.path(), &port, "echo");
}

#[test]
#[ignore = "needs clients from PyPI: make test-inference-clients"]
fn agents_hold_conversations_with_sandboxes() {
    let cluster = Cluster::start();
    let key = json!({"name": "agent", "scopes": ["sandboxes"]});
    let key = cluster.user.post("/v1/keys", &key).json(201);
    let mut clients = python();
    clients
        .args(["-m", "unittest", "--verbose", "test_agents"])
        .env("CYNODE_URL", &cluster.orchestrator.gateway_url)
        .env("CYNODE_TOKEN", key["key"].as_str().unwrap())
        .env("CYNODE_IMAGE", IMAGE);
    let output = clients.output().unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
}

/// A process that ends with its stdin.
struct RealServer(Child);

impl Drop for RealServer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs a model server from PyPI: make test-inference-real"]
fn clients_work_with_real_model() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("tiny.gguf");
    let made = python().arg("tiny_model.py").arg(&model).status().unwrap();
    assert!(made.success(), "{made}");
    let address = home.path().join("address");
    let server = python()
        .arg("llama_server.py")
        .arg(&model)
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(&address).unwrap())
        .stderr(std::fs::File::create(home.path().join("llama.log")).unwrap())
        .spawn();
    let mut server = RealServer(server.unwrap());
    let upstream = eventually("llama.cpp listens", || {
        let ended = server.0.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "{}",
            crate::support::read(home.path().join("llama.log"))
        );
        let text = std::fs::read_to_string(&address).unwrap();
        Some(text.strip_suffix('\n')?.strip_prefix("http://")?.to_owned())
    });
    let (_server, port) = model_server(home.path(), Some(&upstream));
    run_clients(home.path(), &port, "random");
}
