//! Use cases of tasks: create, list, show, result, cancel, delete.
//!
//! Each takes the authenticated [`Caller`] and data, and returns data or an [`ApiError`]; no HTTP. A caller
//! sees their own tasks, an admin everybody's. A task is named by its id, by its name, or by the beginning
//! of its id.

use super::{
    AppState,
    artifacts::{self, StoredInputs},
    cancel::{self, CancelError},
    readiness, sandboxes, secrets, task_log, waiting,
};
use crate::{
    api::{
        JobId, TaskId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        jobs::files::ContentHash,
        problem::{Problem, ProblemKind},
        snapshots::{is_snapshot, resolve_image},
        tasks::{CancelAnswer, CreateTask, Task, TaskList, TaskResult, TaskStatus},
        time::Time,
    },
    background::run_to_end,
    identity::Caller,
    store::{
        CreateOutcome, DeleteOutcome, IdempotencyKey, MAX_LANES_PER_USER, MAX_OFFSET, StoreError,
        TaskFilter, TaskMatch,
    },
};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// Seconds after which a full queue may have room.
const QUEUE_FULL_RETRY_SECONDS: u64 = 5;
/// Seconds after which the outcome of an undecided cancel may be known.
const UNDECIDED_RETRY_SECONDS: u64 = 5;

/// Creates a task, which is stored when this returns. The same `idempotency_key` with the same request
/// returns the task that the first call created.
///
/// Fails where a field is invalid, a host is not allowed, there is no such snapshot or secret, the key was used for another
/// request, or the queue is full.
pub(super) async fn create(
    state: &Arc<AppState>,
    caller: &Caller,
    mut request: CreateTask,
    idempotency_key: Option<String>,
    origin: &RequestOrigin,
) -> Result<Task, ApiError> {
    let key = match idempotency_key {
        Some(key) => Some(IdempotencyKey {
            key,
            body_sha256: digest(&request)?,
        }),
        None => None,
    };
    let inputs = request.take_inputs()?;
    if request.is_for_model() && request.model.is_none() {
        request.model.clone_from(&state.settings.default_model);
    }
    request.image = resolve_image(request.image.take(), caller.user.id)?;
    let egress = request.egress.clone();
    let mut spec = request.resolve(state.settings.default_image.as_str())?;
    let mut stored = StoredInputs::default();
    let sandbox = &spec.sandbox;
    let is_fixed = inputs.is_empty() && egress.is_none() && sandbox.secrets.is_empty();
    if !is_fixed || is_snapshot(&sandbox.image) {
        // What the first request named may be gone by now, and the operator may have shortened the list of hosts.
        if let Some(key) = &key
            && let Some(outcome) = state
                .store
                .task_repeated(caller.user.id, key.clone())
                .await?
        {
            return created(state, outcome).await;
        }
    }
    if let Some(egress) = &egress {
        state.settings.egress.check(egress)?;
    }
    sandboxes::check_snapshot(state, caller.user.id, &spec.sandbox.image).await?;
    secrets::check(state, caller.user.id, &spec.sandbox).await?;
    let secrets_used = secrets::use_event(caller, &spec.sandbox, origin);
    if !inputs.is_empty() {
        stored = artifacts::store_inputs(state, caller, inputs).await?;
        spec.sandbox.files = std::mem::take(&mut stored.files);
        spec.sandbox.stdin = stored.stdin.take();
    }
    let (user, image) = (caller.user.id, spec.sandbox.image.clone());
    let (authority, shared) = (caller.authority(), Arc::clone(state));
    let outcome = run_to_end("create_task", async move {
        let AppState {
            store, settings, ..
        } = &*shared;
        let (limits, now) = (settings.queue, Time::now());
        let outcome = store
            .task_create(authority, spec, key, limits, secrets_used, now)
            .await;
        if let Ok(CreateOutcome::Created(task)) = &outcome {
            shared.metrics.record_created();
            task_log::created(task.id);
            shared.jobs.wake.notify_one();
            stored.release();
            sandboxes::fail_if_deleted(&shared, user, &image).await;
        }
        outcome
    });
    created(state, outcome.await.map_err(ApiError::internal)??).await
}

/// Digest of a request as it was understood: neither white space nor the order of fields makes another one.
fn digest(request: &CreateTask) -> Result<String, ApiError> {
    let mut hasher = Sha256::new();
    serde_json::to_writer(&mut hasher, request).map_err(ApiError::internal)?;
    Ok(ContentHash::from_digest(&hasher.finalize().into()).to_string())
}

/// Task of an outcome, or the problem that it is.
async fn created(state: &AppState, outcome: CreateOutcome) -> Result<Task, ApiError> {
    match outcome {
        CreateOutcome::Created(task) => Ok(with_expected_timeout(state, task).await),
        CreateOutcome::Repeated(task) => Ok(with_expected_timeout(state, task.as_created()).await),
        CreateOutcome::QueueFull(queue) => Err(queue_full(format!(
            "{queue} is full; wait until some of its tasks have started, then try again"
        ))
        .into()),
        CreateOutcome::TooManyLanes => Err(queue_full(format!(
            "your queued tasks have {MAX_LANES_PER_USER} different requirements on nodes (node_labels, gpus and the like), \
             which is the limit; wait until some have started, or cancel some, then try again"
        ))
        .into()),
        CreateOutcome::KeyReused => Err(Problem::new(
            ProblemKind::IdempotencyKeyReused,
            "this Idempotency-Key was used for another request; choose a new key for a new task",
        )
        .into()),
    }
}

/// Adds the time limit that a queued task will have at its node, where the user asked for one: what the nodes allow, as
/// far as that is known.
async fn with_expected_timeout(state: &AppState, mut task: Task) -> Task {
    let (id, asked) = (task.id, task.timeout_seconds);
    let expected = async move {
        let requirements = state.store.task_requirements(id).await.ok()?;
        let nodes = state.node_outlooks().await.ok()?;
        waiting::expected_timeout(&requirements, asked, &nodes)
    };
    if task.status == TaskStatus::Queued && asked.is_some() {
        task.details.effective_timeout_seconds = expected.await;
    }
    task
}

/// 429 of a queue that has no room.
pub(super) fn queue_full(detail: String) -> Problem {
    Problem::new(ProblemKind::QueueFull, detail).retry_after(QUEUE_FULL_RETRY_SECONDS)
}

/// Lists the tasks that the caller may see, newest first; for an admin with their owners. `filter.owner` is set
/// here.
pub(super) async fn list(
    state: &AppState,
    caller: &Caller,
    filter: TaskFilter,
) -> Result<TaskList, ApiError> {
    let offset = filter.offset;
    let filter = TaskFilter {
        owner: caller.visible_owner(),
        ..filter
    };
    let mut page = state.store.task_list(caller.user.id, filter).await?;
    if !caller.user.is_admin {
        for task in &mut page.tasks {
            task.details.owner = None;
        }
    }
    let last = page.tasks.last().filter(|_| page.more);
    let next_offset = u64::from(offset) + page.tasks.len() as u64;
    let has_next_offset = page.more && next_offset <= u64::from(MAX_OFFSET);
    Ok(TaskList {
        next_cursor: last.map_or_else(String::new, |task| task.id.to_string()),
        next_offset: has_next_offset.then_some(next_offset),
        tasks: page.tasks,
    })
}

/// Finds the task that `name` names. Fails with 404 where the caller sees none, and with 409 where several
/// match.
pub(super) async fn find(
    state: &AppState,
    caller: &Caller,
    name: String,
) -> Result<Task, ApiError> {
    let (store, user) = (&state.store, &caller.user);
    let ambiguous = |detail| Err(Problem::new(ProblemKind::Conflict, detail).into());
    let found = store.task_find(name.clone(), user.id, user.is_admin);
    let id = match found.await? {
        TaskMatch::One(id) => id,
        TaskMatch::None => return Err(Problem::unknown_task(&name).into()),
        TaskMatch::SeveralNames => return ambiguous("several tasks have this name; give an id"),
        TaskMatch::SeveralIds => {
            return ambiguous("several task ids begin like this; give more characters");
        }
    };
    let task = store.task_get(id, caller.visible_owner()).await?;
    Ok(task.ok_or_else(|| Problem::unknown_task(&name))?)
}

/// Shows a task, and the reason where it has to wait.
pub(super) async fn show(
    state: &AppState,
    caller: &Caller,
    name: String,
) -> Result<Task, ApiError> {
    let mut task = find(state, caller, name).await?;
    task.waiting_for = waiting_for(state, task.id, task.status).await;
    Ok(with_expected_timeout(state, task).await)
}

/// Task with the results of all its attempts, the last one last.
pub(super) async fn result(
    state: &AppState,
    caller: &Caller,
    name: String,
) -> Result<(Task, TaskResult), ApiError> {
    let task = find(state, caller, name).await?;
    let result = TaskResult {
        task_id: task.id,
        status: task.status,
        jobs: state.store.task_jobs(task.id).await?,
    };
    Ok((task, result))
}

/// Cancels a task, and waits until its end is stored. Goes on if the caller hangs up.
///
/// Fails with 503 where the end is not known in time, or can't be stored.
pub(super) async fn cancel(
    state: &Arc<AppState>,
    caller: &Caller,
    name: String,
    is_forced: bool,
    origin: &RequestOrigin,
) -> Result<CancelAnswer, ApiError> {
    let task = find(state, caller, name).await?.id;
    let event = caller.audit_event(AuditAction::TaskCancel, origin);
    let shared = Arc::clone(state);
    let canceled = run_to_end("cancel_task", async move {
        cancel::cancel(&shared, task, is_forced, event).await
    });
    match canceled.await.map_err(ApiError::internal)? {
        Ok(Some(canceled)) => Ok(CancelAnswer {
            task_id: task,
            canceled,
        }),
        Ok(None) => Err(undecided(
            "the task is being canceled, but its outcome is not known yet; look at the task, or cancel it again"
                .to_owned(),
        )
        .into()),
        Err(CancelError::Failed(error)) => Err(error.into()),
        Err(CancelError::Unrecorded(error)) => Err(unrecorded(error)),
    }
}

fn undecided(detail: String) -> Problem {
    Problem::new(ProblemKind::Unavailable, detail).retry_after(UNDECIDED_RETRY_SECONDS)
}

/// The node was asked to stop the job, but the cancel can't be stored.
fn unrecorded(error: StoreError) -> ApiError {
    ApiError::from(error).map_problem(|problem| {
        undecided(format!(
            "the job is being stopped, but this can't be stored yet: {}; the task shows its end as soon as it can \
             be stored, so look at it again later",
            problem.detail
        ))
    })
}

/// Deletes a finished task before its retention ends, with its jobs and output.
pub(super) async fn delete(
    state: &Arc<AppState>,
    caller: &Caller,
    name: String,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    let task = find(state, caller, name).await?.id;
    let event = caller.audit_event(AuditAction::TaskDelete, origin);
    let jobs = state.store.task_job_ids(task).await?;
    match delete_ended(state, caller, (task, jobs), event).await? {
        DeleteOutcome::Deleted => Ok(()),
        DeleteOutcome::Unknown => Err(Problem::unknown_task(&task.to_string()).into()),
        DeleteOutcome::Unfinished(status) => Err(Problem::new(
            ProblemKind::Conflict,
            format!(
                "the task is {}, and only a finished task can be deleted; cancel it first (cynode task cancel \
                 {task}), then delete it",
                status.as_str()
            ),
        )
        .into()),
    }
}

/// Deletes a task or a sandbox that has ended, with the kept logs of its jobs. Goes on if the caller hangs up.
pub(super) async fn delete_ended(
    state: &Arc<AppState>,
    caller: &Caller,
    (task, jobs): (TaskId, Vec<JobId>),
    event: AuditEvent,
) -> Result<DeleteOutcome, ApiError> {
    let (owner, authority) = (caller.visible_owner(), caller.authority());
    let shared = Arc::clone(state);
    let deleted = run_to_end("delete_task", async move {
        let outcome = shared.store.task_delete(task, owner, authority, event);
        let outcome = outcome.await?;
        if outcome == DeleteOutcome::Deleted {
            let archive = Arc::clone(&shared.log_archive);
            let removed = spawn_blocking(move || archive.remove(&jobs)).await;
            removed.map_err(ApiError::internal)?;
        }
        Ok(outcome)
    });
    deleted.await.map_err(ApiError::internal)?
}

/// Reason of a task that waits for room for its files.
async fn no_room(state: &AppState, task: TaskId) -> Option<String> {
    let (node, reason) = state.jobs.no_room.last(task)?;
    let slug = state.store.node_get(node).await.ok()??.slug;
    let reason = reason.for_users(&slug);
    Some(format!(
        "{slug} has no room for its files at present ({reason})"
    ))
}

/// Reason why a task has to wait; `None` where it does not, or where the reason can't be read.
pub(super) async fn waiting_for(
    state: &AppState,
    task: TaskId,
    status: TaskStatus,
) -> Option<String> {
    let AppState {
        store, jobs, nodes, ..
    } = state;
    match status {
        TaskStatus::Queued => {
            if let Err(low) = store.check_start_space() {
                return Some(low.to_string());
            }
            let requirements = store.task_requirements(task).await.ok()?;
            let outlooks = state.node_outlooks().await.ok()?;
            let exhausted = || {
                let running = outlooks.iter().map(|node| node.view.running_jobs);
                nodes.slots.exhausted_reason(running)
            };
            match waiting::waiting_reason(&requirements, &outlooks) {
                Some(reason) => Some(reason),
                None => no_room(state, task).await.or_else(exhausted),
            }
        }
        TaskStatus::Running => {
            let current = jobs.watches.current(task)?;
            if let Some((node, percent)) = current.sending {
                let node = store.node_get(node).await.ok()??;
                return Some(format!("sending files to {} ({percent} %)", node.slug));
            }
            let node = store.node_get(current.source?.node).await.ok()??;
            if !current.is_unreachable && node.capability.node.stopping_since.is_none() {
                return None;
            }
            let outlook = store.job_outlook(task).await.ok()??;
            Some(readiness::unreachable_reason(&node, outlook, Time::now()))
        }
        _ => None,
    }
}
