//! A stand-in for an Ollama that runs on the machine already, and clusters that use it.

use super::{
    Answer, Call, Cluster, eventually,
    listener::{Calls, Listener},
};
use serde_json::json;

/// Media type of streamed answers.
pub(crate) const STREAM: &str = "text/event-stream";
/// Last event of a streamed answer.
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// Event with the next text of an answer.
pub(crate) fn delta(text: &str) -> String {
    let chunk = json!({"choices": [{"index": 0, "delta": {"content": text}}]});
    format!("data: {chunk}\n\n")
}

/// An Ollama on this machine with the models `a` and `loaded`, whose answers to prompts are a script.
pub(crate) fn model_server(
    script: impl Fn(&Call, Answer) + Send + Sync + 'static,
) -> (Listener, Calls) {
    let calls = Calls::default();
    let models = ["a", "loaded"];
    let named: Vec<_> = models
        .iter()
        .map(|name| json!({"name": name, "size": 1}))
        .collect();
    let listed: Vec<_> = models.iter().map(|name| json!({"id": name})).collect();
    let listener = Listener::open("127.0.0.1:0", &calls, move |call, answer| {
        match call.path.as_str() {
            "/api/version" => answer.status(200, &json!({"version": "0.0.0"})),
            "/api/tags" => answer.status(200, &json!({"models": named})),
            "/api/ps" => answer.status(200, &json!({"models": [{"name": "loaded"}]})),
            "/v1/models" => answer.status(200, &json!({"object": "list", "data": listed})),
            "/v1/chat/completions" => script(call, answer),
            _ => answer.refuse(404),
        }
    });
    (listener, calls)
}

/// A cluster whose node uses this model server.
pub(crate) fn cluster(server: &Listener) -> Cluster {
    let port = server.address.port().to_string();
    let inference = ["--inference", "on", "--inference-port", &port];
    // Nodes that stand in beside it speak plain HTTP.
    let cluster = Cluster::start_operated(&["--tls", "off"], &inference);
    eventually("the node serves models", || {
        let node = cluster.user.get("/v1/nodes").json(200);
        let inference = &node["nodes"][0]["inference"];
        (inference["models"] == json!(["a", "loaded"])).then_some(())
    });
    cluster
}
