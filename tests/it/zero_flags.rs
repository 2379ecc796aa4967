//! Inference without flags: facts in the report, servers that run already, nodes with GPUs, and nodes whose model server
//! can't be had.

use crate::support::{
    ModelPort, ModelServer, Node, Orchestrator, OrchestratorStandIn, StandIn, Step,
    cluster::{finish, wait_ready},
    eventually, eventually_eq,
    model_server::OLLAMA_IMAGE,
    process::with_tool,
    stand_in::capability,
};
use serde_json::{Value, json};

/// Reports that the stand-in has received; the registration counts as one.
fn reported(orchestrator: &OrchestratorStandIn) -> Vec<Value> {
    let calls = orchestrator.calls().into_iter();
    let inference = |call: crate::support::Call| match Step::of(&call) {
        Some(Step::Register) => Some(call.body["capability"]["inference"].clone()),
        Some(Step::Report) => Some(call.body["inference"].clone()),
        _ => None,
    };
    calls.filter_map(inference).collect()
}

#[test]
fn running_server_is_used_without_flags() {
    let home = tempfile::tempdir().unwrap();
    let theirs = ModelServer::start(OLLAMA_IMAGE, &["--env=STAND_IN_MODELS=given"]);
    let port = theirs.api.address().rsplit_once(':').unwrap().1.to_owned();
    let orchestrator = OrchestratorStandIn::start();
    let flags = ["--inference", "auto", "--inference-port", &port];
    let node = Node::start(home.path(), "box", &orchestrator.url, &flags);
    let first = reported(&orchestrator)[0].clone();
    assert_eq!(
        [
            &first["supported"],
            &first["running"],
            &first["existing_service"]
        ],
        [&json!(true); 3],
        "{first}"
    );
    assert_eq!(first["models"], json!(["given:latest"]));
    assert_eq!(first["model_details"][0]["loaded"], false, "{first}");
    let ack = orchestrator.call(Step::Ack, 1).body;
    assert_eq!(ack["status"], "applied");
    assert_eq!(theirs.stop(), 0);
    eventually_eq("the server is gone", json!([false, false]), || {
        let last = reported(&orchestrator).pop().unwrap();
        json!([last["supported"], last["running"]])
    });
    drop(node);
}

#[test]
fn gpu_node_gets_default_model_server() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--require-inference", "auto"]);
    let mut plain = StandIn::idle(&orchestrator, "plain");
    plain.join();
    assert_eq!(plain.config().get("inference_backend"), None);
    wait_ready(&orchestrator);

    let mut gpu = StandIn::idle(&orchestrator, "gpu");
    gpu.join();
    let mut report = capability("gpu", &gpu.url);
    report["gpu"] = json!({"present": true, "devices": [{"vendor": "nvidia", "vram_mb": 24_576}]});
    report["inference"] = json!({"supported": true, "mode": "auto", "running": false});
    gpu.report(&report).expect(204);
    assert_eq!(
        gpu.config()["inference_backend"],
        json!({"enabled": true, "image": "docker.io/ollama/ollama:latest"})
    );
    let problem = orchestrator
        .gateway
        .get("/readyz")
        .problem(503, "unavailable");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("node gpu: its model server"), "{problem}");
    report["inference"]["running"] = json!(true);
    gpu.report(&report).expect(204);
    orchestrator.gateway.get("/readyz").expect(200);
}

#[test]
fn models_are_wanted_by_node() {
    let home = tempfile::tempdir().unwrap();
    let flags = [
        "--inference-image",
        OLLAMA_IMAGE,
        "--inference-model",
        "all:1b,b=only-b,a=only-a:7b",
    ];
    let orchestrator = Orchestrator::start(home.path(), &flags);
    for (slug, models) in [
        ("a", json!(["all:1b", "only-a:7b"])),
        ("b", json!(["all:1b", "only-b"])),
        ("c", json!(["all:1b"])),
    ] {
        let mut node = StandIn::idle(&orchestrator, slug);
        node.join();
        assert_eq!(node.config()["inference_backend"]["models"], models);
    }
}

#[test]
fn node_without_model_server_takes_jobs() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let image = "localhost/nobody-has-it:latest";
    let orchestrator = Orchestrator::start(
        home.path(),
        &["--inference-image", image, "--require-inference", "auto"],
    );
    let port = at.port.to_string();
    let flags = ["--inference", "auto", "--inference-port", &port];
    let node = Node::start(home.path(), "box", &orchestrator.control_url, &flags);
    let admin = orchestrator.login();
    eventually_eq("the node is ready", json!("ready"), || {
        admin.get("/v1/nodes/box").json(200)["status"].clone()
    });
    let task = admin.post("/v1/tasks", &json!({"script": "echo works"}));
    let id = task.json(201)["id"].as_str().unwrap().to_owned();
    assert_eq!(finish(&admin, &id)["status"], "completed");

    let inference = admin.get("/v1/nodes/box").json(200)["inference"].clone();
    assert_eq!(inference["running"], false);
    let reason = inference["reason"].as_str().unwrap();
    assert!(
        reason.contains("image-unavailable") && reason.contains(image),
        "{reason}"
    );
    let user = orchestrator.add_user(&admin, "ann");
    let inference = user.get("/v1/nodes/box").json(200)["inference"].clone();
    let reason = inference["reason"].as_str().unwrap();
    assert!(
        reason.contains("image-unavailable") && !reason.contains(image),
        "{reason}"
    );

    let detail = eventually("the orchestrator is not ready", || {
        let reply = orchestrator.gateway.get("/readyz");
        (reply.status == 503).then(|| reply.text())
    });
    assert!(
        detail.contains("node box: its model server can't run: image-unavailable"),
        "{detail}"
    );
    let stderr = node.process.stderr();
    assert!(stderr.contains("the node runs sandboxes only"), "{stderr}");
}

#[test]
fn context_length_is_passed_to_server() {
    let home = tempfile::tempdir().unwrap();
    let at = ModelPort::new();
    let orchestrator = OrchestratorStandIn::start();
    orchestrator.change_config(|config| {
        config["inference_backend"] =
            json!({"enabled": true, "image": OLLAMA_IMAGE, "port": at.port});
    });
    let flags = ["--inference", "on", "--inference-context-length", "5000"];
    let _node = Node::start(home.path(), "box", &orchestrator.url, &flags);
    let container = eventually("the container is there", || at.inspect());
    let env = container["Config"]["Env"].to_string();
    assert!(env.contains("OLLAMA_CONTEXT_LENGTH=5000"), "{env}");
}

#[test]
fn gpu_is_reported_by_both_names() {
    let home = tempfile::tempdir().unwrap();
    let line = "GPU-1, 23028, 535.104.05, 00000000:00:1E.0, 8.6, NVIDIA A10G";
    let path = with_tool(home.path(), "nvidia-smi", &format!("echo '{line}'"));
    let orchestrator = OrchestratorStandIn::start();
    let at = ModelPort::new();
    let port = at.port.to_string();
    let _node = Node::launch_in(
        home.path(),
        "box",
        &orchestrator.url,
        &["--inference", "auto", "--inference-port", &port],
        &[("PATH", &path)],
    );
    let capability = orchestrator.call(Step::Register, 1).body["capability"].clone();
    let features = &capability["gpu"]["devices"][0]["features"];
    assert_eq!(features["compute_capability"], "8.6");
    assert_eq!(features["cuda_capability"], "8.6");
    assert_eq!(capability["inference"]["supported"], true, "{capability}");
}
