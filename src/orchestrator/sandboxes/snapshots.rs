//! Snapshots of a user: delete one, and whether there is one. Nodes [list](super::snapshot_list) them.

use super::{
    answer,
    snapshot::note,
    snapshot_jobs,
    snapshot_list::{Owners, can_save, find, user_of_handle},
};
use crate::{
    api::{
        UserId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        nodes::check_slug,
        problem::{Problem, ProblemKind},
        snapshots::{PREFIX, image_of, is_snapshot, shown_image},
    },
    background::run_to_end,
    identity::Caller,
    orchestrator::{AppState, nodes},
    store::Node,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Time for a node to delete one.
const DELETE_TIMEOUT: Duration = Duration::from_mins(2);
/// Seconds after which a node that did not answer may.
const RETRY_SECONDS: u64 = 10;

/// Request to delete a snapshot.
pub(in crate::orchestrator) struct DeleteSnapshot {
    /// Name of the snapshot.
    pub(in crate::orchestrator) name: String,
    /// Handle of its user, where an admin names one; else it is the caller's.
    pub(in crate::orchestrator) user: Option<String>,
    /// Whether it is deleted also where queued jobs wait for it.
    pub(in crate::orchestrator) is_forced: bool,
}

/// Snapshot that is to be deleted.
struct Subject {
    user: UserId,
    /// Handle of that user, where it is not the caller.
    owner: Option<String>,
    name: String,
}

impl Subject {
    /// Image of the snapshot.
    fn image(&self) -> String {
        image_of(self.user, &self.name)
    }

    /// Text that names it in the audit log.
    fn audit_target(&self) -> String {
        match &self.owner {
            Some(owner) => format!("{} of {owner}", self.name),
            None => self.name.clone(),
        }
    }

    /// 404 of a snapshot that is not there.
    fn unknown(&self) -> Problem {
        let Some(owner) = &self.owner else {
            return Problem::unknown_snapshot(&self.name);
        };
        let detail = format!(
            "{owner} has no snapshot of this name; cynode sandbox snapshots --user {owner} lists those there are"
        );
        Problem::new(ProblemKind::NotFound, detail)
    }
}

/// Deletes a snapshot of the caller, or of the user that an admin names. Goes on if the caller hangs up.
///
/// Fails with 404 where there is none, with 409 while a sandbox uses it, and with 503 where its node does not answer.
/// Queued tasks and sandboxes that wait for it are a 409, too, unless the call is forced: then they end.
pub(in crate::orchestrator) async fn delete(
    state: &Arc<AppState>,
    caller: &Caller,
    request: DeleteSnapshot,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    let DeleteSnapshot {
        name,
        user,
        is_forced,
    } = request;
    let (user, owner) = match user {
        Some(handle) => {
            let (user, handle) = user_of_handle(state, &handle).await?;
            (user, Some(handle).filter(|_| user != caller.user.id))
        }
        None => (caller.user.id, None),
    };
    let subject = Subject { user, owner, name };
    if check_slug("", &subject.name).is_err() {
        return Err(subject.unknown().into());
    }
    let event = caller.audit_event(AuditAction::SnapshotDelete, origin);
    let event = event.to(subject.audit_target());
    let shared = Arc::clone(state);
    let deleted = run_to_end("delete_snapshot", async move {
        delete_and_record(&shared, &subject, is_forced, event).await
    });
    deleted.await.map_err(ApiError::internal)?
}

/// Deletes a snapshot, and records what became of it.
async fn delete_and_record(
    state: &AppState,
    subject: &Subject,
    is_forced: bool,
    event: AuditEvent,
) -> Result<(), ApiError> {
    let deletion = delete_unless_awaited(state, subject, is_forced).await;
    let deletion = deletion.unwrap_or_else(|error| Deletion {
        slugs: Vec::new(),
        failure: Some(error),
    });
    let event = deletion.describe(event);
    state.identity.record_audit(event).await?;
    deletion.failure.map_or(Ok(()), Err)
}

/// Deletes a snapshot that no queued job waits for, or any where the call `is_forced`. Once it is gone, jobs that wait for
/// it end.
async fn delete_unless_awaited(
    state: &AppState,
    subject: &Subject,
    is_forced: bool,
) -> Result<Deletion, ApiError> {
    let (user, name) = (subject.user, subject.name.as_str());
    if !is_forced && let Some(problem) = snapshot_jobs::awaited_by(state, user, name).await? {
        return Err(problem.into());
    }
    let deletion = delete_everywhere(state, subject).await?;
    if deletion.failure.is_none() {
        snapshot_jobs::fail_waiting(state, user, name).await;
    }
    Ok(deletion)
}

/// What became of a snapshot that was to be deleted.
#[derive(Debug, Default)]
struct Deletion {
    /// Slugs of the nodes that have deleted it.
    slugs: Vec<String>,
    /// Why it is not gone everywhere.
    failure: Option<ApiError>,
}

impl Deletion {
    /// Event that says what became of it: also after a failure, where it is gone.
    fn describe(&self, event: AuditEvent) -> AuditEvent {
        let slugs = self.slugs.join(", ");
        let Some(error) = &self.failure else {
            return event.with_details(slugs);
        };
        if slugs.is_empty() {
            return event.refused(error.problem());
        }
        let kind = error.kind().slug();
        event.failed(&format!("{kind}; deleted on {slugs}"))
    }
}

/// Fails where an image is a snapshot of this user that no node has.
pub(in crate::orchestrator) async fn check_known(
    state: &AppState,
    user: UserId,
    image: &str,
) -> Result<(), ApiError> {
    if !is_snapshot(image) || is_known(state, user, image).await? == Some(true) {
        return Ok(());
    }
    let shown = shown_image(image.to_owned());
    let name = shown.strip_prefix(PREFIX).unwrap_or(&shown);
    let detail = format!(
        "names the snapshot {name}, which you don't have; list yours with: cynode sandbox snapshots"
    );
    Err(Problem::field("/image", detail).into())
}

/// Whether a node has this snapshot of a user, as far as known. One that is offline, or can't tell all its images, may.
/// `None` where a node that may have a new one does not answer.
pub(super) async fn is_known(
    state: &AppState,
    user: UserId,
    image: &str,
) -> Result<Option<bool>, ApiError> {
    let may_have = |node: &Node| {
        let report = &node.capability;
        report.has_local_image(image) || (can_save(node) && report.local_images().is_none())
    };
    if state.store.node_list().await?.iter().any(may_have) {
        return Ok(Some(true));
    }
    // A report may be older than the snapshot.
    let shown = shown_image(image.to_owned());
    let found = find(state, &Owners::one(user)).await?;
    let newer = found
        .snapshots
        .iter()
        .find(|(_, snapshot)| snapshot.image == shown);
    let Some((node, _)) = newer else {
        return Ok(found.unreachable.is_empty().then_some(false));
    };
    note(state, node, image, true).await;
    Ok(Some(true))
}

/// Deletes a snapshot on each node that has it. One that fails does not keep it on the others; the first failure counts.
async fn delete_everywhere(state: &AppState, subject: &Subject) -> Result<Deletion, ApiError> {
    let image = subject.image();
    let found = find(state, &Owners::one(subject.user)).await?;
    let holders = found.snapshots.iter();
    let holders = holders.filter(|(_, snapshot)| snapshot.name == subject.name);
    let mut deletion = Deletion::default();
    for (node, _) in holders {
        let slug = &node.slug;
        match delete_at(state, node, &image).await {
            Ok(()) => {
                note(state, node, &image, false).await;
                tracing::info!(node = slug, image, "snapshot deleted");
                deletion.slugs.push(slug.clone());
            }
            Err(error) => {
                let reason = &error.problem().detail;
                tracing::info!(node = slug, image, reason, "snapshot not deleted");
                deletion.failure.get_or_insert(error);
            }
        }
    }
    if deletion.slugs.is_empty() && deletion.failure.is_none() {
        let may_have = |node: &&Node| node.capability.has_local_image(&image);
        let problem = match found.unreachable.iter().find(may_have) {
            Some(node) => silent(&node.slug),
            None => subject.unknown(),
        };
        deletion.failure = Some(problem.into());
    }
    Ok(deletion)
}

async fn delete_at(state: &AppState, node: &Node, image: &str) -> Result<(), ApiError> {
    let slug = &node.slug;
    let client = nodes::online_client(state, node).map_err(|_| silent(slug))?;
    let answer = timeout(DELETE_TIMEOUT, client.delete_snapshot(image)).await;
    let answer = answer.map_err(|_| silent(slug))?;
    let answer = answer.map_err(|error| silent(slug).caused_by(error))?;
    if answer.status().is_success() {
        return Ok(());
    }
    let problem = answer::problem(answer, slug).await;
    // Another call has deleted it meanwhile.
    if problem.kind == ProblemKind::NotFound {
        return Ok(());
    }
    Err(problem.into())
}

fn silent(slug: &str) -> Problem {
    let detail = format!(
        "the node {slug}, which has the snapshot, does not answer; delete it when the node is online"
    );
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{audit::AuditOutcome, time::Time};

    #[test]
    fn audit_names_nodes_that_deleted() {
        let describe = |slugs: &[&str], failure: Option<Problem>| {
            let deletion = Deletion {
                slugs: slugs.iter().map(|&slug| slug.to_owned()).collect(),
                failure: failure.map(ApiError::from),
            };
            let event = AuditEvent::new(AuditAction::SnapshotDelete, Time::now(), None);
            let event = deletion.describe(event);
            (event.outcome, event.reason.unwrap_or_default())
        };
        let success = (AuditOutcome::Success, "a, b".to_owned());
        assert_eq!(describe(&["a", "b"], None), success);
        let kind = ProblemKind::Unavailable.slug();
        let (outcome, reason) = describe(&["a"], Some(silent("b")));
        assert_eq!(outcome, AuditOutcome::Failure);
        assert_eq!(reason, format!("{kind}; deleted on a"));
        let (outcome, reason) = describe(&[], Some(silent("b")));
        assert_eq!((outcome, reason.as_str()), (AuditOutcome::Failure, kind));
    }
}
