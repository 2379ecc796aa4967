//! What users asked for.

use super::{
    Placement, Store, StoreError,
    rows::{document, named, to_document},
    sessions::{Authority, authorize},
    task_names::free_name,
};
use crate::api::{
    JobId, TaskId, UserId,
    tasks::{JobView, Task, TaskSpec, TaskStatus, plain_name},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::time::Duration;

/// How long an idempotency key keeps its answer.
pub(super) const IDEMPOTENCY_WINDOW: Duration = Duration::from_hours(24);

/// Longest command, and longest prompt, that a list shows.
const LISTED_BYTES: usize = 4096;

/// How a creation ended.
pub enum Creation {
    /// The task is stored.
    Created(Task),
    /// The same request came before; this is its task.
    Repeated(Task),
    /// The key came before, with another body.
    KeyReused,
    /// There is no room for it; in which queue, in words.
    QueueFull(&'static str),
}

/// How many tasks may be queued.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// In all.
    pub all: u64,
    /// For one user.
    pub per_user: u64,
}

/// Which tasks to list.
pub struct TaskFilter {
    /// Only this user's; all of them for an admin.
    pub owner: Option<UserId>,
    /// Only those in this state.
    pub status: Option<TaskStatus>,
    /// Only those of this name, with a number or without.
    pub name: Option<String>,
    /// Only those older than this one.
    pub before: Option<TaskId>,
    /// Leaves out so many of the newest.
    pub offset: u64,
    /// At most so many.
    pub limit: u32,
}

/// A part of a list.
pub struct TaskPage {
    /// Newest first.
    pub tasks: Vec<Task>,
    /// Whether there are older ones.
    pub more: bool,
}

const COLUMNS: &str =
    "id, status, name, spec, summary, exit_code, created_at, updated_at, started_at, ended_at";

fn task(row: &Row<'_>) -> Result<Task, StoreError> {
    let spec: String = row.get("spec")?;
    let spec: TaskSpec = document(&spec)?;
    let id = row.get("id")?;
    Ok(Task {
        id,
        task_id: id,
        status: named(row.get("status")?, "task status")?,
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

/// A list of tasks is no place for a megabyte of script: what is long is left out of it.
fn shortened(task: Task) -> Task {
    let length = task
        .command
        .iter()
        .flatten()
        .map(String::len)
        .sum::<usize>();
    let prompt = task.prompt.filter(|prompt| prompt.len() <= LISTED_BYTES);
    let command = task.command.filter(|_| length <= LISTED_BYTES);
    Task {
        prompt,
        command,
        ..task
    }
}

fn get(c: &Connection, id: TaskId, owner: Option<UserId>) -> Result<Option<Task>, StoreError> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM tasks WHERE id = ?1 AND (?2 IS NULL OR user_id = ?2)"
    ))?;
    let mut rows = statement.query(params![id, owner])?;
    rows.next()?.map(task).transpose()
}

/// The queue in which there is no room for another task of this user.
fn full_queue(
    c: &Connection,
    owner: UserId,
    limits: QueueLimits,
) -> Result<Option<&'static str>, StoreError> {
    let mut statement = c.prepare_cached(
        "SELECT coalesce(sum(queued), 0), coalesce(sum(queued) FILTER (WHERE user_id = ?1), 0)
         FROM queue_depths",
    )?;
    let (all, own): (i64, i64) =
        statement.query_row([owner], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let full = |count: i64, limit: u64| u64::try_from(count).is_ok_and(|count| count >= limit);
    Ok(if full(own, limits.per_user) {
        Some("your queue")
    } else if full(all, limits.all) {
        Some("the queue of all users")
    } else {
        None
    })
}

impl Store {
    /// Stores a task and its job, in one commit. `key` is an idempotency key and the hash of its body.
    pub async fn task_create(
        &self,
        by: Authority,
        spec: TaskSpec,
        key: Option<(String, String)>,
        limits: QueueLimits,
        now: Time,
    ) -> Result<Creation, StoreError> {
        self.takes_work()?;
        let owner = by.user;
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
                    Some((known_body, _)) if known_body != *body => return Ok(Creation::KeyReused),
                    Some((_, id)) => {
                        let task = get(c, id, Some(owner))?.ok_or(StoreError::Damaged("idempotency key"))?;
                        return Ok(Creation::Repeated(task));
                    }
                    None => {}
                }
            }
            if let Some(whose) = full_queue(c, owner, limits)? {
                return Ok(Creation::QueueFull(whose));
            }
            let id = TaskId::new();
            let name = spec.task_name.as_deref();
            let name = name.map(|base| free_name(c, owner, base)).transpose()?;
            c.execute(
                "INSERT INTO tasks (id, user_id, status, name, spec, created_at, updated_at)
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?5)",
                params![id, owner, name, to_document(&spec)?, now],
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
                    Placement::of(&spec).text()?,
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
            Ok(Creation::Created(task))
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

    /// Tasks, newest first.
    pub async fn task_list(&self, filter: TaskFilter) -> Result<TaskPage, StoreError> {
        self.read(move |c| {
            // One way for each, so that an index leads to a user's tasks among everybody's.
            let whose = match filter.owner {
                Some(_) => "user_id = ?1",
                None => "?1 IS NULL",
            };
            let mut statement = c.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM tasks
                 WHERE {whose} AND (?2 IS NULL OR status = ?2)
                   AND (?3 IS NULL OR name IN (?3, ?7)
                        OR name GLOB ?7 || '-[0-9]*' AND substr(name, length(?7) + 2) NOT GLOB '*[^0-9]*')
                   AND (?4 IS NULL OR id < ?4)
                 ORDER BY id DESC LIMIT ?5 OFFSET ?6"
            ))?;
            let status = filter.status.map(TaskStatus::as_str);
            // One more than asked for tells whether there is more.
            let limit = i64::from(filter.limit) + 1;
            let plain = filter.name.as_deref().and_then(plain_name);
            let offset = i64::try_from(filter.offset).unwrap_or(i64::MAX);
            let mut rows = statement.query(params![
                filter.owner,
                status,
                filter.name,
                filter.before,
                limit,
                offset,
                plain
            ])?;
            let mut tasks = Vec::new();
            while let Some(row) = rows.next()? {
                tasks.push(shortened(task(row)?));
            }
            let more = tasks.len() > filter.limit as usize;
            tasks.truncate(filter.limit as usize);
            Ok(TaskPage { tasks, more })
        })
        .await
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
                    status: named(row.get("status")?, "job status")?,
                    result_object: result.as_deref().map(document).transpose()?,
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
