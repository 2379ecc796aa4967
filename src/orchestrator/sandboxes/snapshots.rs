//! Snapshots of a user, as the nodes list them: list, delete, and whether there is one.
//!
//! All nodes are asked at once, each for a short time. What they answer is hostile: only images of the user with a valid
//! name count.

use super::{answer, snapshot::note, snapshot_jobs};
use crate::{
    api::{
        UserId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        nodes::{check_slug, features},
        problem::{Problem, ProblemKind},
        snapshots::{
            PREFIX, Snapshot, SnapshotList, StoredSnapshot, image_of, is_snapshot, name_in,
            shown_image,
        },
        time::Time,
    },
    background::run_to_end,
    identity::Caller,
    orchestrator::{AppState, nodes},
    store::Node,
};
use futures_util::future::join_all;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Time for a node to list its snapshots.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a node to delete one.
const DELETE_TIMEOUT: Duration = Duration::from_mins(2);
/// Seconds after which a node that did not answer may.
const RETRY_SECONDS: u64 = 10;
/// Largest size that passes: the largest whole number that all readers of JSON have.
const MAX_SIZE_BYTES: u64 = 1 << 53;

/// Snapshots of a user on all nodes that answered, by name and node.
struct Found {
    snapshots: Vec<(Node, Snapshot)>,
    /// Nodes that did not answer, and may have others.
    unreachable: Vec<Node>,
}

/// Lists the snapshots of the caller.
pub(in crate::orchestrator) async fn list(
    state: &AppState,
    caller: &Caller,
) -> Result<SnapshotList, ApiError> {
    let found = find(state, caller.user.id).await?;
    let snapshots = found.snapshots.into_iter();
    Ok(SnapshotList {
        snapshots: snapshots.map(|(_, snapshot)| snapshot).collect(),
        unreachable_nodes: found
            .unreachable
            .into_iter()
            .map(|node| node.slug)
            .collect(),
    })
}

/// Deletes a snapshot of the caller. Fails with 404 where there is none, with 409 while a sandbox uses it, and with 503
/// where its node does not answer. Queued tasks and sandboxes that wait for it are a 409, too, unless the call `is_forced`:
/// then they end. Goes on if the caller hangs up.
pub(in crate::orchestrator) async fn delete(
    state: &Arc<AppState>,
    caller: &Caller,
    name: String,
    is_forced: bool,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    if check_slug("", &name).is_err() {
        return Err(Problem::unknown_snapshot(&name).into());
    }
    let event = caller.audit_event(AuditAction::SnapshotDelete, origin);
    let event = event.to(name.clone());
    let (shared, user) = (Arc::clone(state), caller.user.id);
    let deleted = run_to_end("delete_snapshot", async move {
        delete_and_record(&shared, user, &name, is_forced, event).await
    });
    deleted.await.map_err(ApiError::internal)?
}

/// Deletes a snapshot, and records what became of it.
async fn delete_and_record(
    state: &AppState,
    user: UserId,
    name: &str,
    is_forced: bool,
    event: AuditEvent,
) -> Result<(), ApiError> {
    let deletion = delete_unless_awaited(state, user, name, is_forced).await;
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
    user: UserId,
    name: &str,
    is_forced: bool,
) -> Result<Deletion, ApiError> {
    if !is_forced && let Some(problem) = snapshot_jobs::awaited_by(state, user, name).await? {
        return Err(problem.into());
    }
    let deletion = delete_everywhere(state, user, name).await?;
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

/// Fails where an image is a snapshot of this user that no node has. A node that can't tell all its images may have it.
pub(in crate::orchestrator) async fn check_known(
    state: &AppState,
    user: UserId,
    image: &str,
) -> Result<(), ApiError> {
    if !is_snapshot(image) {
        return Ok(());
    }
    let may_have = |node: &Node| {
        let report = &node.capability;
        report.has_local_image(image) || (can_save(node) && report.local_images().is_none())
    };
    if state.store.node_list().await?.iter().any(may_have) {
        return Ok(());
    }
    // A report may be older than the snapshot.
    let shown = shown_image(image.to_owned());
    let found = find(state, user).await?;
    let newer = found
        .snapshots
        .iter()
        .find(|(_, snapshot)| snapshot.image == shown);
    if let Some((node, _)) = newer {
        note(state, node, image, true).await;
        return Ok(());
    }
    let name = shown.strip_prefix(PREFIX).unwrap_or(&shown);
    let detail = format!(
        "names the snapshot {name}, which you don't have; list yours with: cynode sandbox snapshots"
    );
    Err(Problem::field("/image", detail).into())
}

fn can_save(node: &Node) -> bool {
    node.capability.has_feature(features::SNAPSHOTS)
}

/// Asks all nodes for the snapshots of a user.
async fn find(state: &AppState, user: UserId) -> Result<Found, ApiError> {
    let nodes = state.store.node_list().await?;
    let asked = nodes.into_iter().filter(can_save).map(|node| async move {
        let answer = list_at(state, &node).await;
        (node, answer)
    });
    let mut found = Found {
        snapshots: Vec::new(),
        unreachable: Vec::new(),
    };
    for (node, answer) in join_all(asked).await {
        match answer {
            Ok(stored) => {
                let own = own(&node.slug, user, &stored).into_values();
                let own = own.map(|snapshot| (node.clone(), snapshot));
                found.snapshots.extend(own);
            }
            Err(NoAnswer::Silent) => found.unreachable.push(node),
            Err(NoAnswer::Offline) if names_own(&node, user) => found.unreachable.push(node),
            Err(NoAnswer::Offline) => {}
        }
    }
    let order =
        |(_, snapshot): &(Node, Snapshot)| (snapshot.name.clone(), snapshot.node_slug.clone());
    found.snapshots.sort_by_cached_key(order);
    Ok(found)
}

/// Whether the last report of a node names a snapshot of this user.
fn names_own(node: &Node, user: UserId) -> bool {
    let images = node.capability.local_images().unwrap_or_default();
    images.iter().any(|image| name_in(image, user).is_some())
}

/// Reason for which a node's snapshots are unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NoAnswer {
    /// It was not asked.
    Offline,
    /// It was asked, and did not answer as it should.
    Silent,
}

async fn list_at(state: &AppState, node: &Node) -> Result<Vec<StoredSnapshot>, NoAnswer> {
    let client = nodes::online_client(state, node).map_err(|_| NoAnswer::Offline)?;
    match timeout(LIST_TIMEOUT, client.snapshots()).await {
        Ok(Ok(listed)) => Ok(listed.snapshots),
        Ok(Err(error)) => {
            tracing::warn!(node = node.slug, %error, "node did not list its snapshots");
            Err(NoAnswer::Silent)
        }
        Err(_) => Err(NoAnswer::Silent),
    }
}

/// Snapshots of a user among those of a node, by name.
fn own(slug: &str, user: UserId, stored: &[StoredSnapshot]) -> BTreeMap<String, Snapshot> {
    let own = stored.iter().filter_map(|stored| {
        let snapshot = shown(slug, user, stored)?;
        Some((snapshot.name.clone(), snapshot))
    });
    own.collect()
}

/// Snapshot of a user as the node of this slug stores it; `None` where it is another's, or is not valid.
pub(super) fn shown(slug: &str, user: UserId, stored: &StoredSnapshot) -> Option<Snapshot> {
    let name = name_in(&stored.image, user)?;
    check_slug("", name).ok()?;
    Some(Snapshot {
        name: name.to_owned(),
        image: format!("{PREFIX}{name}"),
        node_slug: slug.to_owned(),
        owner: None,
        size_bytes: stored.size_bytes.min(MAX_SIZE_BYTES),
        // The clock of the node may be ahead.
        created_at: stored.created_at.min(Time::now()),
    })
}

/// Deletes a snapshot on each node that has it. One that fails does not keep it on the others; the first failure counts.
async fn delete_everywhere(
    state: &AppState,
    user: UserId,
    name: &str,
) -> Result<Deletion, ApiError> {
    let image = image_of(user, name);
    let found = find(state, user).await?;
    let holders = found.snapshots.iter();
    let holders = holders.filter(|(_, snapshot)| snapshot.name == name);
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
            None => Problem::unknown_snapshot(name),
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
    use crate::api::audit::AuditOutcome;

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

    #[test]
    fn only_valid_snapshots_of_user_count() {
        let (ann, bob) = (UserId::new(), UserId::new());
        let stored = |image: String| StoredSnapshot {
            image,
            image_id: String::new(),
            size_bytes: u64::MAX,
            created_at: Time::now().plus(Duration::from_hours(9)),
        };
        let all = [
            stored(image_of(ann, "b")),
            stored(image_of(ann, "a")),
            stored(image_of(ann, "a")),
            stored(image_of(bob, "c")),
            stored(image_of(ann, "\u{1b}[2J")),
            stored(image_of(ann, "")),
            stored("localhost/tool:1".to_owned()),
        ];
        let own = own("box", ann, &all);
        let names: Vec<_> = own.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b"]);
        let shown = &own["a"];
        assert_eq!(shown.image, "snapshot:a");
        assert_eq!(shown.node_slug, "box");
        assert_eq!(shown.size_bytes, MAX_SIZE_BYTES);
        assert!(shown.created_at <= Time::now());
    }
}
