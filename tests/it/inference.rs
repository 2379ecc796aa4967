//! The model server of a node: started, adopted, restarted, replaced and removed, in real containers.

use crate::support::{
    ModelPort, ModelServer, Node, Orchestrator, OrchestratorStandIn, Step,
    cluster::wait_ready,
    eventually, eventually_eq,
    image::{built, podman},
    model_server::{NEXT_OLLAMA_IMAGE, NEXT_VERSION, OLLAMA_IMAGE, VERSION},
};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// An orchestrator with this model server image, which is ready only if a node runs it.
fn orchestrator(home: &Path, image: &str, more: &[&str]) -> Orchestrator {
    let inference = ["--inference-image", image, "--require-inference", "true"];
    Orchestrator::start(home, &[&inference, more].concat())
}

/// A node that follows its orchestrator, with its model server at this port.
fn launch(home: &Path, control_url: &str, at: &ModelPort, more: &[&str]) -> Node {
    let port = at.port.to_string();
    let inference = ["--inference", "auto", "--inference-port", &port];
    Node::launch(home, "box", control_url, &[&inference, more].concat())
}

/// Waits for the end of the node's start.
fn started(node: &mut Node) {
    eventually("the node takes jobs", || {
        node.process.assert_runs();
        let stderr = node.process.stderr();
        stderr.contains("the node takes jobs").then_some(())
    });
}

/// State of the node's model server at the orchestrator, without the details of models.
fn known(orchestrator: &Orchestrator) -> Value {
    let mut node = orchestrator.login().get("/v1/nodes/box").json(200);
    let inference = node["inference"].as_object_mut().unwrap();
    assert_eq!(inference.remove("features"), Some(json!(["proxy"])));
    inference.remove("model_details");
    node["inference"].take()
}

/// Waits until the orchestrator is not ready, for this reason.
fn wait_not_ready(orchestrator: &Orchestrator, reason: &str) {
    eventually(&format!("/readyz is 503 with {reason:?}"), || {
        let reply = orchestrator.gateway.get("/readyz");
        (reply.status == 503 && reply.text().contains(reason)).then_some(())
    });
}

#[test]
fn readiness_follows_model_server() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let orchestrator = orchestrator(home.path(), OLLAMA_IMAGE, &[]);
    wait_not_ready(&orchestrator, "no node is registered");
    let _node = launch(home.path(), &orchestrator.control_url, &at, &[]);
    wait_ready(&orchestrator);
    let first = at.id();
    assert_eq!(at.version(), VERSION);
    assert_eq!(
        known(&orchestrator),
        json!({"supported": true, "mode": "auto", "running": true, "existing_service": false, "models": []})
    );

    podman(&["kill", &at.name]).unwrap();
    wait_not_ready(&orchestrator, "node box: its model server does not answer");
    assert_eq!(known(&orchestrator)["running"], false);
    wait_ready(&orchestrator);
    assert_eq!(at.version(), VERSION);
    assert_eq!(at.id(), first, "the same container was started again");

    podman(&["rm", "--force", "--time=0", &at.name]).unwrap();
    wait_not_ready(&orchestrator, "node box: its model server does not answer");
    wait_ready(&orchestrator);
    assert_ne!(at.id(), first, "a new container was created");
}

#[test]
fn hanging_model_server_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let orchestrator = orchestrator(home.path(), OLLAMA_IMAGE, &[]);
    let _node = launch(home.path(), &orchestrator.control_url, &at, &[]);
    wait_ready(&orchestrator);
    let first = at.id();
    podman(&["pause", &at.name]).unwrap();
    wait_not_ready(&orchestrator, "its model server does not answer");
    wait_ready(&orchestrator);
    assert_ne!(at.id(), first);
    assert_eq!(at.version(), VERSION);
}

#[test]
fn model_server_outlives_node_and_is_reused() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let orchestrator = orchestrator(home.path(), OLLAMA_IMAGE, &[]);
    let mut node = launch(home.path(), &orchestrator.control_url, &at, &[]);
    started(&mut node);
    let first = at.id();
    node.process.kill();
    let mut node = launch(home.path(), &orchestrator.control_url, &at, &[]);
    started(&mut node);
    assert_eq!(at.id(), first, "after a power cut of the node");
    assert_eq!(node.process.terminate(), 0);
    assert_eq!(at.version(), VERSION, "the server runs without the node");
    let mut node = launch(home.path(), &orchestrator.control_url, &at, &[]);
    started(&mut node);
    assert_eq!(at.id(), first, "after a shutdown of the node");
    node.process.kill();
    podman(&["stop", "--time=1", &at.name]).unwrap();
    let mut node = launch(home.path(), &orchestrator.control_url, &at, &[]);
    started(&mut node);
    assert_eq!(at.id(), first, "a stopped server is started");
    wait_ready(&orchestrator);
}

#[test]
fn model_server_is_local_and_unprivileged() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.change_config(|config| {
        config["inference_backend"] =
            json!({"enabled": true, "image": OLLAMA_IMAGE, "port": at.port, "variant": "cpu"});
    });
    // An operator's podman may give every container the host's network.
    let conf = home.path().join("containers.conf");
    fs::write(&conf, "[containers]\nnetns=\"host\"\n").unwrap();
    let mut node = Node::launch_in(
        home.path(),
        "box",
        &orchestrator.url,
        &["--inference", "auto"],
        &[("CONTAINERS_CONF", conf.to_str().unwrap())],
    );
    started(&mut node);
    let container = at.inspect().unwrap();
    let host = &container["HostConfig"];
    assert_eq!(
        host["PortBindings"],
        json!({"11434/tcp": [{"HostIp": "127.0.0.1", "HostPort": at.port.to_string()}]})
    );
    assert_eq!(container["EffectiveCaps"], Value::Null, "no capability");
    assert_eq!(host["Privileged"], false);
    assert!(
        host["SecurityOpt"]
            .to_string()
            .contains("no-new-privileges")
    );
    let labels = &container["Config"]["Labels"];
    assert_eq!(labels["io.cynode.node"], node.node_uuid());
    assert_eq!(labels["io.cynode.slug"], "box");
    let env = container["Config"]["Env"].to_string();
    for secret in ["CYNODE_", "psk", "pre-shared", "NOTIFY_SOCKET"] {
        assert!(!env.contains(secret), "{env}");
    }
}

#[test]
fn new_image_replaces_server_and_keeps_models() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let url = OrchestratorStandIn::start();
    let ask = |image: &str, models: Value| {
        url.change_config(|config| {
            config["inference_backend"] =
                json!({"enabled": true, "image": image, "models": models});
        });
    };
    ask(OLLAMA_IMAGE, json!(["example/tiny:1b", "other"]));
    let mut node = launch(home.path(), &url.url, &at, &[]);
    started(&mut node);
    let first = at.id();
    let models = json!(["example/tiny:1b", "other:latest"]);
    eventually_eq(
        "both models are fetched and reported",
        models.clone(),
        || {
            let last = url
                .calls()
                .into_iter()
                .rfind(|call| Step::of(call) == Some(Step::Report));
            last.map_or(Value::Null, |report| {
                report.body["inference"]["models"].clone()
            })
        },
    );
    assert_eq!(node.process.terminate(), 0);

    ask(NEXT_OLLAMA_IMAGE, json!([]));
    let mut node = launch(home.path(), &url.url, &at, &[]);
    started(&mut node);
    assert_ne!(at.id(), first);
    assert_eq!(at.version(), NEXT_VERSION);
    let tags: Value = serde_json::from_str(&at.api().get("/api/tags").text()).unwrap();
    let names: Vec<&Value> = tags["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["name"])
        .collect();
    assert_eq!(json!(names), models);
    assert_eq!(node.process.terminate(), 0);

    let off = ["--inference", "off"];
    let mut node = Node::launch(home.path(), "box", &url.url, &off);
    started(&mut node);
    assert_eq!(
        at.inspect(),
        None,
        "a node without inference leaves no server"
    );
    podman(&["volume", "exists", &at.name]).unwrap();
}

#[test]
fn new_port_moves_model_server() {
    let home = tempfile::tempdir().unwrap();
    let (old, new) = (ModelPort::new(), ModelPort::new());
    let orchestrator = orchestrator(home.path(), OLLAMA_IMAGE, &[]);
    let mut node = launch(home.path(), &orchestrator.control_url, &old, &[]);
    started(&mut node);
    assert_eq!(node.process.terminate(), 0);
    let mut node = launch(home.path(), &orchestrator.control_url, &new, &[]);
    started(&mut node);
    assert_eq!(old.inspect(), None, "never two servers");
    assert_eq!(new.version(), VERSION);
}

#[test]
fn existing_model_server_is_used_and_kept() {
    let home = tempfile::tempdir().unwrap();
    let theirs = ModelServer::start(OLLAMA_IMAGE, &["--env=STAND_IN_MODELS=given"]);
    let port = theirs.api.address().rsplit_once(':').unwrap().1.to_owned();
    let orchestrator = orchestrator(home.path(), OLLAMA_IMAGE, &[]);
    let flags = ["--inference", "auto", "--inference-port", &port];
    let mut node = Node::launch(home.path(), "box", &orchestrator.control_url, &flags);
    wait_ready(&orchestrator);
    let ours = format!("cynode-ollama-{port}");
    assert!(podman(&["container", "exists", &ours]).is_err());
    eventually_eq(
        "the server is reported as external",
        json!({"supported": true, "mode": "auto", "running": true, "existing_service": true, "models": ["given:latest"]}),
        || known(&orchestrator),
    );
    assert_eq!(node.process.terminate(), 0);
    assert_eq!(theirs.api.get("/api/version").status, 200);
}

#[test]
fn orchestrator_decides_which_models_are_fetched() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let models = [
        "--inference-model",
        "tiny",
        "--inference-model",
        "example/b:7b",
    ];
    let orchestrator = orchestrator(home.path(), OLLAMA_IMAGE, &models);
    let mut node = launch(home.path(), &orchestrator.control_url, &at, &[]);
    started(&mut node);
    eventually_eq(
        "both models are there",
        json!(["example/b:7b", "tiny:latest"]),
        || {
            let mut models = known(&orchestrator)["models"].clone();
            if let Some(models) = models.as_array_mut() {
                models.sort_by_key(Value::to_string);
            }
            models
        },
    );
}

#[test]
fn model_server_has_only_its_own_volume() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let image = built(
        &format!("FROM {OLLAMA_IMAGE}\nVOLUME /data\nVOLUME /dev"),
        &[],
    );
    let orchestrator = orchestrator(home.path(), &image.0, &[]);
    let mut node = launch(home.path(), &orchestrator.control_url, &at, &[]);
    wait_ready(&orchestrator);
    started(&mut node);
    let found = at.inspect().unwrap();
    let mounts = found["Mounts"].as_array().unwrap();
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    assert_eq!(mounts[0]["Name"], at.name, "{mounts:?}");
    let pid = &found["State"]["Pid"];
    let score = |pid: &dyn std::fmt::Display| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse::<i32>().unwrap()
    };
    assert_eq!(score(pid), score(&"self").max(0));
}
