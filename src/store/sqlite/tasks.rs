//! Tasks: what users submit, and its jobs.

use super::{
    Authority, CreateOutcome, DeleteOutcome, IdempotencyKey, Lane, Placement, QueueLimit,
    QueueLimits, Store, StoreError, artifacts, audit,
    authority::authorize,
    jobs, retention,
    rows::{execute, parse_document, parse_name, to_document},
    task_names::free_name,
};
use crate::api::{
    JobId, TaskId, UserId,
    audit::AuditEvent,
    jobs::{JobResult, files::ContentHash},
    snapshots::shown_image,
    tasks::{JobView, Task, TaskDetails, TaskSpec, TaskStatus},
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
    let created_at = row.get("created_at")?;
    Ok(Task {
        status: parse_name(row.get("status")?, "task status")?,
        summary: row.get("summary")?,
        updated_at: row.get("updated_at")?,
        started_at: row.get("started_at")?,
        ended_at: row.get("ended_at")?,
        exit_code: row.get("exit_code")?,
        ..queued_task(
            row.get("id")?,
            spec,
            row.get("owner")?,
            row.get("name")?,
            created_at,
        )
    })
}

/// Task as it is shown when it was just created.
fn queued_task(
    id: TaskId,
    spec: TaskSpec,
    owner: Option<String>,
    name: Option<String>,
    created_at: Time,
) -> Task {
    let has_sandbox = spec.sandbox.prompt.is_none();
    let details = TaskDetails {
        owner,
        ..TaskDetails::of(&spec)
    };
    Task {
        id,
        task_id: id,
        status: TaskStatus::Queued,
        waiting_for: None,
        summary: None,
        task_name: name,
        prompt: spec
            .prompt
            .or(spec.sandbox.prompt.map(|prompt| prompt.text)),
        command: has_sandbox.then_some(spec.sandbox.command),
        image: has_sandbox.then(|| shown_image(spec.sandbox.image)),
        timeout_seconds: spec.sandbox.timeout_seconds,
        priority: spec.priority,
        created_at,
        updated_at: created_at,
        started_at: None,
        ended_at: None,
        exit_code: None,
        details,
    }
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
pub(super) fn exceeded_limit(
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

/// Rows of a new task or sandbox, made before its write.
pub(super) struct NewTask {
    pub(super) id: TaskId,
    job: JobId,
    owner: UserId,
    base_name: Option<String>,
    pub(super) document: String,
    pub(super) placement: Placement,
    max_attempts: u32,
    rank: i32,
    contents: Vec<ContentHash>,
    secrets_used: Option<AuditEvent>,
    now: Time,
}

impl NewTask {
    /// Rows of a task with this specification. `secrets_used` is the event that it gets secrets, if it does.
    pub(super) fn new(
        owner: UserId,
        spec: &TaskSpec,
        secrets_used: Option<AuditEvent>,
        now: Time,
    ) -> Result<Self, StoreError> {
        let contents = spec.sandbox.contents();
        Ok(Self {
            id: TaskId::new(),
            job: JobId::new(),
            owner,
            base_name: spec.task_name.clone(),
            document: to_document(spec)?,
            placement: Placement::from_spec(spec),
            max_attempts: spec.max_attempts,
            rank: -spec.priority,
            contents: contents.map(|content| content.sha256.clone()).collect(),
            secrets_used,
            now,
        })
    }

    /// Inserts the task and its job; the name that the task got.
    fn insert(
        &self,
        c: &Connection,
        key: Option<&IdempotencyKey>,
    ) -> Result<Option<String>, StoreError> {
        let base_name = self.base_name.as_deref();
        let name = base_name.map(|base| free_name(c, self.owner, base));
        let name = name.transpose()?;
        self.insert_rows(c, name.as_deref(), None)?;
        if let Some(IdempotencyKey { key, body_sha256 }) = key {
            execute(
                c,
                "INSERT OR REPLACE INTO idempotency_keys (user_id, key, body_sha256, task_id, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![self.owner, key, body_sha256, self.id, self.now],
            )?;
        }
        Ok(name)
    }

    /// Inserts the task and its job: a task of this name, or a sandbox with this document.
    pub(super) fn insert_rows(
        &self,
        c: &Connection,
        name: Option<&str>,
        sandbox: Option<&str>,
    ) -> Result<(), StoreError> {
        execute(
            c,
            "INSERT INTO tasks (id, user_id, status, name, spec, created_at, updated_at, sandbox)
             VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?5, ?6)",
            params![self.id, self.owner, name, self.document, self.now, sandbox],
        )?;
        execute(
            c,
            "INSERT INTO jobs (id, task_id, status, max_attempts, not_before, created_at, user_id, placement, rank)
             VALUES (?1, ?2, 'queued', ?3, ?4, ?4, ?5, ?6, ?7)",
            params![
                self.job,
                self.id,
                self.max_attempts,
                self.now,
                self.owner,
                self.placement,
                self.rank
            ],
        )?;
        if let Some(event) = &self.secrets_used {
            audit::add(c, &event.clone().to(self.id.to_string()))?;
        }
        artifacts::add_references(c, self.id, &self.contents)
    }
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

    /// Stores a task and its job, in one commit, and the event that it gets secrets, if it does.
    pub async fn task_create(
        &self,
        by: Authority,
        spec: TaskSpec,
        key: Option<IdempotencyKey>,
        limits: QueueLimits,
        secrets_used: Option<AuditEvent>,
        now: Time,
    ) -> Result<CreateOutcome, StoreError> {
        self.ensure_writable()?;
        let (reserve, lanes) = (self.reserve.clone(), self.lanes.clone());
        // Outside of the writer's thread, which all writes share: the document has up to a megabyte.
        let new = NewTask::new(by.user, &spec, secrets_used, now)?;
        let id = new.id;
        let stored = self.write(move |c| {
            let owner = authorize(c, by, now)?;
            if let Some(key) = &key
                && let Some(outcome) = repeated(c, by.user, key, now)?
            {
                return Ok(Err(outcome));
            }
            reserve.check_create()?;
            if let Some(limit) = exceeded_limit(c, by.user, new.document.len(), limits)? {
                return Ok(Err(CreateOutcome::QueueFull(limit)));
            }
            if !lanes.has_room(by.user, &new.placement) {
                return Ok(Err(CreateOutcome::TooManyLanes));
            }
            lanes.enter(Lane {
                user: by.user,
                placement: new.placement.clone(),
            });
            let name = new.insert(c, key.as_ref())?;
            Ok(Ok((owner, name)))
        });
        Ok(match stored.await? {
            Ok((owner, name)) => {
                CreateOutcome::Created(queued_task(id, spec, Some(owner), name, now))
            }
            Err(outcome) => outcome,
        })
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
