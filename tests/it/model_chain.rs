//! A call of a model through a real node to its model server, which runs in a container.

use crate::support::{
    ModelServer, Node, Orchestrator, Worker, eventually,
    model_node::chat,
    model_server::{OLLAMA_IMAGE, VERSION},
};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn object(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[test]
fn call_reaches_model_server_of_node() {
    let server = ModelServer::start(OLLAMA_IMAGE, &["--env=STAND_IN_MODELS=tiny"]);
    let (_, port) = server.api.address().rsplit_once(':').unwrap();
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let inference = ["--inference", "on", "--inference-port", port];
    let _node = Node::start(home.path(), "box", &orchestrator.control_url, &inference);
    let user = orchestrator.login();
    eventually("the model is listed", || {
        let list = user.get("/v1/models").json(200);
        (list["data"][0]["id"] == "tiny:latest").then_some(())
    });
    assert_eq!(user.get("/api/version").json(200)["version"], VERSION);
    let tags = user.get("/api/tags").json(200);
    assert_eq!(tags["models"][0]["details"]["family"], "echo", "{tags}");

    let reply = user.post(CHAT, &chat("tiny"));
    assert_eq!(reply.expect(200).header("cynode-node"), Some("box"));
    let message = &object(&reply.body)["choices"][0]["message"];
    assert_eq!(message["content"], "echo: a secret question");
    let mut request = chat("tiny");
    request["stream"] = true.into();
    let lines = user.lines("POST", CHAT, &[], request.to_string().as_bytes());
    let data: Vec<_> = lines
        .filter_map(|line| Some(line.strip_prefix("data: ")?.to_owned()))
        .collect();
    assert_eq!(data.last().unwrap(), "[DONE]");
    assert_eq!(data.len(), 6, "four words, the end, and [DONE]: {data:?}");
    let lines = user.lines("POST", "/api/chat", &[], request.to_string().as_bytes());
    let last = lines.last().unwrap();
    assert_eq!(object(last.as_bytes())["done"], true, "{last}");
    let unknown = user.post("/api/chat", &chat("other")).json(404);
    assert!(
        unknown["error"].as_str().unwrap().contains("tiny:latest"),
        "{unknown}"
    );

    drop(server);
    let refused = user.post(CHAT, &chat("tiny"));
    assert!([502, 503].contains(&refused.status), "{}", refused.text());
    assert_eq!(object(&refused.body)["error"]["type"], "server_error");
}

#[test]
fn worker_passes_only_calls_of_models() {
    let worker = Worker::start(&[]);
    let path = |rest: &str| format!("/v1/worker/inference{rest}");
    let reply = worker.api.post(&path(CHAT), &chat("tiny"));
    reply.problem(502, "model-server-failed");
    assert_eq!(reply.header("cynode-fault"), Some("upstream-unreachable"));
    let stranger = worker.api.with_token("wrong");
    stranger
        .post(&path(CHAT), &chat("tiny"))
        .problem(401, "unauthorized");
    for refused in ["/api/pull", "/api/../api/pull", "/v1/unknown", "/metrics"] {
        let reply = worker.api.post(&path(refused), &json!({"model": "tiny"}));
        reply.problem(403, "forbidden");
    }
    worker
        .api
        .get(&path(CHAT))
        .problem(405, "method-not-allowed");
}
