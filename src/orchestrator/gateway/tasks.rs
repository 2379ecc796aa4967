//! Tasks: create, list, get, result, cancel, delete.

use super::{AppState, authenticate, cursor, page_size, visible_owner};
use crate::{
    api::{
        audit::AuditAction,
        error::ApiError,
        jobs::MAX_TIMEOUT_SECONDS,
        problem::{Problem, ProblemKind},
        tasks::{CancelAnswer, CreateTask, Task, TaskList, TaskResult},
        time::Time,
    },
    background,
    digest::sha256_hex,
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Caller,
    orchestrator::{
        cancel::{self, CancelError},
        task_log,
    },
    store::{
        CreateOutcome, DeleteOutcome, IdempotencyKey, MAX_LANES_PER_USER, MAX_OFFSET, StoreError,
        TaskFilter, TaskMatch,
    },
};
use http::{HeaderValue, StatusCode, header};
use std::{future::Future, sync::Arc};
use tracing::Instrument as _;

/// When a place in a full queue may be free, in seconds.
const QUEUE_FULL_RETRY_SECONDS: u64 = 5;
/// When a cancel of which nothing is known yet may be decided, in seconds.
const UNDECIDED_RETRY_SECONDS: u64 = 5;
/// Tasks of a list when the caller names no number.
pub(super) const DEFAULT_PAGE_SIZE: u32 = 50;
const MAX_KEY_BYTES: usize = 255;
/// Longest task: command and environment at their limit are half of it.
const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
/// What an idempotency key looks like to a schema; spaces around a header are not its own.
pub(super) const KEY_PATTERN: &str = "^[!-~]([ -~]{0,253}[!-~])?$";

/// Stores a task and answers at once.
pub(super) async fn create(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let key = idempotency_key(&request)?;
    request.limit_body(MAX_BODY_BYTES);
    let create: CreateTask = request.json().await?;
    warn_of_limit(&request, create.timeout_seconds, MAX_TIMEOUT_SECONDS);
    // As it was understood, so that white space or the order of fields make no other request.
    let body = sha256_hex(serde_json::to_vec(&create).map_err(|_| Problem::internal())?);
    let spec = create.resolve(state.settings.default_image.as_str())?;
    let key = key.map(|key| IdempotencyKey {
        key,
        body_sha256: body,
    });
    // In a task of its own: a client that hangs up must not come between the write and what follows.
    let shared = Arc::clone(&state);
    let user = caller.user.handle.clone();
    let stored = detached(async move {
        let stored = shared
            .store
            .task_create(
                caller.authority(),
                spec,
                key,
                shared.settings.queue,
                Time::now(),
            )
            .await;
        if let Ok(CreateOutcome::Created(task)) = &stored {
            shared.metrics.record_created();
            task_log::created(task.id, &user);
            shared.jobs.wake.notify_one();
        }
        stored
    });
    let task = match stored.await?? {
        CreateOutcome::Created(task) => task,
        CreateOutcome::Repeated(task) => task.as_created(),
        CreateOutcome::QueueFull(whose) => {
            let text = format!(
                "{whose} is full; wait until some of its tasks have started, and try again"
            );
            return Err(Problem::new(ProblemKind::QueueFull, text)
                .retry_after(QUEUE_FULL_RETRY_SECONDS)
                .into());
        }
        CreateOutcome::TooManyLanes => {
            let text = format!(
                "your queued tasks ask for {MAX_LANES_PER_USER} different sets of node_labels, which is the limit; \
                 wait until some have started or cancel some, and try again"
            );
            return Err(Problem::new(ProblemKind::QueueFull, text)
                .retry_after(QUEUE_FULL_RETRY_SECONDS)
                .into());
        }
        CreateOutcome::KeyReused => {
            return Err(Problem::new(
                ProblemKind::IdempotencyKeyReused,
                "this Idempotency-Key was used for another body; choose a new key for a new task",
            )
            .into());
        }
    };
    let mut answer = response::json(StatusCode::CREATED, &task)?;
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/tasks/{}", task.id)) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

/// Says so where a sandbox is ended earlier than was asked for.
fn warn_of_limit(request: &Request, asked: Option<u64>, effective: u64) {
    if let Some(asked) = asked.filter(|asked| *asked > effective) {
        let detail = format!("cut from {asked} to {effective}, the limit in force");
        request.warn("timeout_seconds", detail);
    }
}

fn idempotency_key(request: &Request) -> Result<Option<String>, Problem> {
    let wrong = || {
        let detail = format!(
            "header Idempotency-Key: must be 1 to {MAX_KEY_BYTES} printable ASCII characters"
        );
        Problem::new(ProblemKind::InvalidRequest, detail)
    };
    if !request.headers().contains_key("idempotency-key") {
        return Ok(None);
    }
    let key = request.header("idempotency-key").ok_or_else(wrong)?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES || key.contains('\t') {
        return Err(wrong());
    }
    Ok(Some(key.to_owned()))
}

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let limit = page_size(&request, DEFAULT_PAGE_SIZE)?;
    let offset = offset(&request)?;
    let filter = TaskFilter {
        owner: visible_owner(&caller),
        status: request.query_as("status", "queued, running, completed, failed or canceled")?,
        name: request.query("name"),
        before: cursor(&request)?,
        offset,
        limit,
    };
    let page = state.store.task_list(caller.user.id, filter).await?;
    let last = page.tasks.last().filter(|_| page.more);
    let next_offset = u64::from(offset) + page.tasks.len() as u64;
    let has_next_offset = page.more && next_offset <= u64::from(MAX_OFFSET);
    response::ok(&TaskList {
        next_cursor: last.map_or_else(String::new, |task| task.id.to_string()),
        next_offset: has_next_offset.then_some(next_offset),
        tasks: page.tasks,
    })
}

/// How many of the newest tasks a page leaves out.
fn offset(request: &Request) -> Result<u32, Problem> {
    let offset: u64 = request
        .query_as("offset", "a number of tasks to leave out")?
        .unwrap_or(0);
    let offset = u32::try_from(offset).ok();
    offset.filter(|offset| *offset <= MAX_OFFSET).ok_or_else(|| {
        let text = format!(
            "query parameter offset: expected at most {MAX_OFFSET}; to read further, give the next_cursor of the \
             last page as cursor"
        );
        Problem::new(ProblemKind::InvalidRequest, text)
    })
}

/// The task that the path names, by id, name or the beginning of its id, when the caller may see it.
async fn find_task(state: &AppState, request: &Request) -> Result<Task, ApiError> {
    let caller = authenticate(state, request).await?;
    find_task_for(state, request, &caller).await
}

/// The same for a caller who is known already.
pub(super) async fn find_task_for(
    state: &AppState,
    request: &Request,
    caller: &Caller,
) -> Result<Task, ApiError> {
    let word: String = request.param("id", "task")?;
    let (store, user) = (&state.store, &caller.user);
    let found = store.task_find(word, user.id, user.is_admin).await;
    let several = |what: &str| Err(Problem::new(ProblemKind::Conflict, what).into());
    let id = match found? {
        TaskMatch::One(id) => id,
        TaskMatch::None => return Err(Problem::not_found("task").into()),
        TaskMatch::SeveralNames => return several("several tasks have this name; give an id"),
        TaskMatch::SeveralIds => {
            return several("the ids of several tasks begin so; give more characters");
        }
    };
    let task = store.task_get(id, visible_owner(caller)).await;
    Ok(task?.ok_or_else(|| Problem::not_found("task"))?)
}

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    let mut task = find_task(&state, &request).await?;
    task.waiting_for = state.waiting_for(task.id, task.status).await;
    response::ok(&task)
}

pub(super) async fn result(state: Arc<AppState>, request: Request) -> Reply {
    let task = find_task(&state, &request).await?;
    let jobs = state.store.task_jobs(task.id).await?;
    // Of the last attempt: nodes differ in what they allow.
    let last = jobs.last().and_then(|job| job.result_object.as_ref());
    if let Some(effective) = last.and_then(|result| result.effective.as_ref()) {
        warn_of_limit(&request, task.timeout_seconds, effective.timeout_seconds);
    }
    response::ok(&TaskResult {
        task_id: task.id,
        status: task.status,
        jobs,
    })
}

/// Has a task end, and answers once its end is stored.
pub(super) async fn cancel(state: Arc<AppState>, request: Request) -> Reply {
    let task = find_task(&state, &request).await?;
    let canceled = detached(async move { cancel::cancel(&state, task.id).await });
    let canceled = canceled.await?.map_err(|error| match error {
        CancelError::Failed(error) => error.into(),
        CancelError::Unrecorded(error) => unrecorded(error),
    })?;
    let canceled = canceled.ok_or_else(|| {
        let text = "the task is to be canceled, and whether it ends so can't be known yet; look at the task, or \
                    cancel it again";
        Problem::new(ProblemKind::Unavailable, text).retry_after(UNDECIDED_RETRY_SECONDS)
    })?;
    response::ok(&CancelAnswer {
        task_id: task.id,
        canceled,
    })
}

/// A job was stopped, and that can't be written down.
fn unrecorded(error: StoreError) -> ApiError {
    ApiError::from(error).map_problem(|problem| {
        let text = format!(
            "the job was told to stop, but that can't be recorded yet: {}; the task shows its end once it can, so \
             look at it again then",
            problem.detail
        );
        Problem::new(ProblemKind::Unavailable, text).retry_after(UNDECIDED_RETRY_SECONDS)
    })
}

/// Deletes a task that has ended, before its retention ends.
pub(super) async fn delete(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request).await?;
    let task = find_task_for(&state, &request, &caller).await?;
    let event = caller.audit_event(AuditAction::TaskDelete, &request.origin());
    let (owner, by) = (visible_owner(&caller), caller.authority());
    let deleted = state.store.task_delete(task.id, owner, by, event);
    match deleted.await? {
        DeleteOutcome::Deleted => response::no_content(),
        DeleteOutcome::Unknown => Err(Problem::not_found("task").into()),
        DeleteOutcome::Unfinished(status) => Err(Problem::new(
            ProblemKind::Conflict,
            format!(
                "the task is {}, and only a finished one can be deleted; cancel it first (cynode task cancel {}), then \
                 delete it",
                status.as_str(),
                task.id
            ),
        )
        .into()),
    }
}

/// Runs `work` to its end, also when the client hangs up and this handler is dropped.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ApiError> {
    let work = background::spawn("detached_request", work.in_current_span());
    work.await.map_err(ApiError::internal)
}
