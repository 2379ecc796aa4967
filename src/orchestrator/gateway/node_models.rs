//! Models of a node, for admins.

use super::{AppState, authenticate_admin};
use crate::{
    api::{
        api_keys::Scope,
        audit::AuditAction,
        models::{PullEvent, PullModel},
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
    orchestrator::node_models,
};
use bytes::Bytes;
use futures_util::stream;
use std::sync::Arc;

/// Keys that admins may use here.
const ADMIN_ACCESS: Access = Access::Scope(Scope::All);
/// Largest body of a pull.
const MAX_BODY_BYTES: usize = 4096;

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    authenticate_admin(&state, &request, ADMIN_ACCESS, AuditAction::AdminRead).await?;
    let slug = request.param("slug", "node")?;
    response::ok(&node_models::list(&state, slug).await?)
}

/// Pulls a model, and answers with events; ends when the caller leaves.
pub(super) async fn pull(state: Arc<AppState>, mut request: Request) -> Reply {
    let revocations = state.identity.revocations();
    let admin = authenticate_admin(&state, &request, ADMIN_ACCESS, AuditAction::ModelPull).await?;
    let slug = request.param("slug", "node")?;
    request.limit_body(MAX_BODY_BYTES);
    let wanted: PullModel = request.json().await?;
    let origin = request.origin();
    let events = node_models::pull(state, (admin, revocations), slug, wanted, origin).await?;
    let events = stream::unfold(events, |mut events| async {
        let event = events.recv().await?;
        Some((render(&event), events))
    });
    Ok(response::stream("text/event-stream", events))
}

pub(super) async fn delete(state: Arc<AppState>, request: Request) -> Reply {
    let admin =
        authenticate_admin(&state, &request, ADMIN_ACCESS, AuditAction::ModelDelete).await?;
    let target = (
        request.param("slug", "node")?,
        request.param("model", "model")?,
    );
    node_models::delete(&state, &admin, target, &request.origin()).await?;
    response::no_content()
}

fn render(event: &PullEvent) -> Bytes {
    match event {
        PullEvent::Progress(progress) => response::sse_event("", "progress", progress),
        PullEvent::End(end) => response::sse_event("", "end", end),
    }
}
