//! Queued jobs that wait for a snapshot: they keep it from being deleted, and end where it is deleted nevertheless.
//!
//! No other node can run them, so without their snapshot they would stay queued for ever. A job that is queued while the
//! snapshot is being deleted ends as well: its creation looks at the snapshot before the job is stored, and again after
//! that. One of both calls sees the other, since the deletion fails jobs after the snapshot is gone.
//!
//! A job that ran when its snapshot was deleted may be queued again, and a node may be forgotten with its snapshots or lose
//! them. Those jobs are found by a sweep.

use super::snapshots::is_known;
use crate::{
    api::{
        UserId,
        problem::{Problem, ProblemKind},
        snapshots::{PREFIX, image_of, user_and_name},
        time::Time,
    },
    errors,
    orchestrator::{AppState, refusals},
    store::{SnapshotWaiter, StoreError},
};
use std::collections::BTreeSet;

/// Snapshots of users that no node had at the last sweep, though jobs wait for them.
#[derive(Default)]
pub(in crate::orchestrator) struct MissingSnapshots(BTreeSet<(UserId, String)>);

/// Number of waiting tasks and sandboxes that an error names.
const NAMED_LIMIT: usize = 3;

/// 409 that names the queued tasks and sandboxes of a user that wait for the snapshot of this name; `None` without any.
pub(super) async fn awaited_by(
    state: &AppState,
    user: UserId,
    name: &str,
) -> Result<Option<Problem>, StoreError> {
    let lanes = state
        .store
        .lane_list_of_snapshot(user, &image_of(user, name));
    if lanes.is_empty() {
        return Ok(None);
    }
    let waiters = state.store.snapshot_waiters(lanes, NAMED_LIMIT + 1).await?;
    Ok((!waiters.is_empty()).then(|| awaited(name, &waiters)))
}

/// Problem of a snapshot that these tasks and sandboxes wait for.
fn awaited(name: &str, waiters: &[SnapshotWaiter]) -> Problem {
    let named = waiters.iter().take(NAMED_LIMIT).map(|waiter| {
        let kind = if waiter.is_sandbox { "sandbox" } else { "task" };
        match &waiter.name {
            Some(name) => format!("{kind} {name}"),
            None => format!("{kind} {}", waiter.task),
        }
    });
    let mut named = named.collect::<Vec<_>>().join(", ");
    if waiters.len() > NAMED_LIMIT {
        named.push_str(" and others");
    }
    let detail = format!(
        "queued tasks or sandboxes wait for the snapshot {name}: {named}; wait until they have started, cancel them (cynode \
         task cancel, cynode sandbox rm), or delete it with force=true (cynode sandbox rm-snapshot --force), which ends them"
    );
    Problem::new(ProblemKind::Conflict, detail)
}

/// Fails a job of a user that was just queued, and others like it, where its `image` is a snapshot that was deleted
/// meanwhile. A snapshot of a node that is offline is not.
pub(in crate::orchestrator) async fn fail_if_deleted(state: &AppState, user: UserId, image: &str) {
    let Some((_, name)) = user_and_name(image) else {
        return;
    };
    match is_known(state, user, image).await {
        Ok(Some(false)) => fail_waiting(state, user, name).await,
        Ok(Some(true) | None) => {}
        Err(error) => {
            let reason = &error.problem().detail;
            tracing::warn!(
                reason,
                "snapshot of a new job not looked up; if it was deleted, the job stays queued until it is canceled"
            );
        }
    }
}

/// Fails the queued jobs of a user that wait for the snapshot of this name, which was deleted, unless a node has it still.
pub(super) async fn fail_waiting(state: &AppState, user: UserId, name: &str) {
    let summary = format!("its image {PREFIX}{name} was deleted before it started");
    if let Err(error) = try_fail_waiting(state, user, name, &summary).await {
        let error = errors::chain(&error);
        tracing::warn!(
            error,
            "jobs of a deleted snapshot can't be ended; they stay queued until they are canceled"
        );
    }
}

/// Fails queued jobs whose snapshot no node has any more, at this sweep and the one before: a node that was forgotten may
/// register again within seconds. Nodes are asked only about snapshots that no report names; a node that does not answer
/// may have them.
pub(in crate::orchestrator) async fn fail_orphaned(
    state: &AppState,
    missing: &mut MissingSnapshots,
) -> Result<(), StoreError> {
    let before = std::mem::take(&mut missing.0);
    let lanes = state.store.lane_list_of_snapshots().into_iter();
    let wanted = lanes.filter_map(|lane| {
        let image = lane.placement.snapshot()?.to_owned();
        Some((lane.user, image))
    });
    let wanted: BTreeSet<(UserId, String)> = wanted.collect();
    for (user, image) in wanted {
        let Some((_, name)) = user_and_name(&image) else {
            continue;
        };
        let known = is_known(state, user, &image).await;
        match known {
            Ok(Some(false)) if !before.contains(&(user, image.clone())) => {
                missing.0.insert((user, image));
            }
            Ok(Some(false)) => {
                let summary = format!(
                    "no node has its image {PREFIX}{name} any more: the snapshot was deleted, or its node was forgotten"
                );
                try_fail_waiting(state, user, name, &summary).await?;
            }
            Ok(Some(true) | None) => {}
            Err(error) => {
                let reason = &error.problem().detail;
                tracing::debug!(
                    image,
                    reason,
                    "snapshot of queued jobs not looked up; retrying"
                );
            }
        }
    }
    Ok(())
}

async fn try_fail_waiting(
    state: &AppState,
    user: UserId,
    name: &str,
    summary: &str,
) -> Result<(), StoreError> {
    let image = image_of(user, name);
    let nodes = state.store.node_list().await?;
    if nodes
        .iter()
        .any(|node| node.capability.has_local_image(&image))
    {
        return Ok(());
    }
    for lane in state.store.lane_list_of_snapshot(user, &image) {
        // A read has a limit; jobs that ended are not in the next one.
        loop {
            let mut has_ended = false;
            for job in state.store.lane_refusals(lane.clone()).await? {
                has_ended |= refusals::fail(state, &job, summary, Time::now()).await?;
            }
            if !has_ended {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TaskId;

    #[test]
    fn refusal_names_those_that_wait() {
        let waiter = |name: &str, is_sandbox| SnapshotWaiter {
            task: TaskId::new(),
            name: Some(name.to_owned()),
            is_sandbox,
        };
        let mut waiters = vec![waiter("build-2", false), waiter("dev", true)];
        let detail = awaited("base", &waiters).detail;
        assert!(
            detail.contains("base: task build-2, sandbox dev; "),
            "{detail}"
        );
        let nameless = SnapshotWaiter {
            name: None,
            ..waiter("", false)
        };
        let id = nameless.task;
        waiters.extend([nameless, waiter("last", true)]);
        let detail = awaited("base", &waiters).detail;
        let expected = format!("sandbox dev, task {id} and others; ");
        assert!(detail.contains(&expected), "{detail}");
    }
}
