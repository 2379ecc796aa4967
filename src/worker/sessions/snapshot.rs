//! Snapshot of a sandbox that stays and runs.

use super::{
    answers,
    protocol::{SessionReply, SessionRequest},
    session_long, socket,
};
use crate::{
    api::{error::ApiError, image::ImageRef, problem::Problem, snapshots::SaveSnapshot},
    http::{
        request::Request,
        response::{self, Reply},
    },
    worker::{api::Api, ledger::Job, snapshots},
};
use http::StatusCode;
use std::sync::Arc;

/// Largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 4096;

pub(super) async fn save(api: Arc<Api>, mut request: Request) -> Reply {
    let owner = api.authorize(&request)?;
    let job = session_long(&api, &request).await?;
    api.ensure_sole_orchestrator(owner.as_ref())?;
    request.limit_body(MAX_BODY_BYTES);
    let SaveSnapshot { image } = request.json().await?;
    let image: Option<ImageRef> = image.parse().ok();
    let image = image
        .filter(ImageRef::is_snapshot)
        .ok_or_else(|| Problem::field("/image", "must be the image of a snapshot"))?;
    ensure_running(&job).await?;
    // Goes on when the caller leaves, who may ask for all snapshots later.
    let worker = Arc::clone(&api);
    let saved = async move { snapshots::save(&worker, &job, &image).await };
    let saved = api.job_tasks.run_to_end("save_snapshot", saved).await;
    let stored = saved.map_err(ApiError::internal)??;
    response::json(StatusCode::CREATED, &stored)
}

/// Fails unless the sandbox of a job stays, and runs: then nothing of its files is removed yet.
pub(in crate::worker) async fn ensure_running(job: &Arc<Job>) -> Result<(), ApiError> {
    match socket::call(job, &SessionRequest::State).await? {
        SessionReply::State { .. } => Ok(()),
        reply => Err(answers::refused(reply).into()),
    }
}
