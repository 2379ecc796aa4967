//! A stand-in node with models: it takes the calls of the gateway's model API at the Worker API.

use super::{Answer, Call, Orchestrator, StandIn, stand_in::capability};
use serde_json::{Value, json};

/// Path of calls of models at the Worker API.
pub(crate) const PROXY: &str = "/v1/worker/inference";

impl Call {
    /// Whether it is a call of a model server at this path.
    pub(crate) fn is_model_call(&self, path: &str) -> bool {
        self.path.strip_prefix(PROXY) == Some(path)
    }
}

/// Starts a node with these models, none of which is loaded. It answers calls as the script does, and probes, which come
/// when a test takes long, by itself.
pub(crate) fn model_node(
    orchestrator: &Orchestrator,
    slug: &str,
    models: &[&str],
    script: impl Fn(&Call, Answer) + Send + Sync + 'static,
) -> StandIn {
    let script = move |call: &Call, answer: Answer| match call.path.as_str() {
        "/readyz" | "/healthz" => answer.status(200, &json!({"status": "ok"})),
        _ => script(call, answer),
    };
    let mut node = StandIn::start(orchestrator, slug, script);
    node.join();
    let models: Vec<_> = models
        .iter()
        .map(|name| json!({"name": name, "loaded": false}))
        .collect();
    report_models(&node, &json!(models));
    node
}

/// Has a node report these models, with details.
pub(crate) fn report_models(node: &StandIn, details: &Value) {
    let mut report = capability(&node.slug, &node.url);
    let details_list = details.as_array().unwrap().iter();
    let names: Vec<_> = details_list.map(|model| model["name"].clone()).collect();
    report["inference"] = json!({
        "supported": true, "running": true, "models": names, "model_details": details,
        "features": ["proxy"],
    });
    node.report(&report).expect(204);
}

/// Answer of a chat in OpenAI's API that says this.
pub(crate) fn completion(text: &str) -> Value {
    json!({
        "id": "c1", "object": "chat.completion", "created": 1, "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    })
}

/// Request of a chat with this model.
pub(crate) fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "a secret question"}]})
}
