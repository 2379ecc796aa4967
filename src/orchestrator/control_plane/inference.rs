//! Calls of models that jobs make in their sandboxes, as their nodes pass them on: the paths of the gateway's model API
//! below [`PREFIX`](Endpoint::node_path), with the node's token and the id of the job.

use super::{AppState, authenticate};
use crate::{
    api::{
        JOB_HEADER, JobId,
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    http::{
        budget::Account,
        request::Request,
        response::{self, Reply},
        router::RouterBuilder,
    },
    inference::{Endpoint, Family, error::renderer},
    orchestrator::inference,
    store::InferenceUser,
};
use http::Method;
use std::sync::Arc;

/// Path of one model. A name may hold slashes.
const MODEL_PATH: &str = "/v1/nodes/inference/v1/models/{*id}";

/// Adds the calls to a router.
pub(super) fn routes(mut builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    for endpoint in Endpoint::ALL.iter().copied() {
        let (method, path) = (endpoint.method(), endpoint.node_path());
        builder = builder
            .route(method, path, move |state, request| {
                call(state, request, endpoint)
            })
            .with_errors(path, renderer(endpoint.family()));
    }
    builder
        .route(Method::GET, MODEL_PATH, get)
        .with_errors(MODEL_PATH, renderer(Family::OpenAi))
}

async fn call(state: Arc<AppState>, request: Request, endpoint: Endpoint) -> Reply {
    let user = authorize(&state, &request).await?;
    if !endpoint.names_model() {
        return inference::list(&state, endpoint).await;
    }
    inference::call_of_job(state, user, endpoint, request).await
}

async fn get(state: Arc<AppState>, request: Request) -> Reply {
    authorize(&state, &request).await?;
    let name: String = request.param("id", "model")?;
    response::ok(&inference::model(&state, &name).await?)
}

/// Task and user that a call is recorded with: of a job that runs at the node of the token, and may use models. The call
/// counts in the user's rate, and the user's budget pays for the body, so that no job keeps its node's reports out.
async fn authorize(state: &AppState, request: &Request) -> Result<InferenceUser, ApiError> {
    let node = authenticate(state, request.bearer()).await?;
    let job = request.header(JOB_HEADER);
    let job: Option<JobId> = job.and_then(|job| job.parse().ok());
    let job = job.ok_or_else(|| {
        let detail =
            format!("the header {JOB_HEADER} must be the id of the job that makes the call");
        Problem::new(ProblemKind::InvalidRequest, detail)
    })?;
    let user = state.store.inference_user(job, node.id).await?;
    let user = user.ok_or_else(|| {
        let detail = "this job does not run at this node, or may not use models (use_inference)";
        Problem::new(ProblemKind::Forbidden, detail)
    })?;
    state.identity.admit_job_request(user.user)?;
    request.authorize(Account::Authenticated(user.user.into()))?;
    Ok(user)
}
