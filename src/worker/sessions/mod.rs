//! Calls of the Worker API about sandboxes that stay: `/v1/worker/sessions/…`.
//!
//! The orchestrator passes the calls of users on to here, and the answers back, as they are. So these are also the
//! answers of the User API; only the id of the sandbox differs, which is that of its job here.
//!
//! ```text
//! call ──▶ handler ──▶ session.sock (`socket`) ──▶ shim ──▶ init ──▶ exec
//!             │                                       │
//!             └── reads, woken by the job ──▶ execs/<exec id>/… (`execs`)
//! ```
//!
//! This process keeps nothing of an exec: the shim starts it, once for an id, and writes its log and its end, and goes on
//! when this process is killed. A handler waits for files, each at its own pace: a reader that stalls holds up no
//! other, and a caller that leaves ends nothing but its call.

mod answers;
mod controls;
mod exec;
mod execs;
mod files;
mod logs;
mod signals;
mod snapshot;
mod socket;
mod start;
mod stdin;
mod terminal;

pub(super) use snapshot::ensure_running;
pub(super) use terminal::Terminals;

use super::{
    api::{Api, attempt},
    ledger::Job,
    session::protocol,
};
use crate::{
    api::problem::Problem,
    http::{budget::Account, request::Request, router::RouterBuilder},
};
use http::Method;
use std::sync::Arc;

/// Adds the routes.
pub(super) fn routes(router: RouterBuilder<Api>) -> RouterBuilder<Api> {
    use Method as M;
    router
        .route(M::POST, "/v1/worker/sessions", start::start)
        .route(M::GET, "/v1/worker/sessions/{id}", controls::state)
        .route(M::DELETE, "/v1/worker/sessions/{id}", controls::end)
        .route(M::POST, "/v1/worker/sessions/{id}/end", controls::end)
        .route(M::POST, "/v1/worker/sessions/{id}/renew", controls::renew)
        .route(M::POST, "/v1/worker/sessions/{id}/snapshot", snapshot::save)
        .route(M::POST, "/v1/worker/sessions/{id}/exec", exec::run)
        .route(M::GET, "/v1/worker/sessions/{id}/execs", exec::list)
        .route(M::GET, "/v1/worker/sessions/{id}/execs/{exec}", exec::get)
        .route(
            M::GET,
            "/v1/worker/sessions/{id}/execs/{exec}/logs",
            logs::get,
        )
        .route(
            M::POST,
            "/v1/worker/sessions/{id}/execs/{exec}/stdin",
            stdin::receive,
        )
        .route(
            M::POST,
            "/v1/worker/sessions/{id}/execs/{exec}/signal",
            controls::signal,
        )
        .route(
            M::POST,
            "/v1/worker/sessions/{id}/execs/{exec}/resize",
            controls::resize,
        )
        .route(M::GET, "/v1/worker/sessions/{id}/terminal", terminal::open)
        .route(M::GET, "/v1/worker/sessions/{id}/files", files::pass_on)
        .route(M::PUT, "/v1/worker/sessions/{id}/files", files::pass_on)
        .route(M::DELETE, "/v1/worker/sessions/{id}/files", files::pass_on)
        .route(
            M::GET,
            "/v1/worker/sessions/{id}/files:list",
            files::pass_on,
        )
        .route(
            M::POST,
            "/v1/worker/sessions/{id}/files:mkdir",
            files::pass_on,
        )
        .route(
            M::POST,
            "/v1/worker/sessions/{id}/files:move",
            files::pass_on,
        )
        .route(M::GET, "/v1/worker/sessions/{id}/archive", files::pass_on)
        .route(M::PUT, "/v1/worker/sessions/{id}/archive", files::pass_on)
}

/// Job of the sandbox that a short call names, where it belongs to the orchestrator that calls.
async fn session(api: &Api, request: &Request) -> Result<Arc<Job>, Problem> {
    let owner = api.authorize(request)?;
    let id = request.param("id", "sandbox")?;
    let job = api.ledger.get(owner.as_ref(), id, attempt(request)?).await;
    job.map_err(|problem| match problem.kind {
        crate::api::problem::ProblemKind::NotFound => Problem::not_found("sandbox"),
        _ => problem,
    })
}

/// Same for a call that may take long.
async fn session_long(api: &Api, request: &Request) -> Result<Arc<Job>, Problem> {
    let job = session(api, request).await?;
    request.authorize(Account::SoleClient)?;
    Ok(job)
}

#[cfg(test)]
mod tests;
