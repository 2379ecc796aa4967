//! The sandbox that a call is about, at the node that runs it: one that stays, or that of a running task.

use super::{find, gone, view};
use crate::{
    api::{
        JobId, NodeId, TaskId,
        error::ApiError,
        problem::{Problem, ProblemKind},
        sandboxes::SandboxStatus,
        tasks::TaskStatus,
    },
    identity::Caller,
    orchestrator::{
        AppState,
        task_watch::{TaskState, TaskWatch},
        tasks,
    },
    wait,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Longest wait for a sandbox that does not run yet.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that a node has to answer by itself once its sandbox has ended.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Kind of what a sandbox belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::orchestrator) enum Place {
    /// Sandbox that stays.
    Sandbox,
    /// Task, while it runs.
    Task,
}

/// Sandbox at its node.
pub(super) struct Target {
    pub(super) place: Place,
    /// Sandbox or task.
    pub(super) id: TaskId,
    pub(super) job: JobId,
    pub(super) node: NodeId,
    /// Handle of its user, where that is not the caller.
    pub(super) foreign_owner: Option<String>,
    watch: Arc<TaskWatch>,
}

/// Reason why a node need not be waited for any longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TargetLoss {
    /// The node does not answer.
    Unreachable,
    /// The sandbox has ended.
    Ended,
}

impl Target {
    /// Waits until the node is known not to answer any more.
    pub(super) async fn lost(&self) -> TargetLoss {
        let mut states = self.watch.subscribe();
        let lost = wait::until(&mut states, |state| {
            state.is_unreachable || state.status.is_final()
        });
        match lost.await {
            Ok(state) if !state.status.is_final() => TargetLoss::Unreachable,
            _ => {
                tokio::time::sleep(END_TIMEOUT).await;
                TargetLoss::Ended
            }
        }
    }

    /// Problem of a sandbox that has ended meanwhile.
    pub(super) async fn gone(&self, state: &AppState) -> Problem {
        ended(state, self.place, self.id).await
    }
}

/// Finds the sandbox that `name` names, and waits for a while until it runs.
///
/// Fails with 404 where the caller sees none, with 410 where it has ended, and with 409 where it does not run in time.
pub(super) async fn target(
    state: &AppState,
    caller: &Caller,
    place: Place,
    name: String,
) -> Result<Target, ApiError> {
    let (id, owner, known) = match place {
        Place::Sandbox => {
            let stored = find(state, caller, name).await?;
            if stored.ended_at.is_some() {
                return Err(gone(&stored).into());
            }
            let is_running = view::status(&stored, None) == SandboxStatus::Running;
            let known = stored.node.filter(|_| is_running);
            (
                stored.id,
                stored.owner,
                known.map(|node| (node, stored.job)),
            )
        }
        Place::Task => {
            let task = tasks::find(state, caller, name).await?;
            if task.status.is_final() {
                return Err(ended(state, place, task.id).await.into());
            }
            (task.id, task.details.owner, None)
        }
    };
    let watch = state.jobs.watches.for_task(id);
    let (node, job) = match known {
        Some(known) => known,
        None => wait_for_start(state, place, id, &watch).await?,
    };
    Ok(Target {
        place,
        id,
        job,
        node,
        foreign_owner: owner.filter(|owner| *owner != caller.user.handle),
        watch,
    })
}

/// Waits until the sandbox runs; its node and its job.
async fn wait_for_start(
    state: &AppState,
    place: Place,
    id: TaskId,
    watch: &TaskWatch,
) -> Result<(NodeId, JobId), ApiError> {
    let mut states = watch.subscribe();
    // After the subscription: an end before it shows only here.
    if is_ended(state, place, id).await? {
        return Err(ended(state, place, id).await.into());
    }
    let at_node = |state: &TaskState| state.source.filter(|_| state.has_started);
    let started = wait::until(&mut states, |state| {
        at_node(state).is_some() || state.status.is_final()
    });
    match timeout(START_TIMEOUT, started).await {
        Ok(Ok(now)) => match at_node(&now) {
            Some(source) if !now.status.is_final() => Ok((source.node, source.job)),
            _ => Err(ended(state, place, id).await.into()),
        },
        // The sender lives in `watch`, so only the time can run out.
        _ => Err(not_started(state, place, id).await.into()),
    }
}

async fn is_ended(state: &AppState, place: Place, id: TaskId) -> Result<bool, ApiError> {
    Ok(match place {
        Place::Sandbox => {
            let stored = state.store.sandbox_get(id, None).await?;
            stored.is_none_or(|stored| stored.ended_at.is_some())
        }
        Place::Task => {
            let task = state.store.task_get(id, None).await?;
            task.is_none_or(|task| task.status.is_final())
        }
    })
}

/// 410 of what has ended, with the reason.
async fn ended(state: &AppState, place: Place, id: TaskId) -> Problem {
    match place {
        Place::Sandbox => match state.store.sandbox_get(id, None).await {
            Ok(Some(stored)) if stored.ended_at.is_some() => gone(&stored),
            _ => Problem::new(ProblemKind::Gone, "the sandbox has ended; create a new one"),
        },
        Place::Task => Problem::new(
            ProblemKind::Gone,
            "the task has ended, and its sandbox with it; run it again, or create a sandbox that stays (cynode sandbox \
             create)",
        ),
    }
}

/// 409 of what does not run yet, with what it waits for.
async fn not_started(state: &AppState, place: Place, id: TaskId) -> Problem {
    let what = match place {
        Place::Sandbox => "sandbox",
        Place::Task => "task",
    };
    let status = match state.jobs.watches.current(id) {
        Some(current) => current.status,
        None => TaskStatus::Queued,
    };
    let waiting = tasks::waiting_for(state, id, status).await;
    let waiting = waiting.map_or_else(String::new, |reason| format!(" ({reason})"));
    let seconds = START_TIMEOUT.as_secs();
    let detail = format!(
        "the {what} has not started within {seconds} s{waiting}; send the call again when it runs"
    );
    Problem::new(ProblemKind::Conflict, detail)
}
