//! Sandboxes that stay: create, list, get, events, renew, delete. The calls that pass to their nodes are in
//! [`sandbox_calls`](super::sandbox_calls).

use super::{AppState, authenticate, cursor, logs::render, page_size, tasks::DEFAULT_PAGE_SIZE};
use crate::{
    api::{
        api_keys::Scope,
        sandboxes::{CreateSandbox, RenewSandbox},
    },
    http::{
        log_query::last_event_id,
        request::Request,
        response::{self, Reply},
        router::RouterBuilder,
    },
    identity::Access,
    orchestrator::{logs, sandboxes},
    store::SandboxFilter,
};
use futures_util::StreamExt as _;
use http::{HeaderValue, Method, StatusCode, header};
use std::sync::Arc;

/// Keys that may make these calls.
const ACCESS: Access = Access::Scope(Scope::Sandboxes);
/// Largest body of a new sandbox: its environment.
const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
/// Largest body of a renewal.
const MAX_RENEW_BYTES: usize = 4096;

/// Adds the routes.
pub(super) fn routes(builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    builder
        .route(Method::POST, "/v1/sandboxes", create)
        .route(Method::GET, "/v1/sandboxes", list)
        .route(Method::GET, "/v1/sandboxes/{id}", get)
        .route(Method::DELETE, "/v1/sandboxes/{id}", delete)
        .route(Method::POST, "/v1/sandboxes/{id}/renew", renew)
        .route(Method::GET, "/v1/sandboxes/{id}/events", events)
}

async fn create(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    request.limit_body(MAX_BODY_BYTES);
    let create: CreateSandbox = request.json_or_default().await?;
    let sandbox = sandboxes::create(&state, &caller, create, &request.origin()).await?;
    let mut answer = response::json(StatusCode::CREATED, &sandbox)?;
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/sandboxes/{}", sandbox.id)) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let filter = SandboxFilter {
        owner: None,
        with_ended: request.query_as("all", "true or false")?.unwrap_or(false),
        before: cursor(&request)?,
        limit: page_size(&request, DEFAULT_PAGE_SIZE)?,
    };
    response::ok(&sandboxes::list(&state, &caller, filter).await?)
}

async fn get(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "sandbox")?;
    response::ok(&sandboxes::show(&state, &caller, name).await?)
}

/// Sends the events of a sandbox: to its end, unless the caller does not follow.
async fn events(state: Arc<AppState>, request: Request) -> Reply {
    // Subscribed before the authentication, so that no end of the session is missed.
    let revocations = state.identity.revocations();
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "sandbox")?;
    let follow = request.query_as("follow", "true or false")?.unwrap_or(true);
    let cursor = last_event_id(&request)?;
    let events = logs::sandbox_events(&state, caller, revocations, name, cursor, follow).await?;
    Ok(response::stream("text/event-stream", events.map(render)))
}

async fn renew(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "sandbox")?;
    request.limit_body(MAX_RENEW_BYTES);
    let renew: RenewSandbox = request.json().await?;
    let renewed = sandboxes::renew(&state, &caller, name, renew, &request.origin()).await?;
    response::ok(&renewed)
}

async fn delete(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "sandbox")?;
    sandboxes::delete(&state, &caller, name, &request.origin()).await?;
    response::no_content()
}
