//! Models of a node: list, pull and delete.

use super::{NodeCallError, NodeClient, SILENCE_TIMEOUT};
use crate::{
    api::{
        PAYLOAD_VERSION,
        models::{PullEvent, WorkerModels, WorkerPull},
        nodes::{MAX_MODELS, ModelDetails},
    },
    http::{
        client::{Call, CallError},
        client_response::JsonLines,
    },
};
use http::Method;
use std::time::Duration;
use tokio::time::timeout;

/// Time for a node to answer a call about models; that of its model server included.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);

/// Pull of a model at a node. Dropping it ends the pull.
pub(in crate::orchestrator) struct ModelPull {
    url: String,
    lines: JsonLines,
}

impl ModelPull {
    /// Next event; `None` where the node ends without one. Fails after [`SILENCE_TIMEOUT`] without an event.
    pub(in crate::orchestrator) async fn next(
        &mut self,
    ) -> Result<Option<PullEvent>, NodeCallError> {
        match timeout(SILENCE_TIMEOUT, self.lines.next()).await {
            Ok(event) => Ok(event?),
            Err(_) => Err(CallError::timed_out(&self.url, SILENCE_TIMEOUT).into()),
        }
    }
}

impl<'a> NodeClient<'a> {
    /// Models that the node has; those that a report may name.
    pub(in crate::orchestrator) async fn models(&self) -> Result<Vec<ModelDetails>, NodeCallError> {
        let request =
            |call: Call<'a>| async { Ok(call.receive_payload::<WorkerModels>().await?.models) };
        let mut models = self
            .in_time(self.call_to(Method::GET, "models", request))
            .await?;
        models.retain(|model| {
            let digest = model.digest.as_deref().unwrap_or_default();
            ModelDetails::is_valid_name(&model.name) && ModelDetails::is_valid_digest(digest)
        });
        models.truncate(MAX_MODELS);
        Ok(models)
    }

    /// Starts the pull of a model.
    pub(in crate::orchestrator) async fn pull_model(
        &self,
        model: &str,
    ) -> Result<ModelPull, NodeCallError> {
        let body = WorkerPull {
            version: PAYLOAD_VERSION,
            model: model.to_owned(),
        };
        let request = |call: Call<'a>| {
            let call = call.json(&body);
            async { Ok(call.lines().await?) }
        };
        let lines = self.call_to(Method::POST, "models:pull", request);
        Ok(ModelPull {
            lines: self.in_time(lines).await?,
            url: self.base_url.clone(),
        })
    }

    /// Deletes a model, whose name was checked: no part of it needs an escape in a path.
    pub(in crate::orchestrator) async fn delete_model(
        &self,
        model: &str,
    ) -> Result<(), NodeCallError> {
        let request = |call: Call<'a>| async { Ok(call.done().await?) };
        let path = format!("models/{model}");
        self.in_time(self.call_to(Method::DELETE, &path, request))
            .await
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, NodeCallError>>,
    ) -> Result<T, NodeCallError> {
        let answer = timeout(ANSWER_TIMEOUT, answer).await;
        answer.unwrap_or_else(|_| Err(CallError::timed_out(&self.base_url, ANSWER_TIMEOUT).into()))
    }
}
