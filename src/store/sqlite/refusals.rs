//! Refusals of a job by nodes that can never run it: they don't allow its image or don't have it, or accept no
//! request of its size. Another node may run it.
//!
//! A refused job returns to the queue in a lane of its own, since the excluded nodes are part of its
//! [`Placement`]. So scheduling stays as cheap as it was. A node that restarts may have changed, so it is
//! readmitted.
//!
//! The attempt ran nothing. Its number is not used again, since the node may have a record of it; the job may
//! have one more attempt instead.

use super::{
    Lane, Placement, Refusals, RefusedJob, Store, StoreError, TaskRequirements,
    jobs::sync_task_status,
    rows::{execute, parse_document, to_document},
};
use crate::api::{JobId, NodeId, TaskId, UserId, tasks::TaskStatus, time::Time};
use rusqlite::{Connection, OptionalExtension as _, params};

/// Maximum number of jobs that are read of a lane at a time.
const LANE_READ_LIMIT: u32 = 1000;

/// Refusals from a column.
fn parse_refusals(column: Option<String>) -> Result<Refusals, StoreError> {
    column.map_or(Ok(Refusals::new()), |json| parse_document(&json))
}

/// Readmits a node to jobs that run elsewhere.
fn readmit_running(c: &Connection, node: NodeId) -> Result<(), StoreError> {
    let sql = "SELECT id, placement, refusals FROM jobs WHERE status = 'running' AND refusals IS NOT NULL";
    let mut refused = Vec::new();
    let mut statement = c.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, placement): (JobId, Placement) = (row.get(0)?, row.get(1)?);
        let mut refusals = parse_refusals(row.get(2)?)?;
        if refusals.remove(&node).is_some() {
            refused.push((id, readmitting(&placement, node), refusals));
        }
    }
    for (id, placement, refusals) in refused {
        let sql = "UPDATE jobs SET placement = ?2, refusals = ?3 WHERE id = ?1";
        execute(c, sql, params![id, placement, to_document(&refusals)?])?;
    }
    Ok(())
}

/// The same placement without the exclusion of a node.
fn readmitting(placement: &Placement, node: NodeId) -> Placement {
    let excluded = placement.excluded_nodes().iter().copied();
    placement.excluding(excluded.filter(|excluded| *excluded != node))
}

impl Store {
    /// Queues a job again for any node except those that refused it; false when the attempt isn't the current
    /// one, or the job is to be canceled.
    pub async fn job_refuse(
        &self,
        id: JobId,
        attempt: u32,
        refusals: Refusals,
        not_before: Time,
        now: Time,
    ) -> Result<bool, StoreError> {
        let lanes = self.lanes.clone();
        self.write(move |c| {
            let sql = "SELECT user_id, placement FROM jobs
                       WHERE id = ?1 AND attempt = ?2 AND status = 'running' AND cancel_requested = 0";
            let known: Option<(UserId, Placement)> = c
                .query_row(sql, params![id, attempt], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((user, placement)) = known else {
                return Ok(false);
            };
            let placement = placement.excluding(refusals.keys().copied());
            lanes.enter(Lane { user, placement: placement.clone() });
            execute(c, "UPDATE jobs SET status = 'queued', node_id = NULL, offered_node_id = NULL, started_at = NULL,
                        effective_timeout_seconds = NULL,
                        not_before = ?2, placement = ?3, refusals = ?4, max_attempts = max_attempts + 1
                 WHERE id = ?1",
                params![id, not_before, placement, to_document(&refusals)?],
            )?;
            sync_task_status(c, id, TaskStatus::Queued, now)?;
            Ok(true)
        })
        .await
    }

    /// Withdraws the offer to a node that can't run the job and excludes the nodes in `refusals`; the new placement
    /// of the job. `None` where the attempt isn't offered any more.
    pub async fn job_exclude(
        &self,
        id: JobId,
        attempt: u32,
        refusals: Refusals,
    ) -> Result<Option<Placement>, StoreError> {
        self.write(move |c| {
            let sql = "SELECT placement FROM jobs WHERE id = ?1 AND last_attempt = ?2 AND status = 'running'
                       AND offered_node_id IS NOT NULL";
            let offered = c.query_row(sql, params![id, attempt], |row| row.get::<_, Placement>(0));
            let Some(placement) = offered.optional()? else {
                return Ok(None);
            };
            let placement = placement.excluding(refusals.keys().copied());
            execute(c, "UPDATE jobs SET offered_node_id = NULL, placement = ?2, refusals = ?3, max_attempts = max_attempts + 1
                 WHERE id = ?1",
                params![id, placement, to_document(&refusals)?],
            )?;
            Ok(Some(placement))
        })
        .await
    }

    /// Lanes of queued jobs that some node refused; some may be empty.
    pub fn lane_list_refused(&self) -> Vec<Lane> {
        let is_refused = |placement: &Placement| !placement.excluded_nodes().is_empty();
        self.lanes.filter(is_refused)
    }

    /// Some of the jobs of a lane, with their refusals.
    pub async fn lane_refusals(&self, lane: Lane) -> Result<Vec<RefusedJob>, StoreError> {
        self.read_long(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT id, task_id, attempt, refusals,
                     (SELECT tasks.sandbox IS NOT NULL FROM tasks WHERE tasks.id = jobs.task_id)
                 FROM jobs
                 WHERE status = 'queued' AND user_id = ?1 AND placement = ?2 LIMIT ?3",
            )?;
            let mut rows = statement.query(params![lane.user, lane.placement, LANE_READ_LIMIT])?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next()? {
                jobs.push(RefusedJob {
                    id: row.get(0)?,
                    task: row.get(1)?,
                    attempt: row.get(2)?,
                    refusals: parse_refusals(row.get(3)?)?,
                    is_sandbox: row.get(4)?,
                });
            }
            Ok(jobs)
        })
        .await
    }

    /// Fails a queued job that every possible node refused; false when it is not queued any more.
    pub async fn job_fail_refused(
        &self,
        id: JobId,
        summary: String,
        now: Time,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let changed = execute(c, "UPDATE jobs SET status = 'failed', ended_at = ?2 WHERE id = ?1 AND status = 'queued'",
                params![id, now],
            )?;
            if changed == 0 {
                return Ok(false);
            }
            sync_task_status(c, id, TaskStatus::Failed, now)?;
            execute(c, "UPDATE tasks SET summary = ?2 WHERE id = (SELECT task_id FROM jobs WHERE id = ?1)",
                params![id, summary],
            )?;
            Ok(true)
        })
        .await
    }

    /// Readmits a node to the jobs that it refused: those in the queue, and those that run elsewhere and may be
    /// queued again.
    pub async fn node_readmit(&self, node: NodeId) -> Result<(), StoreError> {
        let lanes = self.lanes.clone();
        self.write(move |c| {
            readmit_running(c, node)?;
            for lane in lanes.filter(|placement| placement.excluded_nodes().contains(&node)) {
                let placement = readmitting(&lane.placement, node);
                lanes.enter(Lane {
                    user: lane.user,
                    placement: placement.clone(),
                });
                let refusal = format!("$.\"{node}\"");
                execute(
                    c,
                    "UPDATE jobs SET placement = ?3, refusals = json_remove(refusals, ?4)
                     WHERE status = 'queued' AND user_id = ?1 AND placement = ?2",
                    params![lane.user, lane.placement, placement, refusal],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Requirements of a task, and the nodes that refused it.
    pub async fn task_requirements(&self, id: TaskId) -> Result<TaskRequirements, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT placement, refusals FROM jobs WHERE task_id = ?1 ORDER BY id DESC LIMIT 1",
            )?;
            let (placement, refusals) =
                statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(TaskRequirements {
                placement,
                refusals: parse_refusals(refusals)?,
            })
        })
        .await
    }
}
