//! The User API (contract, section 2): one file per resource, and here the list of calls.

mod auth;
mod logs;
mod nodes;
mod tasks;

use super::{Orchestrator, health};
use crate::{
    api::{UserId, problem::Problem},
    http::{request::Request, router::Router},
    identity::Caller,
};
use http::Method;
use std::sync::Arc;

/// All calls of the gateway. Those under `/v1` but login and refresh need an access token.
pub(super) fn router(orchestrator: Arc<Orchestrator>) -> Router<Orchestrator> {
    let requests = orchestrator.metrics.requests("gateway");
    let builder = Router::new(orchestrator, requests)
        .route(Method::POST, "/v1/auth/login", auth::login)
        .route(Method::POST, "/v1/auth/refresh", auth::refresh)
        .route(Method::POST, "/v1/auth/logout", auth::logout)
        .route(Method::GET, "/v1/users/me", auth::me)
        .route(Method::POST, "/v1/tasks", tasks::create)
        .route(Method::GET, "/v1/tasks", tasks::list)
        .route(Method::GET, "/v1/tasks/{id}", tasks::get)
        .route(Method::GET, "/v1/tasks/{id}/result", tasks::result)
        .route(Method::POST, "/v1/tasks/{id}/cancel", tasks::cancel)
        .route(Method::GET, "/v1/tasks/{id}/logs", logs::get)
        .route(Method::GET, "/v1/nodes", nodes::list)
        .route(Method::GET, "/v1/nodes/{slug}", nodes::get)
        .route(Method::DELETE, "/v1/nodes/{slug}", nodes::forget)
        .route(Method::POST, "/v1/nodes/{slug}/drain", nodes::drain)
        .route(Method::POST, "/v1/nodes/{slug}/resume", nodes::resume);
    health::routes(builder).build()
}

/// Who calls.
async fn caller(orchestrator: &Orchestrator, request: &Request) -> Result<Caller, Problem> {
    orchestrator.identity.caller(request.bearer()).await
}

/// Whose tasks a caller may see: their own, or, for an admin, everybody's.
fn visible_to(caller: &Caller) -> Option<UserId> {
    (!caller.user.is_admin).then_some(caller.user.id)
}
