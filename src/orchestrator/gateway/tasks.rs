//! Tasks: create, list, get, result, cancel, delete.

use super::{AppState, authenticate, cursor, page_size};
use crate::{
    api::{
        api_keys::Scope,
        jobs::{MAX_TIMEOUT_SECONDS, stdin::MAX_PIECE_BYTES},
        problem::{Problem, ProblemKind},
        tasks::CreateTask,
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
    orchestrator::{
        stdin::{self, StdinPiece},
        tasks,
    },
    store::{MAX_OFFSET, TaskFilter},
};
use http::{HeaderValue, StatusCode, header};
use std::sync::Arc;

/// Keys that may make these calls.
const ACCESS: Access = Access::Scope(Scope::Tasks);
/// Size of a page of tasks where the caller gives none.
pub(super) const DEFAULT_PAGE_SIZE: u32 = 50;
const MAX_KEY_BYTES: usize = 255;
/// Largest body of a new task: files or stdin of 10 MiB as base64, and command and environment. One user's share of the
/// memory for bodies holds one.
const MAX_BODY_BYTES: usize = 14 * 1024 * 1024;
/// Pattern of an idempotency key, without spaces around it, which do not belong to a header's value.
pub(super) const KEY_PATTERN: &str = "^[!-~]([ -~]{0,253}[!-~])?$";

pub(super) async fn create(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let key = idempotency_key(&request)?;
    request.allow_body(MAX_BODY_BYTES);
    let create: CreateTask = request.json().await?;
    let task = tasks::create(&state, &caller, create, key, &request.origin()).await?;
    let effective = task.details.effective_timeout_seconds;
    warn_of_limit(&request, task.timeout_seconds, effective);
    let mut answer = response::json(StatusCode::CREATED, &task)?;
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/tasks/{}", task.id)) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

/// Adds a warning to the answer where the command is stopped earlier than requested.
fn warn_of_limit(request: &Request, requested: Option<u64>, effective: Option<u64>) {
    let effective = effective.unwrap_or(MAX_TIMEOUT_SECONDS);
    if let Some(requested) = requested.filter(|requested| *requested > effective) {
        let detail = format!(
            "reduced from {requested} to {effective}, the most that a suitable node allows (--max-timeout there)"
        );
        request.warn("timeout_seconds", detail);
    }
}

fn idempotency_key(request: &Request) -> Result<Option<String>, Problem> {
    let invalid = || {
        let detail = format!(
            "header Idempotency-Key: must be 1 to {MAX_KEY_BYTES} printable ASCII characters"
        );
        Problem::new(ProblemKind::InvalidRequest, detail)
    };
    if !request.headers().contains_key("idempotency-key") {
        return Ok(None);
    }
    let key = request.header("idempotency-key").ok_or_else(invalid)?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES || key.contains('\t') {
        return Err(invalid());
    }
    Ok(Some(key.to_owned()))
}

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let filter = TaskFilter {
        limit: page_size(&request, DEFAULT_PAGE_SIZE)?,
        offset: offset(&request)?,
        owner: None,
        status: request.query_as("status", "queued, running, completed, failed or canceled")?,
        name: request.query("name"),
        before: cursor(&request)?,
    };
    response::ok(&tasks::list(&state, &caller, filter).await?)
}

/// Number of the newest tasks that a page skips.
fn offset(request: &Request) -> Result<u32, Problem> {
    let expected = format!(
        "a number of tasks to skip, at most {MAX_OFFSET} (to read further, use the next_cursor of the last page as \
         cursor)"
    );
    let offset = request.query_if("offset", &expected, |offset| *offset <= MAX_OFFSET)?;
    Ok(offset.unwrap_or(0))
}

pub(super) async fn get(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "task")?;
    response::ok(&tasks::show(&state, &caller, name).await?)
}

pub(super) async fn result(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "task")?;
    let (task, result) = tasks::result(&state, &caller, name).await?;
    // Limits differ between nodes; that of the last attempt counts.
    let last = result
        .jobs
        .last()
        .and_then(|job| job.result_object.as_ref());
    if let Some(effective) = last.and_then(|result| result.effective.as_ref()) {
        warn_of_limit(
            &request,
            task.timeout_seconds,
            Some(effective.timeout_seconds),
        );
    }
    response::ok(&result)
}

pub(super) async fn cancel(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "task")?;
    let is_forced = request.query_as("force", "true or false")?.unwrap_or(false);
    let canceled = tasks::cancel(&state, &caller, name, is_forced, &request.origin()).await?;
    response::ok(&canceled)
}

/// Receives a piece of the stdin of an interactive task.
pub(super) async fn send_stdin(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "task")?;
    let expected = "the number of bytes before this piece";
    let offset = request.query_as("offset", expected)?.ok_or_else(|| {
        let detail = format!("query parameter `offset` is missing; give {expected}");
        Problem::new(ProblemKind::InvalidRequest, detail)
    })?;
    let is_last = request.query_as("eof", "true or false")?.unwrap_or(false);
    request.limit_body(MAX_PIECE_BYTES);
    let piece = StdinPiece {
        offset,
        is_last,
        bytes: request.bytes().await?,
    };
    response::ok(&stdin::send(&state, &caller, name, &piece).await?)
}

pub(super) async fn delete(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, ACCESS).await?;
    let name = request.param("id", "task")?;
    tasks::delete(&state, &caller, name, &request.origin()).await?;
    response::no_content()
}
