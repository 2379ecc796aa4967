//! Lifecycle of a job in the database.
//!
//! ```text
//! queued ──claim (next attempt)──▶ running ──finish──▶ completed | failed | timeout | canceled | lost
//!   ▲                               │ │ │
//!   └────────retry (backoff)────────┘ │ └─ offer, accept: see [`offers`](super::offers)
//!   └─release (the node refused)──────┘    a node that can never run it: see [`refusals`](super::refusals)
//! ```
//!
//! Every write about a running job names its attempt and is conditional on it, so that a late answer of
//! an earlier attempt changes nothing. The row of the task follows in the same commit.
//!
//! `last_attempt` counts the attempts that any node may know. The next attempt gets a number of its own, also
//! where the outcome of an offer is unknown.

use super::{
    CancelOutcome, FinishedJob, Lane, RunningJob, Store, StoreError, artifacts, audit,
    rows::{execute, parse_document, parse_name, to_document},
    usage,
};
use crate::api::{
    JobId, NodeId, TaskId,
    audit::AuditEvent,
    events::Outline,
    jobs::{MAX_TIMEOUT_SECONDS, SandboxSpec},
    nodes::effective_timeout_seconds,
    tasks::{JobStatus, TaskStatus},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params, types::ValueRef};

const RUNNING: &str = "SELECT j.*, t.spec ->> '$.sandbox.timeout_seconds' AS timeout_seconds, t.sandbox IS NOT NULL AS is_sandbox
    FROM jobs j JOIN tasks t ON t.id = j.task_id WHERE j.status = 'running'";

const LIMITS: &str = "SELECT t.spec ->> '$.sandbox.timeout_seconds' AS timeout_seconds,
        t.sandbox IS NOT NULL AS is_sandbox,
        n.capability ->> '$.sandbox.default_timeout_seconds' AS shortest,
        n.capability ->> '$.sandbox.max_timeout_seconds' AS longest
    FROM jobs j JOIN tasks t ON t.id = j.task_id";

/// Time limit in a column, lowered to the longest that any node can allow. SQLite reads a number in JSON from 2^63 on as
/// REAL.
pub(super) fn seconds(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<u64>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(seconds) => u64::try_from(seconds).ok(),
        ValueRef::Real(_) => Some(MAX_TIMEOUT_SECONDS),
        _ => None,
    }
    .map(|seconds| seconds.min(MAX_TIMEOUT_SECONDS)))
}

fn running(row: &Row<'_>) -> Result<RunningJob, StoreError> {
    Ok(RunningJob {
        id: row.get("id")?,
        task_id: row.get("task_id")?,
        attempt: row.get("attempt")?,
        last_attempt: row.get("last_attempt")?,
        max_attempts: row.get("max_attempts")?,
        node_id: row.get("node_id")?,
        offered_to: row.get("offered_node_id")?,
        cancel_requested: row.get("cancel_requested")?,
        eligible_at: row.get("not_before")?,
        started_at: row.get("started_at")?,
        placement: row.get("placement")?,
        timeout_seconds: seconds(row, "timeout_seconds")?,
        effective_timeout_seconds: seconds(row, "effective_timeout_seconds")?,
        is_sandbox: row.get("is_sandbox")?,
    })
}

pub(super) fn running_by_id(c: &Connection, id: JobId) -> Result<Option<RunningJob>, StoreError> {
    let mut statement = c.prepare_cached(&format!("{RUNNING} AND j.id = ?1"))?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(running).transpose()
}

/// Lane of a job that is queued again.
fn lane(row: &Row<'_>) -> rusqlite::Result<Lane> {
    Ok(Lane {
        user: row.get(0)?,
        placement: row.get(1)?,
    })
}

pub(super) fn sync_task_status(
    c: &Connection,
    job: JobId,
    status: TaskStatus,
    now: Time,
) -> Result<(), StoreError> {
    execute(c, "UPDATE tasks SET status = ?2, updated_at = ?3,
                started_at = CASE ?2 WHEN 'running' THEN coalesce(started_at, ?3) WHEN 'queued' THEN NULL
                             ELSE started_at END,
                ended_at = CASE WHEN ?4 THEN ?3 END
         WHERE id = (SELECT task_id FROM jobs WHERE id = ?1)",
        params![job, status.as_str(), now, status.is_final()],
    )?;
    Ok(())
}

/// Time limits of a job at a node.
struct Limits {
    /// Limit that the task asks for, in seconds.
    asked: Option<i64>,
    /// Limit in force by the node's last report. A sandbox that stays has none: it has a lifetime, which can be renewed.
    effective: Option<i64>,
    is_sandbox: bool,
}

fn limits(row: &Row<'_>) -> rusqlite::Result<Limits> {
    let asked = seconds(row, "timeout_seconds")?;
    let [default, most] = [seconds(row, "shortest")?, seconds(row, "longest")?];
    let limit = effective_timeout_seconds(asked, default, most);
    let is_sandbox: bool = row.get("is_sandbox")?;
    let column = |seconds| i64::try_from(seconds).unwrap_or(i64::MAX);
    Ok(Limits {
        asked: asked.map(column),
        effective: (!is_sandbox).then(|| column(limit)),
        is_sandbox,
    })
}

/// Most jobs that are claimed in one commit.
pub const MAX_CLAIMS: usize = 256;

/// Records the time limit in force for a job at its node, by the node's last report.
pub(super) fn record_time_limit(c: &Connection, job: JobId) -> Result<(), StoreError> {
    let mut statement = c.prepare_cached(&format!(
        "{LIMITS} JOIN nodes n ON n.id = j.node_id WHERE j.id = ?1"
    ))?;
    let limits = statement.query_row([job], limits)?;
    let sql = "UPDATE jobs SET effective_timeout_seconds = ?2 WHERE id = ?1";
    execute(c, sql, params![job, limits.effective])?;
    Ok(())
}

/// Assigns a queued job to a node.
fn claim(
    c: &Connection,
    id: JobId,
    node: NodeId,
    now: Time,
) -> Result<Option<RunningJob>, StoreError> {
    let mut statement = c.prepare_cached(&format!(
        "{LIMITS} JOIN nodes n ON n.id = ?2 WHERE j.id = ?1 AND j.status = 'queued'"
    ))?;
    let found = statement.query_row(params![id, node], limits).optional()?;
    let Some(limits) = found else {
        return Ok(None);
    };
    let mut statement = c.prepare_cached(
        "UPDATE jobs SET status = 'running', attempt = last_attempt + 1, last_attempt = last_attempt + 1,
                node_id = ?2, started_at = ?3, effective_timeout_seconds = ?4
         WHERE id = ?1 AND status = 'queued' RETURNING *, ?5 AS timeout_seconds, ?6 AS is_sandbox",
    )?;
    let Limits {
        asked,
        effective,
        is_sandbox,
    } = limits;
    let mut rows = statement.query(params![id, node, now, effective, asked, is_sandbox])?;
    let claimed = rows.next()?.map(running).transpose()?;
    drop(rows);
    if claimed.is_some() {
        sync_task_status(c, id, TaskStatus::Running, now)?;
    }
    Ok(claimed)
}

impl Store {
    /// Assigns queued jobs to nodes, in one commit. For each `None` when the job isn't queued any more, or the node was
    /// deleted; a claim that fails doesn't affect the others.
    pub async fn job_claim(
        &self,
        assigned: &[(JobId, NodeId)],
        now: Time,
    ) -> Vec<Result<Option<RunningJob>, StoreError>> {
        let claim = |(id, node): &(JobId, NodeId)| {
            let (id, node) = (*id, *node);
            move |c: &Connection| claim(c, id, node, now)
        };
        let claims = assigned.iter().map(claim).collect();
        self.writer.write_all(claims).await
    }

    /// Sandbox of a task, as a node is to run it: up to 1 MiB, so read for each request and not kept.
    pub async fn task_sandbox(&self, id: TaskId) -> Result<SandboxSpec, StoreError> {
        self.read_document(move |c| {
            let mut statement =
                c.prepare_cached("SELECT spec -> '$.sandbox' FROM tasks WHERE id = ?1")?;
            let sandbox: Option<String> = statement.query_row([id], |row| row.get(0)).optional()?;
            parse_document(&sandbox.ok_or(StoreError::Damaged("task"))?)
        })
        .await
    }

    /// All jobs that run on nodes.
    pub async fn job_running(&self) -> Result<Vec<RunningJob>, StoreError> {
        self.read_long(|c| {
            let mut statement = c.prepare_cached(RUNNING)?;
            let mut rows = statement.query([])?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next()? {
                jobs.push(running(row)?);
            }
            Ok(jobs)
        })
        .await
    }

    /// Stores the end of the current attempt and withdraws an offer; false when the attempt isn't the current
    /// one.
    pub async fn job_finish(&self, end: FinishedJob, now: Time) -> Result<bool, StoreError> {
        // Up to a megabyte, so serialized before the thread of the writer.
        let result = end.result.as_ref().map(to_document).transpose()?;
        let outline = end.outline.as_ref().map(to_document).transpose()?;
        let inference = end.result.as_ref().and_then(|result| {
            let took = result.ended_at.since(result.started_at);
            Some((result.inference.clone()?, took))
        });
        self.write(move |c| {
            let mut statement = c.prepare_cached(
                "UPDATE jobs SET status = ?3, result = ?4, outline = ?5, ended_at = ?6, offered_node_id = NULL
                 WHERE id = ?1 AND attempt = ?2 AND status = 'running' RETURNING task_id",
            )?;
            let status = end.status.as_str();
            let values = params![end.id, end.attempt, status, result, outline, now];
            let task = statement.query_row(values, |row| row.get(0)).optional()?;
            let Some(task) = task else {
                return Ok(false);
            };
            let status = end.status.task_status().as_str();
            execute(
                c,
                "UPDATE tasks SET status = ?2, updated_at = ?3, ended_at = ?3, summary = ?4, exit_code = ?5
                 WHERE id = ?1",
                params![task, status, now, end.summary, end.exit_code],
            )?;
            artifacts::add_collected(c, task, &end.artifacts, now)?;
            if let Some((inference, took)) = &inference {
                usage::add_prompt(c, end.id, (inference, *took), now)?;
            }
            Ok(true)
        })
        .await
    }

    /// Queues a job again, not to be assigned before `not_before`; false when the attempt isn't the current
    /// one, the job is to be canceled or may have no other attempt. With `refused` the node never started this
    /// attempt, so that its number is free again where no later one was given out.
    pub async fn job_requeue(
        &self,
        id: JobId,
        attempt: u32,
        refused: bool,
        not_before: Time,
        now: Time,
    ) -> Result<bool, StoreError> {
        let lanes = self.lanes.clone();
        self.write(move |c| {
            let requeued = c.query_row(
                "UPDATE jobs SET status = 'queued', attempt = attempt - (?3 AND attempt = last_attempt),
                        last_attempt = last_attempt - (?3 AND attempt = last_attempt),
                        node_id = NULL, offered_node_id = NULL, started_at = NULL, effective_timeout_seconds = NULL,
                        not_before = ?4
                 WHERE id = ?1 AND attempt = ?2 AND status = 'running' AND cancel_requested = 0
                   AND (last_attempt < max_attempts OR ?3 AND attempt = last_attempt)
                 RETURNING user_id, placement",
                params![id, attempt, refused, not_before],
                lane,
            );
            let Some(lane) = requeued.optional()? else {
                return Ok(false);
            };
            lanes.enter(lane);
            sync_task_status(c, id, TaskStatus::Queued, now)?;
            Ok(true)
        })
        .await
    }

    /// Order in which the output of the last job of a task came; empty where that is unknown.
    pub async fn job_outline(&self, task: TaskId) -> Result<Outline, StoreError> {
        self.read(move |c| {
            let sql = "SELECT outline FROM jobs WHERE task_id = ?1 ORDER BY id DESC LIMIT 1";
            let json: Option<String> = c
                .query_row(sql, [task], |row| row.get(0))
                .optional()?
                .flatten();
            json.map_or(Ok(Outline::new()), |json| parse_document(&json))
        })
        .await
    }

    /// Running job of a task, if any.
    pub async fn task_running_job(&self, id: TaskId) -> Result<Option<JobId>, StoreError> {
        self.read(move |c| {
            let sql = "SELECT id FROM jobs WHERE task_id = ?1 AND status = 'running'";
            let mut statement = c.prepare_cached(sql)?;
            Ok(statement.query_row([id], |row| row.get(0)).optional()?)
        })
        .await
    }

    /// Cancels a task. A queued one ends here and now; a running one is only marked, and its job is returned,
    /// so that its node can be notified. `event` is stored where the cancel changed something.
    pub async fn task_cancel(
        &self,
        id: TaskId,
        event: AuditEvent,
    ) -> Result<CancelOutcome, StoreError> {
        self.write(move |c| {
            let (now, event) = (event.at, event.clone().to(id.to_string()));
            let dequeued = c.query_row(
                "UPDATE jobs SET status = 'canceled', ended_at = ?2
                 WHERE task_id = ?1 AND status = 'queued' RETURNING id, attempt",
                params![id, now],
                |row| Ok((row.get(0)?, row.get(1)?)),
            );
            if let Some((job, attempt)) = dequeued.optional()? {
                sync_task_status(c, job, TaskStatus::Canceled, now)?;
                let sql = "UPDATE tasks SET summary = 'canceled before it started' WHERE id = ?1";
                execute(c, sql, [id])?;
                audit::add(c, &event)?;
                return Ok(CancelOutcome::Dequeued { attempt });
            }
            let running = c.query_row(
                "SELECT id, cancel_requested FROM jobs WHERE task_id = ?1 AND status = 'running'",
                [id],
                |row| Ok((row.get(0)?, row.get(1)?)),
            );
            let running: Option<(JobId, bool)> = running.optional()?;
            if let Some((job, is_requested)) = running {
                if !is_requested {
                    execute(
                        c,
                        "UPDATE jobs SET cancel_requested = 1 WHERE id = ?1",
                        [job],
                    )?;
                    audit::add(c, &event)?;
                }
                return Ok(CancelOutcome::Running(job));
            }
            let sql = "SELECT status FROM jobs WHERE task_id = ?1 ORDER BY id DESC LIMIT 1";
            let ended: Option<String> = c.query_row(sql, [id], |row| row.get(0)).optional()?;
            let ended = ended.map(|status| parse_name::<JobStatus>(status, "job status"));
            Ok(CancelOutcome::Ended {
                canceled: ended.transpose()? == Some(JobStatus::Canceled),
            })
        })
        .await
    }
}
