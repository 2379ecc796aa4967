//! Images that admins push to nodes.
//!
//! An image is an artifact of the admin, which the node gets as a content, as it gets the files of a job, and loads.
//! The node decides what it loads.

use super::{
    AppState,
    artifacts::{self, content_error},
    dispatch::{SendError, transfer},
    node_client::{NodeCallError, NodeCallErrorKind, NodeClient},
    nodes,
};
use crate::{
    api::{
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        images::{LOAD_LIMIT, PushImage, PushedImages},
        jobs::files::Content,
        nodes::features,
        problem::{Problem, ProblemKind},
    },
    identity::Caller,
    store::Node,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Times that a node may lack the archive: its cache may lose it again.
const MAX_ROUNDS: usize = 3;
/// Times in a row that a node may not answer while it loads an image.
const MAX_SILENT_PROBES: usize = 12;
/// Time for the node's answer beyond that for the load.
const ANSWER_TIME: Duration = Duration::from_mins(1);

/// Pushes an image to a node; the names that it has there.
pub(super) async fn push(
    state: Arc<AppState>,
    admin: Caller,
    slug: String,
    request: PushImage,
    origin: RequestOrigin,
) -> Result<PushedImages, ApiError> {
    let node = state.store.node_by_slug(slug.clone()).await?;
    let node = node.ok_or_else(|| Problem::unknown_node(&slug))?;
    let event = admin.audit_event(AuditAction::ImagePush, &origin);
    let event = event.to(node.slug.clone());
    let pushed = push_artifact(&state, &admin, &node, request).await;
    let event = match &pushed {
        Ok(pushed) => AuditEvent {
            reason: Some(pushed.images.join(", ")),
            ..event
        },
        Err(error) => event.refused(error.problem()),
    };
    state.identity.record_audit(event).await?;
    pushed
}

async fn push_artifact(
    state: &AppState,
    admin: &Caller,
    node: &Node,
    request: PushImage,
) -> Result<PushedImages, ApiError> {
    let unknown = || {
        let detail = "is not an artifact that you can see; upload the archive first (cynode artifacts upload)";
        Problem::field("/artifact_id", detail)
    };
    let owner = admin.visible_owner();
    let artifact = state.store.artifact_get(request.artifact_id, owner).await?;
    let artifact = artifact.ok_or_else(unknown)?;
    let content = Content {
        sha256: artifact.sha256,
        size_bytes: artifact.size_bytes,
    };
    let _pin = artifacts::pin(state, content.sha256.clone())
        .await?
        .ok_or_else(unknown)?;
    let client = client_of(state, node)?;
    let images = load(state, &client, &content).await?;
    tracing::info!(node = node.slug, images = images.join(" "), "image pushed");
    Ok(PushedImages { images })
}

/// Client of a node that can load images now.
fn client_of<'a>(state: &'a AppState, node: &Node) -> Result<NodeClient<'a>, Problem> {
    let client = nodes::online_client(state, node)?;
    let slug = &node.slug;
    if !node.capability.has_feature(features::IMAGE_LOAD) {
        let detail = format!(
            "node {slug} can't load images: its cynode is too old; update it, or run podman load there"
        );
        return Err(Problem::new(ProblemKind::Conflict, detail));
    }
    Ok(client)
}

/// Has the node load the archive, which is sent where it lacks it.
async fn load(
    state: &AppState,
    client: &NodeClient<'_>,
    content: &Content,
) -> Result<Vec<String>, ApiError> {
    for _ in 0..MAX_ROUNDS {
        let error = match load_once(client, content).await? {
            Ok(images) => return Ok(images),
            Err(error) => error,
        };
        if error.kind != NodeCallErrorKind::ContentMissing {
            return Err(refused(client, error).into());
        }
        let sending = state.jobs.sends.join(client.slug(), &content.sha256);
        let sent = transfer(state, client, content, &sending).await;
        sent.map_err(|error| match error {
            SendError::Unreadable(error) | SendError::Broken(error) => content_error(error.into()),
            SendError::Node(error, _) => refused(client, error).into(),
        })?;
    }
    let detail = format!(
        "node {} does not keep the archive; see whether its disk is full",
        client.slug()
    );
    Err(Problem::new(ProblemKind::Unavailable, detail).into())
}

/// Asks the node to load the archive. Given up where the node falls silent: then it may have loaded it or not.
async fn load_once(
    client: &NodeClient<'_>,
    content: &Content,
) -> Result<Result<Vec<String>, NodeCallError>, Problem> {
    let lost = |how: &str| {
        let slug = client.slug();
        let detail = format!("node {slug} {how}, and may load the image yet; push it again");
        Problem::new(ProblemKind::Unavailable, detail)
    };
    tokio::select! {
        loaded = timeout(LOAD_LIMIT + ANSWER_TIME, client.load_image(&content.sha256)) => {
            loaded.map_err(|_| lost("did not answer in time"))
        }
        () = silence(client) => Err(lost("does not answer any more")),
    }
}

/// Waits until a node does not answer for a while.
async fn silence(client: &NodeClient<'_>) {
    let mut silent = 0;
    while silent < MAX_SILENT_PROBES {
        silent = if client.probe_later().await {
            0
        } else {
            silent + 1
        };
    }
}

/// Problem for an admin of a node's refusal.
fn refused(client: &NodeClient<'_>, error: NodeCallError) -> Problem {
    tracing::warn!(node = client.slug(), %error, "node did not take an image");
    let kind = match error.kind {
        NodeCallErrorKind::Invalid | NodeCallErrorKind::TooLarge => ProblemKind::InvalidRequest,
        NodeCallErrorKind::Conflict
        | NodeCallErrorKind::Unsupported
        | NodeCallErrorKind::NotImplemented => ProblemKind::Conflict,
        _ => ProblemKind::Unavailable,
    };
    let what = match error.kind {
        NodeCallErrorKind::Unreachable => "can't be reached",
        _ => "did not take the image",
    };
    let (slug, reason) = (client.slug(), error.reason.for_admins());
    Problem::new(kind, format!("node {slug} {what}: {reason}"))
}
