//! Lists of models over all nodes that can serve now. Those in Ollama's shape are put together from the answers of the
//! nodes, since reports do not hold all of it; a node that does not answer in time is left out. Callers share each list.

use super::{
    attempt::next_chunk,
    model_list::ModelList,
    queue::none_ready,
    registry::{Registry, ServingNode},
    shared_answer::SharedAnswer,
};
use crate::{
    api::{
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    http::response::{self, Reply},
    inference::Endpoint,
    orchestrator::{
        AppState,
        node_client::{ModelRequest, is_own_answer},
    },
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::HeaderMap;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, future::ready, pin::pin, sync::Arc, time::Duration};
use tokio::time::sleep;

/// Time for the answers of all nodes.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Most nodes that are asked at a time.
const MAX_CALLS: usize = 32;
/// Longest answer of a node, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Longest version of a model server, in characters.
const MAX_VERSION_CHARS: usize = 64;

/// Answers of nodes that callers share.
#[derive(Default)]
pub(in crate::orchestrator) struct ModelLists {
    tags: SharedAnswer<Bytes>,
    loaded: SharedAnswer<Bytes>,
    version: SharedAnswer<Version>,
}

/// Version of a model server, in Ollama's shape.
#[derive(Clone, Serialize, Deserialize)]
struct Version {
    version: String,
}

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

impl Model {
    fn new(id: &str, nodes: BTreeSet<&str>) -> Self {
        Self {
            id: id.to_owned(),
            object: "model",
            created: 0,
            owned_by: nodes.into_iter().collect::<Vec<_>>().join(","),
        }
    }
}

/// List of models in OpenAI's shape.
#[derive(Serialize)]
struct Models {
    object: &'static str,
    data: Vec<Model>,
}

/// Answer of a call that names no model: it is about all nodes that can serve now.
pub(in crate::orchestrator) async fn list(state: &Arc<AppState>, endpoint: Endpoint) -> Reply {
    let lists = &state.model_lists;
    let json = match endpoint {
        Endpoint::Version => return response::ok(&version(state).await?),
        Endpoint::Tags => merged(state, endpoint, &lists.tags).await?,
        Endpoint::Ps => merged(state, endpoint, &lists.loaded).await?,
        _ => models(state).await?,
    };
    Ok(response::raw_json(json))
}

/// Models of all nodes that can serve now, in OpenAI's shape, as JSON.
async fn models(state: &AppState) -> Result<Bytes, ApiError> {
    let registry = registry(state).await?;
    if let Some(list) = registry.list.get() {
        return Ok(list.clone());
    }
    let list = openai_list(&registry).map_err(ApiError::internal)?;
    Ok(registry.list.get_or_init(|| list).clone())
}

/// Models of a registry in OpenAI's shape.
fn openai_list(registry: &Registry) -> serde_json::Result<Bytes> {
    let models = registry.models().into_iter();
    let list = Models {
        object: "list",
        data: models.map(|(id, nodes)| Model::new(id, nodes)).collect(),
    };
    serde_json::to_vec(&list).map(Bytes::from)
}

/// Model with this name.
pub(in crate::orchestrator) async fn model(
    state: &AppState,
    name: &str,
) -> Result<Model, ApiError> {
    let registry = registry(state).await?;
    let tagged = format!("{name}:latest");
    let mut found = registry.models().into_iter();
    let found = found.find(|(id, _)| *id == name || *id == tagged);
    let found = found.map(|(id, nodes)| Model::new(id, nodes));
    found.ok_or_else(|| {
        let detail =
            "no node that can serve now has this model; GET /v1/models lists those there are";
        Problem::new(ProblemKind::ModelNotFound, detail)
            .about("model")
            .into()
    })
}

/// Version of the model server that answers first.
async fn version(state: &Arc<AppState>) -> Result<Version, ApiError> {
    let registry = registry(state).await?;
    let make = || {
        let answers = answers(state, &registry, Endpoint::Version);
        async move {
            let mut answers = pin!(answers);
            while let Some((_, answer)) = answers.next().await {
                if let Ok(Version { version }) = serde_json::from_slice(&answer) {
                    let version = version.chars().take(MAX_VERSION_CHARS).collect();
                    return Some(Version { version });
                }
            }
            None
        }
    };
    let version = state.model_lists.version.get(make).await;
    version.ok_or_else(|| none_ready(&registry).into())
}

async fn registry(state: &AppState) -> Result<Arc<Registry>, ApiError> {
    state.models.registry(state, Duration::ZERO).await
}

/// Models in the answers of all nodes, each once.
async fn merged(
    state: &Arc<AppState>,
    endpoint: Endpoint,
    shared: &SharedAnswer<Bytes>,
) -> Result<Bytes, ApiError> {
    let registry = registry(state).await?;
    let make = || {
        let answers = answers(state, &registry, endpoint);
        async move {
            let mut answers = pin!(answers);
            let mut list = ModelList::default();
            while let Some((node, answer)) = answers.next().await {
                if !list.add(node, &answer) {
                    tracing::debug!(path = endpoint.path(), "answer of a node is not a list");
                }
            }
            Some(Bytes::from(list.to_json()))
        }
    };
    let list = shared.get(make).await;
    list.ok_or_else(|| none_ready(&registry).into())
}

/// Answers of the nodes as they arrive, each with the number of its node, until time is up.
fn answers(
    state: &Arc<AppState>,
    registry: &Arc<Registry>,
    endpoint: Endpoint,
) -> impl Stream<Item = (usize, Vec<u8>)> + Send + use<> {
    let ask = {
        let (state, registry) = (Arc::clone(state), Arc::clone(registry));
        move |number: usize| {
            let (state, registry) = (Arc::clone(&state), Arc::clone(&registry));
            async move {
                let serving = registry.nodes().get(number)?;
                let answer = ask(&state, serving, endpoint).await;
                if answer.is_none() {
                    tracing::debug!(
                        node = serving.node.slug,
                        path = endpoint.path(),
                        "model server gave no list"
                    );
                }
                Some((number, answer?))
            }
        }
    };
    let asked = stream::iter(0..registry.nodes().len()).map(ask);
    within(LIST_TIMEOUT, asked.buffer_unordered(MAX_CALLS)).filter_map(ready)
}

/// Items of a stream as far as they arrive within this time.
fn within<S: Stream>(limit: Duration, items: S) -> impl Stream<Item = S::Item> {
    items.take_until(sleep(limit))
}

/// Answer of a node; `None` where it has none.
async fn ask(state: &AppState, serving: &ServingNode, endpoint: Endpoint) -> Option<Vec<u8>> {
    let client = state.node_client(&serving.node)?;
    let headers = HeaderMap::new();
    let request = ModelRequest {
        endpoint,
        headers: &headers,
        length: None,
    };
    let answer = client.infer(&request, stream::empty).await.ok()?;
    if is_own_answer(&answer) || !answer.status().is_success() {
        return None;
    }
    read(answer.into_body()).await
}

/// The whole of a body, copied out of the larger buffers in which it arrives; `None` where it is too long or breaks off.
async fn read(mut body: Incoming) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(&mut body).await.ok()? {
        if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
            return None;
        }
        bytes.extend_from_slice(&chunk);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn hung_nodes_cost_one_time_limit() {
        let answer = |number: usize| async move {
            if number % 2 == 1 {
                pending::<()>().await;
            }
            number
        };
        let began_at = tokio::time::Instant::now();
        let asked = stream::iter(0..2 * MAX_CALLS).map(answer);
        let found = within(LIST_TIMEOUT, asked.buffer_unordered(MAX_CALLS));
        let found: Vec<_> = found.collect().await;
        assert_eq!(began_at.elapsed(), LIST_TIMEOUT);
        assert!(found.len() > MAX_CALLS / 2, "what has arrived is kept");
    }
}
