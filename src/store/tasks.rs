//! What users asked for.

use super::{
    Lane, Placement, Store, StoreError, audit, retention,
    rows::{parse_document, parse_name, to_document},
    sessions::{Authority, authorize},
    task_names::free_name,
};
use crate::api::{
    JobId, TaskId, UserId,
    audit::AuditEvent,
    tasks::{JobView, Task, TaskSpec, TaskStatus},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::time::Duration;

/// How long an idempotency key keeps its answer.
pub(super) const IDEMPOTENCY_WINDOW: Duration = Duration::from_hours(24);

/// How a creation ended.
pub enum CreateOutcome {
    /// The task is stored.
    Created(Task),
    /// The same request came before; this is its task.
    Repeated(Task),
    /// The key came before, with another body.
    KeyReused,
    /// There is no room for it; in which queue, in words.
    QueueFull(&'static str),
    /// The user's queued tasks ask for as many different sets of labels as they may.
    TooManyLanes,
}

/// How many tasks may be queued, and how large they may be together.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Tasks in all.
    pub all: u64,
    /// Tasks of one user.
    pub per_user: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes of one user's tasks.
    pub bytes_per_user: u64,
}

pub(super) const COLUMNS: &str =
    "id, status, name, spec, summary, exit_code, created_at, updated_at, started_at, ended_at";

pub(super) fn task(row: &Row<'_>) -> Result<Task, StoreError> {
    let spec: String = row.get("spec")?;
    let spec: TaskSpec = parse_document(&spec)?;
    let id = row.get("id")?;
    Ok(Task {
        id,
        task_id: id,
        status: parse_name(row.get("status")?, "task status")?,
        waiting_for: None,
        summary: row.get("summary")?,
        task_name: row.get("name")?,
        prompt: spec.prompt,
        command: Some(spec.sandbox.command),
        image: Some(spec.sandbox.image),
        timeout_seconds: spec.sandbox.timeout_seconds,
        priority: spec.priority,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        started_at: row.get("started_at")?,
        ended_at: row.get("ended_at")?,
        exit_code: row.get("exit_code")?,
    })
}

fn get(c: &Connection, id: TaskId, owner: Option<UserId>) -> Result<Option<Task>, StoreError> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM tasks WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2)"
    ))?;
    let mut rows = statement.query(params![id, owner])?;
    rows.next()?.map(task).transpose()
}

/// The queue in which there is no room for another task of this user, of so many bytes.
fn exceeded_limit(
    c: &Connection,
    owner: UserId,
    size: usize,
    limits: QueueLimits,
) -> Result<Option<&'static str>, StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT coalesce(sum(queued), 0), coalesce(sum(queued) FILTER (WHERE user_id = ?1), 0),
                coalesce(sum(bytes), 0), coalesce(sum(bytes) FILTER (WHERE user_id = ?1), 0)
         FROM queue_depths",
    )?;
    let [all, own, bytes, own_bytes] = statement.query_row([owner], |row| {
        let number =
            |n| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(n)?).unwrap_or(0));
        Ok([number(0)?, number(1)?, number(2)?, number(3)?])
    })?;
    let size = size as u64;
    Ok(if own >= limits.per_user {
        Some("your queue")
    } else if own_bytes + size > limits.bytes_per_user {
        Some("your queue, counted in bytes (--max-queued-bytes-per-user),")
    } else if all >= limits.all {
        Some("the queue of all users")
    } else if bytes + size > limits.bytes {
        Some("the queue of all users, counted in bytes (--max-queued-bytes),")
    } else {
        None
    })
}

/// How it went to delete a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeleteOutcome {
    /// It is gone.
    Deleted,
    /// It stays, since it has not ended.
    Unfinished(TaskStatus),
    /// There is no such task.
    Unknown,
}

impl Store {
    /// Deletes a finished task with all that hangs on it, where it belongs to `owner` or `owner` is `None`.
    pub async fn task_delete(
        &self,
        id: TaskId,
        owner: Option<UserId>,
        by: Authority,
        event: AuditEvent,
    ) -> Result<DeleteOutcome, StoreError> {
        self.write(move |c| {
            authorize(c, by, event.at)?;
            let Some(task) = get(c, id, owner)? else {
                return Ok(DeleteOutcome::Unknown);
            };
            if !task.status.is_final() {
                return Ok(DeleteOutcome::Unfinished(task.status));
            }
            retention::delete_task(c, id)?;
            audit::add(c, &event.to(id.to_string()))?;
            Ok(DeleteOutcome::Deleted)
        })
        .await
    }

    /// Stores a task and its job, in one commit. `key` is an idempotency key and the hash of its body.
    pub async fn task_create(
        &self,
        by: Authority,
        spec: TaskSpec,
        key: Option<(String, String)>,
        limits: QueueLimits,
        now: Time,
    ) -> Result<CreateOutcome, StoreError> {
        self.ensure_writable()?;
        let (owner, reserve, lanes) = (by.user, self.reserve.clone(), self.lanes.clone());
        self.write(move |c| {
            authorize(c, by, now)?;
            if let Some((key, body)) = &key {
                let known: Option<(String, TaskId)> = c
                    .query_row(
                        "SELECT body_sha256, task_id FROM idempotency_keys
                         WHERE user_id = ?1 AND key = ?2 AND created_at > ?3",
                        params![owner, key, now.minus(IDEMPOTENCY_WINDOW)],
                        |row| Ok((row.get(0)?, row.get(1)?)),
                    )
                    .optional()?;
                match known {
                    Some((known_body, _)) if known_body != *body => return Ok(CreateOutcome::KeyReused),
                    Some((_, id)) => {
                        let task = get(c, id, Some(owner))?.ok_or(StoreError::Damaged("idempotency key"))?;
                        return Ok(CreateOutcome::Repeated(task));
                    }
                    None => {}
                }
            }
            reserve.check_create()?;
            let text = to_document(&spec)?;
            if let Some(whose) = exceeded_limit(c, owner, text.len(), limits)? {
                return Ok(CreateOutcome::QueueFull(whose));
            }
            let placement = Placement::from_spec(&spec).text()?;
            if !lanes.has_room(owner, &placement) {
                return Ok(CreateOutcome::TooManyLanes);
            }
            lanes.enter(Lane {
                user: owner,
                placement: placement.as_str().into(),
            });
            let id = TaskId::new();
            let name = spec.task_name.as_deref();
            let name = name.map(|base| free_name(c, owner, base)).transpose()?;
            c.execute(
                "INSERT INTO tasks (id, user_id, status, name, spec, created_at, updated_at)
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?5)",
                params![id, owner, name, text, now],
            )?;
            c.execute(
                "INSERT INTO jobs (id, task_id, status, max_attempts, not_before, created_at, user_id, placement, rank)
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?4, ?5, ?6, ?7)",
                params![
                    JobId::new(),
                    id,
                    spec.max_attempts,
                    now,
                    owner,
                    placement,
                    -spec.priority
                ],
            )?;
            if let Some((key, body)) = key {
                c.execute(
                    "INSERT OR REPLACE INTO idempotency_keys (user_id, key, body_sha256, task_id, created_at)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![owner, key, body, id, now],
                )?;
            }
            let task = get(c, id, Some(owner))?.ok_or(StoreError::Damaged("task"))?;
            Ok(CreateOutcome::Created(task))
        })
        .await
    }

    /// A task, when it belongs to `owner` or `owner` is `None`.
    pub async fn task_get(
        &self,
        id: TaskId,
        owner: Option<UserId>,
    ) -> Result<Option<Task>, StoreError> {
        self.read(move |c| get(c, id, owner)).await
    }

    /// The jobs of a task, with their results.
    pub async fn task_jobs(&self, id: TaskId) -> Result<Vec<JobView>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT j.*, coalesce(n.slug, j.node_slug) AS slug
                 FROM jobs j LEFT JOIN nodes n ON n.id = j.node_id
                 WHERE j.task_id = ?1 ORDER BY j.id",
            )?;
            let mut rows = statement.query([id])?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next()? {
                let result: Option<String> = row.get("result")?;
                jobs.push(JobView {
                    id: row.get("id")?,
                    status: parse_name(row.get("status")?, "job status")?,
                    result_object: result.as_deref().map(parse_document).transpose()?,
                    result,
                    node_slug: row.get("slug")?,
                    attempt: row.get("attempt")?,
                    started_at: row.get("started_at")?,
                    ended_at: row.get("ended_at")?,
                });
            }
            Ok(jobs)
        })
        .await
    }
}
