//! Model API: calls of OpenAI's, Anthropic's and Ollama's APIs, which reach the model servers of nodes.
//!
//! Answers and errors have the shape of the API that a call belongs to.

use super::{AppState, authenticate, model_paths, token};
use crate::{
    api::{
        api_keys::Scope,
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    http::{
        request::Request,
        response::{self, Reply},
        router::RouterBuilder,
    },
    identity::{Access, Caller},
    inference::{Endpoint, Family, error::renderer},
    orchestrator::inference,
};
use http::Method;
use std::sync::Arc;

/// Credentials that the calls accept.
const ACCESS: Access = Access::Scope(Scope::Inference);
/// Path of one model. A name may hold slashes.
const MODEL_PATH: &str = "/v1/models/{*id}";
/// Begin of the paths of Ollama's API.
const OLLAMA_PREFIX: &str = "/api/";
/// Text for calls of Ollama's API that change a model server.
const REFUSED: &str = "this call of Ollama's API is not served here: models are pulled and removed with cynode models, \
    or at /v1/nodes/{slug}/models";
/// Text for calls without credentials.
const NO_CREDENTIALS: &str = "send an API key (cyk_…) as Authorization: Bearer or x-api-key; \
    cynode keys create NAME --scope inference makes one";
/// Text for calls whose credentials are not valid.
const WRONG_CREDENTIALS: &str =
    "the API key or token is wrong, expired or revoked; cynode keys list shows yours";

/// Adds the calls to a router.
pub(super) fn routes(mut builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    for endpoint in Endpoint::ALL.iter().copied() {
        let (method, path) = (endpoint.method(), endpoint.path());
        builder = builder
            .route(method, path, move |state, request| {
                call(state, request, endpoint)
            })
            .with_errors(path, renderer(endpoint.family()));
    }
    builder
        .route(Method::GET, MODEL_PATH, get)
        .with_errors(MODEL_PATH, renderer(Family::OpenAi))
        .with_hints(model_paths::hint)
        .with_refused(OLLAMA_PREFIX, REFUSED, renderer(Family::Ollama))
}

async fn call(state: Arc<AppState>, request: Request, endpoint: Endpoint) -> Reply {
    // Subscribed before the authentication, so that no end of the session is missed.
    let revocations = state.identity.revocations();
    let caller = admit(&state, &request).await?;
    if !endpoint.names_model() {
        return inference::list(&state, endpoint).await;
    }
    inference::call(state, caller, revocations, endpoint, request).await
}

/// Authenticates the user who calls. Clients of these APIs know keys, and no logins, so 401 speaks of keys.
async fn admit(state: &AppState, request: &Request) -> Result<Caller, ApiError> {
    let admitted = authenticate(state, request, ACCESS).await;
    admitted.map_err(|error| match error.problem().kind {
        ProblemKind::Unauthorized if token(request).is_none_or(str::is_empty) => {
            Problem::unauthorized(NO_CREDENTIALS).into()
        }
        ProblemKind::Unauthorized => Problem::unauthorized(WRONG_CREDENTIALS).into(),
        _ => error,
    })
}

async fn get(state: Arc<AppState>, request: Request) -> Reply {
    admit(&state, &request).await?;
    let name: String = request.param("id", "model")?;
    response::ok(&inference::model(&state, &name).await?)
}
