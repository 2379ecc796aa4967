//! Handlers of the Worker API about its state: readiness and metrics.

use super::api::Api;
use crate::http::{
    request::Request,
    response::{self, Reply},
};
use http::StatusCode;
use std::sync::Arc;

pub(super) async fn ready(api: Arc<Api>, _: Request) -> Reply {
    let unavailable = |reason: &str| response::text(StatusCode::SERVICE_UNAVAILABLE, reason);
    Ok(if api.is_closing() {
        unavailable("shutting down")
    } else if let Err(problem) = api.ctx.ensure_ready().await {
        unavailable(&problem.detail)
    } else {
        let warnings = api.ctx.trash.warnings().into_iter();
        let lines = warnings.map(|warning| format!("\nwarning: {warning}"));
        response::text(
            StatusCode::OK,
            format!("ready{}", lines.collect::<String>()),
        )
    })
}

pub(super) async fn metrics(api: Arc<Api>, _: Request) -> Reply {
    // Without the gauges of a disk that hangs.
    let spaces = api.ctx.probe_disk(|ctx| ctx.disk.spaces()).await;
    let (running, warm) = (api.ledger.running_count(), api.ctx.warm.counts().0);
    let gpus = api.ledger.gpus();
    let busy = gpus.iter().filter(|(_, is_busy)| *is_busy).count();
    api.ctx.metrics.render(
        running,
        [gpus.len(), busy],
        warm,
        api.ctx.snapshots.totals(),
        &spaces.unwrap_or_default(),
    )
}
