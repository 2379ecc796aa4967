//! `/healthz`, `/readyz` and `/metrics`, alike on both listeners.

use super::{AppState, drill, metrics, model_server, readiness};
use crate::{
    api::problem::{Problem, ProblemKind},
    http::{
        request::Request,
        response::{self, Reply},
        router::RouterBuilder,
    },
};
use http::{Method, StatusCode};
use std::sync::Arc;

/// Adds the routes to a listener.
pub(super) fn routes(builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    builder
        .route(Method::GET, "/healthz", async |_, _| {
            Ok(response::text(StatusCode::OK, "ok"))
        })
        .route(Method::GET, "/readyz", readyz)
        .route(Method::GET, "/metrics", metrics::get)
}

async fn readyz(state: Arc<AppState>, _: Request) -> Reply {
    if state.settings.drill {
        return Err(drill::problem().into());
    }
    if let Some(fault) = state.storage_fault() {
        return Err(Problem::new(ProblemKind::Unavailable, fault.to_string()).into());
    }
    if let Some(low) = state.store.low_space() {
        return Err(Problem::new(ProblemKind::Unavailable, low.to_string()).into());
    }
    let nodes = state.node_outlooks().await?;
    let known = nodes.iter().map(|node| (&*node.report, node.view.status));
    let is_required = model_server::is_required(&state.settings, known);
    let nodes: Vec<_> = nodes.into_iter().map(|node| node.view).collect();
    readiness::overall(&nodes, is_required)
        .map(|()| response::text(StatusCode::OK, "ready"))
        .map_err(|reason| Problem::new(ProblemKind::Unavailable, reason).into())
}
