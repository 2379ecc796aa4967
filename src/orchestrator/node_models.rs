//! Use cases of the models of a node, for admins: list, pull and delete.
//!
//! The node is asked, since its report may be seconds old; after a change, so that the model can be asked for, or no longer,
//! before the admin sees the end. A pull is followed in the background, so that the audit log says
//! how it ended; it ends when the admin leaves.

use super::{
    AppState,
    node_client::{ModelPull, NodeCallError, NodeCallErrorKind, NodeClient},
    nodes,
    reason::sanitize,
};
use crate::{
    api::{
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        models::{NodeModels, PullEnd, PullEvent, PullModel, PullProgress, PullStatus},
        nodes::{ModelDetails, check_model},
        problem::{Problem, ProblemKind},
    },
    background, errors,
    identity::Caller,
    store::Node,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

/// Events of a pull that wait for a slow reader; further progress is dropped meanwhile.
const EVENT_BUFFER: usize = 16;
/// Time for a node to list its models after a change. Its next report has them, too.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);

/// Lists the models of a node. One whose release can't be asked has those of its report.
pub(super) async fn list(state: &AppState, slug: String) -> Result<NodeModels, ApiError> {
    let node = find(state, slug).await?;
    let client = nodes::online_client(state, &node)?;
    let models = match client.models().await {
        Ok(models) => models,
        Err(error) if error.kind.is_unsupported() => reported(&node),
        Err(error) => return Err(refused(&client, error).into()),
    };
    Ok(NodeModels {
        node_slug: node.slug,
        models,
    })
}

/// Starts the pull of a model, whose events are received until its end. The end of the admin's session ends the pull;
/// `revocations` has to be subscribed before the admin is authenticated, so that no end is missed.
pub(super) async fn pull(
    state: Arc<AppState>,
    (admin, revocations): (Caller, watch::Receiver<()>),
    slug: String,
    request: PullModel,
    origin: RequestOrigin,
) -> Result<mpsc::Receiver<PullEvent>, ApiError> {
    let PullModel { model } = request;
    check_model("/model", &model)?;
    let node = find(&state, slug).await?;
    let event = admin.audit_event(AuditAction::ModelPull, &origin);
    let event = AuditEvent {
        reason: Some(model.clone()),
        ..event.to(node.slug.clone())
    };
    let started = start_pull(&state, &node, &model).await;
    let pull = match started {
        Ok(pull) => pull,
        Err(problem) => {
            state
                .identity
                .record_audit(refused_event(event, &problem))
                .await?;
            return Err(problem.into());
        }
    };
    let (to, events) = mpsc::channel(EVENT_BUFFER);
    background::spawn("pull_model", async move {
        let end = tokio::select! {
            end = follow(pull, &to) => end,
            () = state.identity.ended(&admin, revocations) => {
                PullEnd::failed("the session of the caller has ended")
            }
        };
        if end.status == PullStatus::Completed {
            refresh(&state, &node).await;
        }
        tracing::info!(
            node = node.slug,
            model,
            status = end.status.as_str(),
            error = end.error,
            "pull of a model ended"
        );
        let event = match &end.error {
            None => event,
            Some(error) => {
                let problem = Problem::new(ProblemKind::Unavailable, error.clone());
                refused_event(event, &problem)
            }
        };
        if let Err(error) = state.identity.record_audit(event).await {
            let error = error.cause().map(errors::chain);
            tracing::error!(error, "pull of a model was not recorded in the audit log");
        }
        // The reader may have left.
        let _ = to.send(PullEvent::End(end)).await;
    });
    Ok(events)
}

/// Deletes a model of a node.
pub(super) async fn delete(
    state: &AppState,
    admin: &Caller,
    (slug, model): (String, String),
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    check_model("/model", &model)?;
    let node = find(state, slug).await?;
    let event = admin.audit_event(AuditAction::ModelDelete, origin);
    let event = AuditEvent {
        reason: Some(model.clone()),
        ..event.to(node.slug.clone())
    };
    let deleted = delete_at(state, &node, &model).await;
    if deleted.is_ok() {
        refresh(state, &node).await;
    }
    let event = match &deleted {
        Ok(()) => event,
        Err(problem) => refused_event(event, problem),
    };
    state.identity.record_audit(event).await?;
    Ok(deleted?)
}

/// Same event, of an action that failed; its reason keeps the model.
fn refused_event(event: AuditEvent, problem: &Problem) -> AuditEvent {
    let model = event.reason.clone().unwrap_or_default();
    AuditEvent {
        reason: Some(format!("{}: {model}", problem.kind.slug())),
        ..event.refused(problem)
    }
}

async fn find(state: &AppState, slug: String) -> Result<Node, ApiError> {
    let node = state.store.node_by_slug(slug.clone()).await?;
    Ok(node.ok_or_else(|| Problem::unknown_node(&slug))?)
}

async fn start_pull(state: &AppState, node: &Node, model: &str) -> Result<ModelPull, Problem> {
    let client = nodes::online_client(state, node)?;
    let pull = client.pull_model(model).await;
    pull.map_err(|error| refused(&client, error))
}

async fn delete_at(state: &AppState, node: &Node, model: &str) -> Result<(), Problem> {
    let client = nodes::online_client(state, node)?;
    let deleted = client.delete_model(model).await;
    deleted.map_err(|error| match error.kind {
        NodeCallErrorKind::NotFound => {
            let slug = client.slug();
            let detail = format!(
                "node {slug} has no model {model}; list those that it has with: cynode models list"
            );
            Problem::new(ProblemKind::NotFound, detail)
        }
        _ => refused(&client, error),
    })
}

/// Stores the models that a node has now. Where it can't say, its next report does.
async fn refresh(state: &AppState, node: &Node) {
    let stored = async {
        let client = nodes::online_client(state, node).map_err(|problem| problem.detail)?;
        let listed = timeout(REFRESH_TIMEOUT, client.models()).await;
        let listed = listed.map_err(|error| error.to_string())?;
        let models = listed.map_err(|error| error.to_string())?;
        let stored = state.store.node_set_models(node.id, models).await;
        stored.map_err(|error| errors::chain(&error))
    };
    if let Err(reason) = stored.await {
        let node = &node.slug;
        tracing::warn!(
            node,
            reason,
            "models of a node are unknown until its next report"
        );
    }
}

/// Forwards the progress of a pull up to its end, or until the reader leaves.
async fn follow(mut pull: ModelPull, to: &mpsc::Sender<PullEvent>) -> PullEnd {
    loop {
        let event = tokio::select! {
            event = pull.next() => event,
            () = to.closed() => return PullEnd::failed("the caller has left"),
        };
        match event {
            Ok(Some(PullEvent::Progress(progress))) => {
                // A slow reader gets a later one.
                let _ = to.try_send(PullEvent::Progress(cleaned(progress)));
            }
            Ok(Some(PullEvent::End(end))) => {
                return match end.status {
                    PullStatus::Completed => end,
                    PullStatus::Failed => {
                        let error = end.error.as_deref().map(sanitize);
                        PullEnd::failed(error.unwrap_or_else(|| "no reason given".to_owned()))
                    }
                };
            }
            Ok(None) => return PullEnd::failed("the node ended the pull; pull the model again"),
            Err(error) => return PullEnd::failed(error.reason.for_admins()),
        }
    }
}

/// Same progress, with the node's own text fit for a terminal.
fn cleaned(progress: PullProgress) -> PullProgress {
    PullProgress {
        status: sanitize(&progress.status),
        digest: progress
            .digest
            .filter(|digest| ModelDetails::is_valid_digest(digest)),
        ..progress
    }
}

/// Models in the last report of a node.
fn reported(node: &Node) -> Vec<ModelDetails> {
    let inference = node.capability.inference.as_ref();
    inference
        .map(|known| known.known_models())
        .unwrap_or_default()
}

/// Problem for an admin of a node's refusal.
fn refused(client: &NodeClient<'_>, error: NodeCallError) -> Problem {
    let slug = client.slug();
    tracing::warn!(node = slug, %error, "node refused a call about models");
    if error.kind.is_unsupported() {
        let detail =
            format!("node {slug} can't change its models: its cynode is too old; update it");
        return Problem::new(ProblemKind::Conflict, detail);
    }
    let kind = match error.kind {
        NodeCallErrorKind::Invalid => ProblemKind::InvalidRequest,
        _ => ProblemKind::Unavailable,
    };
    let reason = error.reason.for_admins();
    Problem::new(kind, format!("node {slug} did not do it: {reason}"))
}
