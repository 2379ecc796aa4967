//! `/healthz`, `/readyz` and `/metrics`, the same on both listeners.

use super::{Orchestrator, metrics, readiness};
use crate::{
    api::problem::{Kind, Problem},
    http::{
        request::Request,
        response::{self, Reply},
        router::Builder,
    },
};
use http::{Method, StatusCode};
use std::sync::Arc;

/// Adds the health calls to a listener.
pub(super) fn routes(builder: Builder<Orchestrator>) -> Builder<Orchestrator> {
    builder
        .route(Method::GET, "/healthz", async |_, _| {
            Ok(response::text(StatusCode::OK, "ok"))
        })
        .route(Method::GET, "/readyz", ready)
        .route(Method::GET, "/metrics", metrics::get)
}

async fn ready(orchestrator: Arc<Orchestrator>, _: Request) -> Reply {
    if let Some(trouble) = orchestrator.trouble() {
        return Err(Problem::new(Kind::Unavailable, trouble.to_string()));
    }
    if let Some(low) = orchestrator.store.low_space() {
        return Err(Problem::new(Kind::Unavailable, low.to_string()));
    }
    let nodes = orchestrator.node_views().await?;
    readiness::overall(&nodes, orchestrator.settings.require_inference)
        .map(|()| response::text(StatusCode::OK, "ready"))
        .map_err(|reason| Problem::new(Kind::Unavailable, reason))
}
