//! Tasks: what users submit, and its jobs.

use super::{
    Authority, CreateOutcome, DeleteOutcome, IdempotencyKey, Lane, Placement, QueueLimit,
    QueueLimits, Store, StoreError, artifacts, audit,
    authority::authorize,
    jobs, retention,
    rows::{parse_document, parse_name, to_document},
    task_names::free_name,
};
use crate::api::{
    JobId, TaskId, UserId,
    audit::AuditEvent,
    jobs::JobResult,
    tasks::{JobView, Task, TaskDetails, TaskSpec},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::time::Duration;

/// Time for which an idempotency key is kept.
pub(super) const IDEMPOTENCY_WINDOW: Duration = Duration::from_hours(24);

pub(super) const COLUMNS: &str =
    "id, status, name, spec, summary, exit_code, created_at, updated_at, started_at, ended_at,
     (SELECT handle FROM users WHERE users.id = tasks.user_id) AS owner";

/// Attempt of a task, its node, and the time limit there.
const PLACE: &str = "SELECT j.attempt, coalesce(n.slug, j.node_slug), j.effective_timeout_seconds
    FROM jobs j LEFT JOIN nodes n ON n.id = j.node_id WHERE j.task_id = ?1 ORDER BY j.id DESC LIMIT 1";

pub(super) fn task(row: &Row<'_>) -> Result<Task, StoreError> {
    let spec: String = row.get("spec")?;
    let spec: TaskSpec = parse_document(&spec)?;
    let has_sandbox = spec.sandbox.prompt.is_none();
    let id = row.get("id")?;
    let details = TaskDetails {
        owner: row.get("owner")?,
        ..TaskDetails::of(&spec)
    };
    Ok(Task {
        id,
        task_id: id,
        status: parse_name(row.get("status")?, "task status")?,
        waiting_for: None,
        summary: row.get("summary")?,
        task_name: row.get("name")?,
        prompt: spec
            .prompt
            .or(spec.sandbox.prompt.map(|prompt| prompt.text)),
        command: has_sandbox.then_some(spec.sandbox.command),
        image: has_sandbox.then_some(spec.sandbox.image),
        timeout_seconds: spec.sandbox.timeout_seconds,
        priority: spec.priority,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        started_at: row.get("started_at")?,
        ended_at: row.get("ended_at")?,
        exit_code: row.get("exit_code")?,
        details,
    })
}

fn get(c: &Connection, id: TaskId, owner: Option<UserId>) -> Result<Option<Task>, StoreError> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM tasks WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2)"
    ))?;
    let mut rows = statement.query(params![id, owner])?;
    let Some(mut task) = rows.next()?.map(task).transpose()? else {
        return Ok(None);
    };
    let mut statement = c.prepare_cached(PLACE)?;
    let place = statement.query_row([id], |row| {
        let limit = jobs::seconds(row, "effective_timeout_seconds")?;
        Ok((row.get(0)?, row.get(1)?, limit))
    });
    if let Some((attempt, node_slug, effective)) = place.optional()? {
        task.details.attempt = attempt;
        task.details.node_slug = node_slug;
        task.details.effective_timeout_seconds = effective;
    }
    Ok(Some(task))
}

/// Limit that a new task of this user and this size would exceed.
fn exceeded_limit(
    c: &Connection,
    owner: UserId,
    size: usize,
    limits: QueueLimits,
) -> Result<Option<QueueLimit>, StoreError> {
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
        Some(QueueLimit::User)
    } else if own_bytes + size > limits.bytes_per_user {
        Some(QueueLimit::UserBytes)
    } else if all >= limits.all {
        Some(QueueLimit::All)
    } else if bytes + size > limits.bytes {
        Some(QueueLimit::AllBytes)
    } else {
        None
    })
}

/// Outcome of a request whose idempotency key came before; `None` for a new key.
fn repeated(
    c: &Connection,
    owner: UserId,
    IdempotencyKey { key, body_sha256 }: &IdempotencyKey,
    now: Time,
) -> Result<Option<CreateOutcome>, StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT body_sha256, task_id FROM idempotency_keys
         WHERE user_id = ?1 AND key = ?2 AND created_at > ?3",
    )?;
    let values = params![owner, key, now.minus(IDEMPOTENCY_WINDOW)];
    let known = statement.query_row(values, |row| Ok((row.get(0)?, row.get(1)?)));
    let known: Option<(String, TaskId)> = known.optional()?;
    known
        .map(|(known_sha256, id)| {
            if known_sha256 != *body_sha256 {
                return Ok(CreateOutcome::KeyReused);
            }
            let task = get(c, id, Some(owner))?;
            let task = task.ok_or(StoreError::Damaged("idempotency key"))?;
            Ok(CreateOutcome::Repeated(task))
        })
        .transpose()
}

impl Store {
    /// Deletes a finished task with its jobs and results, where it belongs to `owner` or `owner` is `None`.
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
            audit::add(c, &event.clone().to(id.to_string()))?;
            Ok(DeleteOutcome::Deleted)
        })
        .await
    }

    /// Outcome of a request whose idempotency key came before; `None` for a new key.
    pub async fn task_repeated(
        &self,
        owner: UserId,
        key: IdempotencyKey,
    ) -> Result<Option<CreateOutcome>, StoreError> {
        self.read(move |c| repeated(c, owner, &key, Time::now()))
            .await
    }

    /// Stores a task and its job, in one commit.
    pub async fn task_create(
        &self,
        by: Authority,
        spec: TaskSpec,
        key: Option<IdempotencyKey>,
        limits: QueueLimits,
        now: Time,
    ) -> Result<CreateOutcome, StoreError> {
        self.ensure_writable()?;
        let (owner, reserve, lanes) = (by.user, self.reserve.clone(), self.lanes.clone());
        // Up to a megabyte, so serialized before the thread of the writer.
        let document = to_document(&spec)?;
        let placement = Placement::from_spec(&spec);
        self.write(move |c| {
            authorize(c, by, now)?;
            if let Some(key) = &key
                && let Some(outcome) = repeated(c, owner, key, now)?
            {
                return Ok(outcome);
            }
            reserve.check_create()?;
            if let Some(limit) = exceeded_limit(c, owner, document.len(), limits)? {
                return Ok(CreateOutcome::QueueFull(limit));
            }
            if !lanes.has_room(owner, &placement) {
                return Ok(CreateOutcome::TooManyLanes);
            }
            lanes.enter(Lane {
                user: owner,
                placement: placement.clone(),
            });
            let id = TaskId::new();
            let name = spec.task_name.as_deref();
            let name = name.map(|base| free_name(c, owner, base)).transpose()?;
            c.execute(
                "INSERT INTO tasks (id, user_id, status, name, spec, created_at, updated_at)
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?5)",
                params![id, owner, name, document, now],
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
            artifacts::add_references(c, id, &spec.sandbox)?;
            if let Some(IdempotencyKey { key, body_sha256 }) = &key {
                c.execute(
                    "INSERT OR REPLACE INTO idempotency_keys (user_id, key, body_sha256, task_id, created_at)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![owner, key, body_sha256, id, now],
                )?;
            }
            let task = get(c, id, Some(owner))?.ok_or(StoreError::Damaged("task"))?;
            Ok(CreateOutcome::Created(task))
        })
        .await
    }

    /// Task of this id, where it belongs to `owner` or `owner` is `None`.
    pub async fn task_get(
        &self,
        id: TaskId,
        owner: Option<UserId>,
    ) -> Result<Option<Task>, StoreError> {
        self.read(move |c| get(c, id, owner)).await
    }

    /// Jobs of a task, with their results.
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
                let parsed = result.as_deref().map(parse_document::<JobResult>);
                jobs.push(JobView {
                    id: row.get("id")?,
                    status: parse_name(row.get("status")?, "job status")?,
                    result_object: parsed.transpose()?,
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
