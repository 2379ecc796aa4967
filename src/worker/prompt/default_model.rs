//! Choice of a model for a prompt that names none.

use super::{ModelServer, Refusal, call_failed};
use crate::api::{jobs::JobErrorKind, nodes::check_model};
use http::Method;
use serde::Deserialize;
use serde_json::json;

/// Capability of a model that answers prompts, as Ollama names it.
const COMPLETION: &str = "completion";
/// Most models that are asked for what they can do.
const MAX_ASKED: usize = 16;

#[derive(Deserialize)]
struct List {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
}

#[derive(Deserialize)]
struct LoadedList {
    models: Vec<Loaded>,
}

#[derive(Deserialize)]
struct Loaded {
    name: String,
}

#[derive(Deserialize)]
struct Shown {
    capabilities: Vec<String>,
}

/// Model that answers soonest: one that is loaded, else the first by name. One that answers no prompts, such as one that
/// only makes vectors, is taken only where there is no other.
pub(super) async fn default_model(server: &ModelServer, base: &str) -> Result<String, Refusal> {
    let call = |path: &str| server.client.call(Method::GET, format!("{base}{path}"));
    // A server of another kind can't tell; any model will do then.
    let loaded: Result<LoadedList, _> = call("/api/ps").receive().await;
    let loaded = loaded.map_or_else(|_| Vec::new(), |list| list.models);
    let loaded = named(loaded.into_iter().map(|model| model.name));
    if let Some(model) = first_that_answers(server, base, &loaded).await {
        return Ok(model);
    }
    let list: List = call("/v1/models")
        .receive()
        .await
        .map_err(|error| call_failed(&error))?;
    let mut all = named(list.data.into_iter().map(|model| model.id));
    all.sort();
    if let Some(model) = first_that_answers(server, base, &all).await {
        return Ok(model);
    }
    loaded.into_iter().chain(all).next().ok_or_else(|| {
        let text = "this node has no model; an admin adds one with: cynode models pull MODEL";
        Refusal::Failed(JobErrorKind::ModelNotFound, text.to_owned())
    })
}

/// Models whose names a result may hold.
fn named(models: impl Iterator<Item = String>) -> Vec<String> {
    models
        .filter(|model| check_model("", model).is_ok())
        .collect()
}

async fn first_that_answers(server: &ModelServer, base: &str, models: &[String]) -> Option<String> {
    for model in models.iter().take(MAX_ASKED) {
        let call = server.client.call(Method::POST, format!("{base}/api/show"));
        // A server that can't tell is asked itself, with the prompt.
        let shown: Result<Shown, _> = call.json(&json!({ "model": model })).receive().await;
        if shown.map_or(true, |shown| {
            shown.capabilities.iter().any(|known| known == COMPLETION)
        }) {
            return Some(model.clone());
        }
    }
    None
}
