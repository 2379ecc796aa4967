//! The model server's own API, as far as a node needs it: does it answer, what has it got, and
//! fetch this. Its answers are taken as hostile: models come from anywhere.

use crate::http::client::{CallError, Client};
use http::Method;
use serde::Deserialize;
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// How long a server that works may take to say its version.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a download may stand still.
const PULL_STALL_TIMEOUT: Duration = Duration::from_mins(5);
/// How often a download says that it goes on.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// What a report takes: entries, and bytes of each.
const MAX_MODELS: usize = 256;
const MAX_MODEL_NAME_BYTES: usize = 256;

/// A model server on this machine.
#[derive(Clone)]
pub(super) struct OllamaClient {
    client: Client,
    address: SocketAddr,
}

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Refused(String),
    #[error("nothing came for {} s", PULL_STALL_TIMEOUT.as_secs())]
    Stalled,
    #[error("it ended without success")]
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

    /// Whether something answers as a model server does; its version.
    pub(super) async fn version(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        let answer = self.get::<Version>("/api/version").await?;
        Some(answer.version.chars().take(64).collect())
    }

    /// The models that it has, as many and as long as a report may name.
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

    /// Has it fetch a model, and logs how far it is.
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
                tracing::info!(model, status, mib, of, "still fetching a model");
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}
