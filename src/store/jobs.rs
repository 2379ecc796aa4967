//! The life of a job in the database.
//!
//! ```text
//! queued ──claim (next attempt)──▶ running ──finish──▶ completed | failed | timeout | canceled | lost
//!   ▲                               │ │ │
//!   └────────retry (backoff)────────┘ │ └─ offer, accept: see [`offers`](super::offers)
//!   └─release (the node refused)──────┘    a node that can never run it: see [`refusals`](super::refusals)
//! ```
//!
//! Every write about a running job names its attempt and is conditional on it, so a late
//! answer of an earlier attempt changes nothing. The task's row follows in the same commit.
//!
//! `last_attempt` counts the attempts that any node may have heard of: the next one has a number
//! of its own, also where nobody knows what became of an offer.

use super::{Lane, Store, StoreError, rows::parse_document};
use crate::api::{
    JobId, NodeId, TaskId,
    tasks::{JobStatus, TaskSpec, TaskStatus},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

/// A job that a node has.
#[derive(Clone, Debug)]
pub struct RunningJob {
    /// Which job.
    pub id: JobId,
    /// Whose.
    pub task_id: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// The highest that any node may have heard of.
    pub last_attempt: u32,
    /// How many there may be.
    pub max_attempts: u32,
    /// The node.
    pub node_id: NodeId,
    /// Another one, which is offered the last attempt.
    pub offered_to: Option<NodeId>,
    /// Whether it is to be canceled.
    pub cancel_requested: bool,
    /// Since when it could have been given to a node.
    pub eligible_at: Time,
    /// What it asks of a node, as the queue has it.
    pub placement: String,
    /// What is run.
    pub spec: TaskSpec,
}

/// How an attempt ended, ready to be stored.
#[derive(Clone, Debug)]
pub struct FinishedJob {
    /// Which job.
    pub id: JobId,
    /// Which attempt; must still be the current one.
    pub attempt: u32,
    /// How it ended.
    pub status: JobStatus,
    /// The Worker API's result as JSON.
    pub result: Option<String>,
    /// How the output came as events; see [`OutputLog::outline`](crate::api::events::OutputLog::outline).
    pub outline: Option<String>,
    /// The command's exit code.
    pub exit_code: Option<i32>,
    /// One line for people.
    pub summary: String,
}

/// How many jobs have not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobCounts {
    /// Those that wait for a node, in a backoff or not.
    pub queued: u32,
    /// Those that nodes have.
    pub running: u32,
}

const COUNTS: &str = "SELECT (SELECT coalesce(sum(queued), 0) FROM queue_depths) AS queued,
                             (SELECT count(*) FROM jobs WHERE status = 'running') AS running";

const RUNNING: &str =
    "SELECT j.*, t.spec FROM jobs j JOIN tasks t ON t.id = j.task_id WHERE j.status = 'running'";

impl RunningJob {
    /// Whether there may be another attempt.
    pub fn may_retry(&self) -> bool {
        self.last_attempt < self.max_attempts
    }

    /// What another node is offered, if it is.
    pub fn offered_attempt(&self) -> Option<Self> {
        Some(Self {
            attempt: self.last_attempt,
            node_id: self.offered_to?,
            offered_to: None,
            ..self.clone()
        })
    }
}

fn running(row: &Row<'_>) -> Result<RunningJob, StoreError> {
    let spec: String = row.get("spec")?;
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
        placement: row.get("placement")?,
        spec: parse_document(&spec)?,
    })
}

pub(super) fn running_by_id(c: &Connection, id: JobId) -> Result<Option<RunningJob>, StoreError> {
    let mut statement = c.prepare_cached(&format!("{RUNNING} AND j.id = ?1"))?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(running).transpose()
}

/// A row of the lane that a job is put into.
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
    c.execute(
        "UPDATE tasks SET status = ?2, updated_at = ?3,
                started_at = CASE ?2 WHEN 'running' THEN coalesce(started_at, ?3) WHEN 'queued' THEN NULL
                             ELSE started_at END,
                ended_at = CASE WHEN ?4 THEN ?3 END
         WHERE id = (SELECT task_id FROM jobs WHERE id = ?1)",
        params![job, status.as_str(), now, status.is_final()],
    )?;
    Ok(())
}

impl Store {
    /// Gives a queued job to a node; `None` when it isn't queued any more, or the node was forgotten.
    pub async fn job_claim(
        &self,
        id: JobId,
        node: NodeId,
        now: Time,
    ) -> Result<Option<RunningJob>, StoreError> {
        self.write(move |c| {
            let changed = c.execute(
                "UPDATE jobs SET status = 'running', attempt = last_attempt + 1, last_attempt = last_attempt + 1,
                        node_id = ?2, started_at = ?3
                 WHERE id = ?1 AND status = 'queued' AND EXISTS (SELECT 1 FROM nodes WHERE id = ?2)",
                params![id, node, now],
            )?;
            if changed == 0 {
                return Ok(None);
            }
            sync_task_status(c, id, TaskStatus::Running, now)?;
            running_by_id(c, id)
        })
        .await
    }

    /// All jobs that nodes have.
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

    /// How many jobs wait and how many nodes have, at one moment. Costs as much as there are users and
    /// running jobs, however long the queue is.
    pub async fn job_counts(&self) -> Result<JobCounts, StoreError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(COUNTS)?;
            Ok(statement.query_row([], |row| {
                Ok(JobCounts {
                    queued: row.get("queued")?,
                    running: row.get("running")?,
                })
            })?)
        })
        .await
    }

    /// Stores the end of the current attempt, and takes back what is offered; false when it isn't the current
    /// one.
    pub async fn job_finish(&self, end: FinishedJob, now: Time) -> Result<bool, StoreError> {
        self.write(move |c| {
            let changed = c.execute(
                "UPDATE jobs SET status = ?3, result = ?4, outline = ?5, ended_at = ?6, offered_node_id = NULL
                 WHERE id = ?1 AND attempt = ?2 AND status = 'running'",
                params![end.id, end.attempt, end.status.as_str(), end.result, end.outline, now],
            )?;
            if changed == 0 {
                return Ok(false);
            }
            sync_task_status(c, end.id, end.status.task_status(), now)?;
            c.execute(
                "UPDATE tasks SET summary = ?2, exit_code = ?3 WHERE id = (SELECT task_id FROM jobs WHERE id = ?1)",
                params![end.id, end.summary, end.exit_code],
            )?;
            Ok(true)
        })
        .await
    }

    /// Puts a job back into the queue, not before `not_before`; false when the attempt isn't the
    /// current one, the job is to be canceled or may have no other attempt. With `refused` the node never
    /// started this attempt, so that its number is free again, where no later one was given.
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
                        node_id = NULL, offered_node_id = NULL, started_at = NULL, not_before = ?4
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

    /// How the output of a task's last job came as events; empty where that isn't known.
    pub async fn job_outline(&self, task: TaskId) -> Result<Vec<(u8, u64)>, StoreError> {
        self.read(move |c| {
            let sql = "SELECT outline FROM jobs WHERE task_id = ?1 ORDER BY id DESC LIMIT 1";
            let json: Option<String> = c
                .query_row(sql, [task], |row| row.get(0))
                .optional()?
                .flatten();
            json.map_or(Ok(Vec::new()), |json| parse_document(&json))
        })
        .await
    }

    /// The job of a task that a node has, if one has it.
    pub async fn task_running_job(&self, id: TaskId) -> Result<Option<JobId>, StoreError> {
        self.read(move |c| {
            let sql = "SELECT id FROM jobs WHERE task_id = ?1 AND status = 'running'";
            let mut statement = c.prepare_cached(sql)?;
            Ok(statement.query_row([id], |row| row.get(0)).optional()?)
        })
        .await
    }

    /// Asks for the end of a task. A queued one ends here and now; for a running one its job is
    /// returned, so that its node can be told.
    pub async fn task_cancel(&self, id: TaskId, now: Time) -> Result<CancelOutcome, StoreError> {
        self.write(move |c| {
            let sql = "SELECT id, status, attempt FROM jobs WHERE task_id = ?1 ORDER BY id DESC";
            let found: Option<(JobId, String, u32)> = c
                .query_row(sql, [id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            let Some((job, status, attempt)) = found else {
                return Ok(CancelOutcome::Ended { canceled: false });
            };
            match status.as_str() {
                "queued" => {
                    c.execute(
                        "UPDATE jobs SET status = 'canceled', ended_at = ?2 WHERE id = ?1",
                        params![job, now],
                    )?;
                    sync_task_status(c, job, TaskStatus::Canceled, now)?;
                    c.execute(
                        "UPDATE tasks SET summary = 'canceled before it started' WHERE id = ?1",
                        [id],
                    )?;
                    Ok(CancelOutcome::Dequeued { attempt })
                }
                "running" => {
                    c.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ?1", [job])?;
                    Ok(CancelOutcome::Running(job))
                }
                ended => Ok(CancelOutcome::Ended {
                    canceled: ended == "canceled",
                }),
            }
        })
        .await
    }
}

/// What a request to cancel met.
pub enum CancelOutcome {
    /// The job waited, and has ended now.
    Dequeued {
        /// How often it had been given to a node before.
        attempt: u32,
    },
    /// A node has the job.
    Running(JobId),
    /// It had ended before, by an earlier cancel or otherwise.
    Ended {
        /// Whether it had been canceled.
        canceled: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn job_counts_read_no_jobs() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let plan = store.read(|c| {
            let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {COUNTS}"))?;
            let steps = statement.query_map([], |row| row.get::<_, String>("detail"))?;
            Ok(steps.collect::<Result<Vec<_>, _>>()?.join("\n"))
        });
        let plan = plan.await.unwrap();
        assert!(plan.contains("SCAN queue_depths"), "{plan}");
        assert!(
            plan.contains("jobs USING COVERING INDEX jobs_running"),
            "{plan}"
        );
        let none = JobCounts {
            queued: 0,
            running: 0,
        };
        assert_eq!(store.job_counts().await.unwrap(), none);
    }
}
