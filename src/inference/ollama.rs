//! Client of Ollama's API: its version, and its models, which are listed, pulled and deleted. Its answers are untrusted:
//! a model server can be any program.

use crate::{
    api::{
        models::PullProgress,
        nodes::{MAX_MODELS, ModelDetails},
    },
    http::{
        client::{CallError, Client},
        client_response::JsonLines,
    },
    text::clean_prefix,
};
use http::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use std::{net::SocketAddr, time::Duration};
use tokio::time::{Instant, timeout, timeout_at};

/// Time limit for an answer, except of a pull.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without progress after which a pull has failed.
const PULL_STALL_TIMEOUT: Duration = Duration::from_mins(5);
/// Time limit for the deletion of a model, whose files may be large.
const DELETE_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest texts of the server that are repeated, in bytes.
const MAX_ERROR_BYTES: usize = 500;
const MAX_STATUS_BYTES: usize = 100;

/// Client of a model server on loopback.
#[derive(Clone)]
pub struct OllamaClient {
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
pub enum PullError {
    /// Failed call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Refusal, in the words of the model server, without control characters.
    #[error("{0}")]
    Refused(String),
    /// No progress.
    #[error("no progress for {} s", PULL_STALL_TIMEOUT.as_secs())]
    Stalled,
    /// End without success.
    #[error("the pull ended without success")]
    Unfinished,
}

/// Reason for which a model could not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// No such model.
    #[error("the model server has no such model")]
    Unknown,
    /// Failed call.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Pull of a model. Dropping it ends the pull; the model server keeps what it has.
pub struct Pull {
    lines: JsonLines,
    is_done: bool,
    /// Time at which a pull without progress has failed.
    deadline: Instant,
}

impl Pull {
    /// Next progress; `None` when the model is there. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<PullProgress>, PullError> {
        #[derive(Deserialize)]
        struct Progress {
            #[serde(default)]
            status: String,
            error: Option<String>,
            digest: Option<String>,
            total: Option<u64>,
            completed: Option<u64>,
        }
        let next = timeout_at(self.deadline, self.lines.next::<Progress>()).await;
        let Some(progress) = next.map_err(|_| PullError::Stalled)?? else {
            return if self.is_done {
                Ok(None)
            } else {
                Err(PullError::Unfinished)
            };
        };
        self.deadline = Instant::now() + PULL_STALL_TIMEOUT;
        if let Some(error) = progress.error {
            return Err(PullError::Refused(clean_prefix(&error, MAX_ERROR_BYTES)));
        }
        self.is_done = progress.status == "success";
        Ok(Some(PullProgress {
            status: clean_prefix(&progress.status, MAX_STATUS_BYTES),
            digest: progress
                .digest
                .filter(|digest| ModelDetails::is_valid_digest(digest)),
            total_bytes: progress.total,
            completed_bytes: progress.completed,
        }))
    }
}

impl OllamaClient {
    /// Client of the server at this address.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            client: Client::default(),
            address,
        }
    }

    /// Address of the server.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Version of the server. `None`: nothing answers as a model server does.
    pub async fn version(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        let answer = self.get::<Version>("/api/version").await.ok()?;
        Some(answer.version.chars().take(64).collect())
    }

    /// Models of the server, within the limits of a report. `None`: it does not list them now.
    pub async fn models(&self) -> Option<Vec<ModelDetails>> {
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

    /// Starts the pull of a model.
    pub async fn pull(&self, model: &str) -> Result<Pull, PullError> {
        let body = serde_json::json!({"model": model, "stream": true});
        let call = self.client.call(Method::POST, self.url("/api/pull"));
        let answer = timeout(PULL_STALL_TIMEOUT, call.json(&body).lines()).await;
        Ok(Pull {
            lines: answer.map_err(|_| PullError::Stalled)??,
            is_done: false,
            deadline: Instant::now() + PULL_STALL_TIMEOUT,
        })
    }

    /// Deletes a model.
    pub async fn delete(&self, model: &str) -> Result<(), DeleteError> {
        let body = serde_json::json!({"model": model});
        let call = self.client.call(Method::DELETE, self.url("/api/delete"));
        match timeout(DELETE_TIMEOUT, call.json(&body).done()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.status() == Some(StatusCode::NOT_FOUND) => {
                Err(DeleteError::Unknown)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(CallError::timed_out(&self.url("/api/delete"), DELETE_TIMEOUT).into()),
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
