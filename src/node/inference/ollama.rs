//! Client of Ollama's API: version, models, and pulling a model. Its answers are untrusted: a model server can be
//! any program.

use crate::http::client::{CallError, Client};
use http::Method;
use serde::Deserialize;
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
/// Limits of a report: number of models, and length of a name.
const MAX_MODELS: usize = 256;
const MAX_MODEL_NAME_BYTES: usize = 256;

/// Client of a model server on loopback.
#[derive(Clone)]
pub(super) struct OllamaClient {
    client: Client,
    address: SocketAddr,
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
        let answer = self.get::<Version>("/api/version").await?;
        Some(answer.version.chars().take(64).collect())
    }

    /// Models of the server, within the limits of a report.
    pub(super) async fn models(&self) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct Tags {
            #[serde(default)]
            models: Option<Vec<Model>>,
        }
        #[derive(Deserialize)]
        struct Model {
            name: String,
        }
        let models = self.get::<Tags>("/api/tags").await?.models;
        let names = models
            .unwrap_or_default()
            .into_iter()
            .map(|model| model.name);
        Some(
            names
                .filter(|name| name.len() <= MAX_MODEL_NAME_BYTES)
                .take(MAX_MODELS)
                .collect(),
        )
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Option<T> {
        let call = self.client.call(Method::GET, self.url(path)).receive();
        timeout(ANSWER_TIMEOUT, call).await.ok()?.ok()
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
