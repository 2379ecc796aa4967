//! Lists of models over all nodes that can serve now. Those in Ollama's shape are put together from the answers of the
//! nodes, since reports do not hold all of it; a node that does not answer in time is left out.

use super::{
    queue::none_ready,
    registry::{Registry, ServingNode},
};
use crate::{
    api::{
        error::ApiError,
        nodes::ModelDetails,
        problem::{Problem, ProblemKind},
    },
    inference::Endpoint,
    orchestrator::{
        AppState,
        node_client::{ModelRequest, is_own_answer},
    },
};
use futures_util::{StreamExt as _, stream};
use http::HeaderMap;
use http_body_util::{BodyExt as _, Limited};
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Time for a node to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most nodes that are asked at a time.
const MAX_CALLS: usize = 16;
/// Longest answer of a node, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Most models of a node.
const MAX_MODELS: usize = 256;
/// Longest version of a model server, in characters.
const MAX_VERSION_CHARS: usize = 64;

/// Model in OpenAI's shape.
#[derive(Serialize)]
pub(in crate::orchestrator) struct Model {
    id: String,
    object: &'static str,
    /// Time at which the model was made, which nodes do not report.
    created: u64,
    /// Slugs of its nodes.
    owned_by: String,
}

/// List of models in OpenAI's shape.
#[derive(Serialize)]
pub(in crate::orchestrator) struct Models {
    object: &'static str,
    data: Vec<Model>,
}

/// Models of all nodes that can serve now.
pub(in crate::orchestrator) async fn models(state: &AppState) -> Result<Models, ApiError> {
    let registry = registry(state).await?;
    let models = registry.models().into_iter();
    let model = |(id, nodes): (&str, std::collections::BTreeSet<&str>)| Model {
        id: id.to_owned(),
        object: "model",
        created: 0,
        owned_by: nodes.into_iter().collect::<Vec<_>>().join(","),
    };
    Ok(Models {
        object: "list",
        data: models.map(model).collect(),
    })
}

/// Model with this name.
pub(in crate::orchestrator) async fn model(
    state: &AppState,
    name: &str,
) -> Result<Model, ApiError> {
    let models = models(state).await?.data.into_iter();
    let tagged = format!("{name}:latest");
    let mut found = models.filter(|model| model.id == name || model.id == tagged);
    found.next().ok_or_else(|| {
        let detail =
            "no node that can serve now has this model; GET /v1/models lists those there are";
        Problem::new(ProblemKind::ModelNotFound, detail)
            .about("model")
            .into()
    })
}

/// Models of all nodes, in Ollama's shape.
pub(in crate::orchestrator) async fn tags(state: &AppState) -> Result<Value, ApiError> {
    merged(state, Endpoint::Tags).await
}

/// Models that are loaded on any node, in Ollama's shape.
pub(in crate::orchestrator) async fn loaded_models(state: &AppState) -> Result<Value, ApiError> {
    merged(state, Endpoint::Ps).await
}

/// Version of a model server, in Ollama's shape.
pub(in crate::orchestrator) async fn version(state: &AppState) -> Result<Value, ApiError> {
    let registry = registry(state).await?;
    let nodes = registry.nodes().iter();
    let asked: Vec<_> = nodes
        .map(|serving| ask(state, serving, Endpoint::Version))
        .collect();
    let mut answers = stream::iter(asked).buffer_unordered(MAX_CALLS);
    while let Some(answer) = answers.next().await {
        let version = answer
            .as_ref()
            .and_then(|answer| answer["version"].as_str());
        if let Some(version) = version {
            let version: String = version.chars().take(MAX_VERSION_CHARS).collect();
            return Ok(json!({"version": version}));
        }
    }
    Err(none_ready(&registry).into())
}

async fn registry(state: &AppState) -> Result<Arc<Registry>, ApiError> {
    state.models.registry(state, Duration::ZERO).await
}

/// Models in the answers of all nodes, each once.
async fn merged(state: &AppState, endpoint: Endpoint) -> Result<Value, ApiError> {
    let registry = registry(state).await?;
    let nodes = registry.nodes().iter();
    let asked: Vec<_> = nodes.map(|serving| ask(state, serving, endpoint)).collect();
    let answers = stream::iter(asked).buffered(MAX_CALLS).collect::<Vec<_>>();
    let answers = answers.await;
    let mut models = BTreeMap::new();
    for mut answer in answers.into_iter().flatten() {
        let Value::Array(found) = answer["models"].take() else {
            continue;
        };
        for model in found.into_iter().take(MAX_MODELS) {
            let name = model["name"].as_str().or_else(|| model["model"].as_str());
            if let Some(name) = name.filter(|name| ModelDetails::is_valid_name(name)) {
                models.entry(name.to_owned()).or_insert(model);
            }
        }
    }
    let models: Vec<_> = models.into_values().collect();
    Ok(json!({"models": models}))
}

/// Answer of a node; `None` where it has none in time.
async fn ask(state: &AppState, serving: &ServingNode, endpoint: Endpoint) -> Option<Value> {
    let client = state.node_client(&serving.node)?;
    let headers = HeaderMap::new();
    let request = ModelRequest {
        endpoint,
        headers: &headers,
        length: None,
    };
    let answer = async {
        let answer = client.infer(&request, stream::empty).await.ok()?;
        if is_own_answer(&answer) || !answer.status().is_success() {
            return None;
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
        let body = body.collect().await.ok()?.to_bytes();
        serde_json::from_slice::<Value>(&body).ok()
    };
    let answer = timeout(ANSWER_TIMEOUT, answer).await.ok().flatten();
    if answer.is_none() {
        tracing::debug!(
            node = serving.node.slug,
            path = endpoint.path(),
            "model server gave no list"
        );
    }
    answer.filter(Value::is_object)
}
