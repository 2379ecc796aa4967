//! Gateway: the User API (contract, section 2), one file per resource, with the list of routes here.
//!
//! Handlers authenticate, parse, call a use case and render its outcome. They decide nothing.

mod api_keys;
mod artifacts;
mod audit;
mod auth;
mod join_tokens;
mod logs;
mod model_paths;
mod models;
mod node_models;
mod nodes;
mod openapi;
mod sandbox_calls;
mod sandboxes;
mod secrets;
mod snapshots;
mod tasks;
mod usage;
mod users;

use super::{AppState, drill, health};
use crate::{
    api::{audit::AuditAction, error::ApiError, problem::Problem},
    http::{
        budget::Account,
        request::Request,
        response,
        router::{Router, RouterBuilder},
    },
    identity::{Access, Caller},
};
use bytes::Bytes;
use http::Method;
use std::{future::ready, str::FromStr, sync::Arc};

/// Largest page of a list, in entries.
const MAX_PAGE_SIZE: u32 = 200;

/// All routes of the gateway. Those under `/v1` except login and refresh need an access token
/// or an API key.
pub(super) fn router(state: Arc<AppState>) -> Router<AppState> {
    let requests = state.metrics.requests("gateway");
    let mut builder = routes();
    if state.settings.drill {
        builder = builder.with_refused_calls(drill::is_refused_to_users, drill::problem);
    }
    builder.build(state, requests)
}

fn routes() -> RouterBuilder<AppState> {
    let document = Bytes::from(openapi::document().to_string());
    let builder = Router::new()
        .with_warnings_below("/v1/")
        .route(Method::POST, "/v1/auth/login", auth::login)
        .route(Method::POST, "/v1/auth/refresh", auth::refresh)
        .route(Method::POST, "/v1/auth/logout", auth::logout)
        .route(Method::GET, "/v1/users/me", auth::me)
        .route(Method::POST, "/v1/users/me/password", auth::change_password)
        .route(Method::POST, "/v1/users", users::create)
        .route(Method::GET, "/v1/users", users::list)
        .route(Method::POST, "/v1/users/{id}/disable", users::disable)
        .route(Method::POST, "/v1/users/{id}/enable", users::enable)
        .route(
            Method::POST,
            "/v1/users/{id}/revoke_sessions",
            users::revoke_sessions,
        )
        .route(
            Method::POST,
            "/v1/users/{id}/reset_password",
            users::reset_password,
        )
        .route(Method::POST, "/v1/keys", api_keys::create)
        .route(Method::GET, "/v1/keys", api_keys::list)
        .route(Method::DELETE, "/v1/keys/{id}", api_keys::revoke)
        .route(Method::GET, "/v1/audit", audit::list)
        .route(Method::GET, "/v1/usage", usage::list)
        .route(Method::POST, "/v1/tasks", tasks::create)
        .route(Method::GET, "/v1/tasks", tasks::list)
        .route(Method::GET, "/v1/tasks/{id}", tasks::get)
        .route(Method::DELETE, "/v1/tasks/{id}", tasks::delete)
        .route(Method::GET, "/v1/tasks/{id}/result", tasks::result)
        .route(Method::POST, "/v1/tasks/{id}/cancel", tasks::cancel)
        .route(Method::POST, "/v1/tasks/{id}/stdin", tasks::send_stdin)
        .route(Method::GET, "/v1/tasks/{id}/logs", logs::get)
        .route(
            Method::GET,
            "/v1/tasks/{id}/artifacts",
            artifacts::list_of_task,
        )
        .route(Method::POST, "/v1/artifacts", artifacts::upload)
        .route(Method::GET, "/v1/artifacts", artifacts::list)
        .route(Method::GET, "/v1/artifacts/{id}", artifacts::get)
        .route(Method::DELETE, "/v1/artifacts/{id}", artifacts::delete)
        .route(Method::GET, "/v1/nodes", nodes::list)
        .route(Method::GET, "/v1/nodes/{slug}", nodes::get)
        .route(Method::DELETE, "/v1/nodes/{slug}", nodes::forget)
        .route(Method::POST, "/v1/nodes/{slug}/drain", nodes::drain)
        .route(Method::POST, "/v1/nodes/{slug}/resume", nodes::resume)
        .route(Method::POST, "/v1/nodes/{slug}/images", nodes::push_image)
        .route(Method::GET, "/v1/nodes/{slug}/models", node_models::list)
        .route(
            Method::POST,
            "/v1/nodes/{slug}/models:pull",
            node_models::pull,
        )
        .route(
            Method::DELETE,
            "/v1/nodes/{slug}/models/{*model}",
            node_models::delete,
        )
        .route(Method::GET, "/openapi.json", move |_, _| {
            ready(Ok(response::raw_json(document.clone())))
        });
    let builder = snapshots::routes(sandbox_calls::routes(sandboxes::routes(builder)));
    let builder = secrets::routes(join_tokens::routes(builder));
    health::routes(models::routes(builder))
}

/// Credential of a request: its bearer token, or an API key in `x-api-key`, as clients of Anthropic's API send it.
fn token(request: &Request) -> Option<&str> {
    let bearer = request.bearer();
    bearer.or_else(|| request.header("x-api-key").map(str::trim))
}

/// Authenticates the user who calls, with a login or a key that `access` accepts. Their budget pays for the body.
async fn authenticate(
    state: &AppState,
    request: &Request,
    access: Access,
) -> Result<Caller, ApiError> {
    let origin = request.origin();
    let caller = state.identity.caller(token(request), access, &origin);
    let caller = caller.await?;
    request.authorize(Account::Authenticated(caller.user.id.into()))?;
    Ok(caller)
}

/// Authenticates the user who calls as an admin, for `action`.
async fn authenticate_admin(
    state: &AppState,
    request: &Request,
    access: Access,
    action: AuditAction,
) -> Result<Caller, ApiError> {
    let (token, origin) = (token(request), request.origin());
    let admin = state.identity.admin(token, access, action, &origin).await?;
    request.authorize(Account::Authenticated(admin.user.id.into()))?;
    Ok(admin)
}

/// Number of entries on a page: query parameter `limit`, or `default`.
fn page_size(request: &Request, default: u32) -> Result<u32, Problem> {
    let expected = format!("1 to {MAX_PAGE_SIZE}");
    let is_valid = |limit: &u32| (1..=MAX_PAGE_SIZE).contains(limit);
    let limit = request.query_if("limit", &expected, is_valid)?;
    Ok(limit.unwrap_or(default))
}

/// Position at which a list continues: query parameter `cursor`. An empty one, as the last page returns it,
/// means the beginning.
fn cursor<T: FromStr>(request: &Request) -> Result<Option<T>, Problem> {
    if request.query("cursor").is_some_and(|text| text.is_empty()) {
        return Ok(None);
    }
    request.query_as("cursor", "the next_cursor of an earlier answer")
}
