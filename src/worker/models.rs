//! Models of the model server of this machine: list, pull and delete, for the orchestrator.
//!
//! A pull ends when its caller leaves. The model server keeps what it has of the model, so that another pull continues
//! there.

use super::api::Api;
use crate::{
    api::{
        PAYLOAD_VERSION,
        models::{PullEnd, PullEvent, PullProgress, PullStatus, WorkerModels, WorkerPull},
        nodes::check_model,
        problem::{Problem, ProblemKind},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    inference::ollama::{DeleteError, OllamaClient, Pull},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 4096;
/// Longest time without an event.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn list(api: Arc<Api>, request: Request) -> Reply {
    api.authorize(&request)?;
    let models = server(&api)?.models().await.ok_or_else(silent)?;
    response::ok(&WorkerModels {
        version: PAYLOAD_VERSION,
        models,
    })
}

pub(super) async fn pull(api: Arc<Api>, mut request: Request) -> Reply {
    api.authorize_long(&request)?;
    request.limit_body(MAX_BODY_BYTES);
    let WorkerPull { model, .. } = request.payload().await?;
    check_model("/model", &model)?;
    let pull = server(&api)?.pull(&model).await.map_err(|error| {
        tracing::warn!(model, %error, "model server did not start a pull");
        silent()
    })?;
    tracing::info!(model, "pulling a model for an admin");
    Ok(response::stream("application/x-ndjson", events(pull)))
}

pub(super) async fn delete(api: Arc<Api>, request: Request) -> Reply {
    api.authorize(&request)?;
    let model: String = request.param("model", "model")?;
    check_model("/model", &model)?;
    server(&api)?
        .delete(&model)
        .await
        .map_err(|error| match error {
            DeleteError::Unknown => Problem::not_found("model"),
            DeleteError::Call(error) => {
                tracing::warn!(model, %error, "model server did not delete a model");
                silent()
            }
        })?;
    tracing::info!(model, "model deleted for an admin");
    response::no_content()
}

fn server(api: &Api) -> Result<OllamaClient, Problem> {
    let address = api.model_server.address();
    address.map(OllamaClient::at).ok_or_else(|| {
        let detail = "this node runs no model server at present; see cynode nodes show";
        Problem::new(ProblemKind::Unavailable, detail)
    })
}

fn silent() -> Problem {
    let detail = "the model server of this node does not answer; see the log of the node";
    Problem::new(ProblemKind::Unavailable, detail)
}

/// Events of a pull as lines of JSON, up to its end. The first one comes at once.
fn events(pull: Pull) -> impl Stream<Item = Bytes> + Send + 'static {
    let started = PullProgress {
        status: "starting".to_owned(),
        ..PullProgress::default()
    };
    let first = line(&PullEvent::Progress(started.clone()));
    let rest = stream::unfold(Some((pull, started)), |state| async {
        let (mut pull, last) = state?;
        let next = timeout(KEEPALIVE_INTERVAL, pull.next()).await;
        let end = |end| Some((line(&PullEvent::End(end)), None));
        let progress = match next {
            Err(_) => last,
            Ok(Ok(Some(progress))) => progress,
            Ok(Ok(None)) => {
                return end(PullEnd {
                    status: PullStatus::Completed,
                    error: None,
                });
            }
            Ok(Err(error)) => return end(PullEnd::failed(error.to_string())),
        };
        let event = PullEvent::Progress(progress.clone());
        Some((line(&event), Some((pull, progress))))
    });
    stream::once(async { first }).chain(rest)
}

fn line(event: &PullEvent) -> Bytes {
    // Nothing in an event can fail to be JSON.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
