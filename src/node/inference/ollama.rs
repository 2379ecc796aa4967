//! Client of Ollama's API: version, models, and pulling a model. Its answers are untrusted: a model server can be
//! any program.

use crate::{
    api::nodes::{MAX_MODELS, ModelDetails},
    http::client::{CallError, Client},
};
use http::Method;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// Time limit for an answer, except of a pull.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without progress after which a pull has failed.
const PULL_STALL_TIMEOUT: Duration = Duration::from_mins(5);
/// Interval between log lines of a pull.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Client of a model server on loopback.
#[derive(Clone)]
pub(super) struct OllamaClient {
    client: Client,
    address: SocketAddr,
}

/// Models of `/api/tags` and of `/api/ps`.
#[derive(Deserialize)]
struct ModelList<T> {
    models: Option<Vec<T>>,
}

impl<T> Default for ModelList<T> {
    fn default() -> Self {
        Self { models: None }
    }
}

/// A model of `/api/tags`.
#[derive(Deserialize)]
struct Stored {
    name: String,
    size: Option<u64>,
    digest: Option<String>,
}

/// A model of `/api/ps`.
#[derive(Deserialize)]
struct Loaded {
    name: String,
    size_vram: Option<u64>,
    context_length: Option<u64>,
}

/// Models with their states, within the limits of a report: a model that it can't name is left out.
fn details(stored: ModelList<Stored>, loaded: ModelList<Loaded>) -> Vec<ModelDetails> {
    let loaded = loaded.models.unwrap_or_default();
    let known = stored.models.unwrap_or_default().into_iter();
    known
        .filter(|model| ModelDetails::is_valid_name(&model.name))
        .take(MAX_MODELS)
        .map(|model| {
            let loaded = loaded.iter().find(|loaded| loaded.name == model.name);
            ModelDetails {
                size_bytes: model.size,
                digest: model
                    .digest
                    .filter(|digest| ModelDetails::is_valid_digest(digest)),
                loaded: loaded.is_some(),
                vram_bytes: loaded.and_then(|loaded| loaded.size_vram),
                context_length: loaded.and_then(|loaded| loaded.context_length),
                name: model.name,
            }
        })
        .collect()
}

/// Reason for which a model could not be pulled.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Refused(String),
    #[error("no progress for {} s", PULL_STALL_TIMEOUT.as_secs())]
    Stalled,
    #[error("the pull ended without success")]
    Unfinished,
}

impl OllamaClient {
    pub(super) fn new(port: u16) -> Self {
        Self {
            client: Client::default(),
            address: (Ipv4Addr::LOCALHOST, port).into(),
        }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Version of the server. `None`: nothing answers as a model server does.
    pub(super) async fn version(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        let answer = self.get::<Version>("/api/version").await.ok()?;
        Some(answer.version.chars().take(64).collect())
    }

    /// Models of the server, within the limits of a report. `None`: it does not list them now.
    pub(super) async fn models(&self) -> Option<Vec<ModelDetails>> {
        let (stored, loaded) = tokio::join!(
            self.get::<ModelList<Stored>>("/api/tags"),
            self.get::<ModelList<Loaded>>("/api/ps"),
        );
        let loaded = match loaded {
            // Old releases and other servers do not say what is loaded.
            Err(Some(error)) if error.status().is_some() => ModelList::default(),
            loaded => loaded.ok()?,
        };
        Some(details(stored.ok()?, loaded))
    }

    /// An answer of the server. `Err(None)`: no answer in time.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Option<CallError>> {
        let call = self.client.call(Method::GET, self.url(path)).receive();
        let answer = timeout(ANSWER_TIMEOUT, call).await;
        answer.map_err(|_| None)?.map_err(Some)
    }

    /// Pulls a model, and logs the progress.
    pub(super) async fn pull(&self, model: &str) -> Result<(), PullError> {
        #[derive(Deserialize)]
        struct Progress {
            #[serde(default)]
            status: String,
            error: Option<String>,
            total: Option<u64>,
            completed: Option<u64>,
        }
        let body = serde_json::json!({"model": model, "stream": true});
        let call = self.client.call(Method::POST, self.url("/api/pull"));
        let answer = timeout(PULL_STALL_TIMEOUT, call.json(&body).lines());
        let mut lines = answer.await.map_err(|_| PullError::Stalled)??;
        let (mut last_logged, mut done) = (Instant::now(), false);
        loop {
            let next = timeout(PULL_STALL_TIMEOUT, lines.next::<Progress>()).await;
            let Some(progress) = next.map_err(|_| PullError::Stalled)?? else {
                return if done {
                    Ok(())
                } else {
                    Err(PullError::Unfinished)
                };
            };
            if let Some(error) = progress.error {
                return Err(PullError::Refused(error.chars().take(500).collect()));
            }
            done = progress.status == "success";
            if last_logged.elapsed() >= PROGRESS_LOG_INTERVAL {
                last_logged = Instant::now();
                let (mib, of) = (
                    progress.completed.unwrap_or(0) >> 20,
                    progress.total.unwrap_or(0) >> 20,
                );
                let status: String = progress.status.chars().take(100).collect();
                tracing::info!(model, status, mib, of, "pulling a model");
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn loaded_models_are_marked() {
        let stored = json!({"models": [
            {"name": "a:latest", "model": "a:latest", "size": 7, "digest": "d1", "details": {"family": "x"}},
            {"name": "b:1b", "size": 9, "digest": "no\nline"},
            {"name": "bad\u{1b}"},
        ]});
        let loaded = json!({"models": [
            {"name": "b:1b", "size": 9, "size_vram": 5, "context_length": 4096},
            {"name": "gone:1b", "size_vram": 1},
        ]});
        let found = details(
            serde_json::from_value(stored).unwrap(),
            serde_json::from_value(loaded).unwrap(),
        );
        assert_eq!(
            serde_json::to_value(found).unwrap(),
            json!([
                {"name": "a:latest", "size_bytes": 7, "digest": "d1", "loaded": false},
                {"name": "b:1b", "size_bytes": 9, "loaded": true, "vram_bytes": 5, "context_length": 4096},
            ])
        );
    }

    #[test]
    fn list_of_models_is_bounded() {
        let models: Vec<_> = (0..300).map(|n| json!({"name": format!("m{n}")})).collect();
        let stored = serde_json::from_value(json!({"models": models})).unwrap();
        assert_eq!(details(stored, ModelList::default()).len(), MAX_MODELS);
        let none = serde_json::from_value(json!({"models": null})).unwrap();
        assert!(details(none, ModelList::default()).is_empty());
    }
}
