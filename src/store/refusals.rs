//! Nodes that refused a job for what they are: they don't allow its image or don't have it, or take no
//! request of its size. Another node may run it.
//!
//! A job that was refused goes back to the queue, and stands there in a lane of its own: the nodes to
//! leave out are part of what it asks of a node ([`Placement`]). So scheduling stays as cheap as it was. A
//! node that starts anew may have changed: it is left out no longer.
//!
//! The attempt ran nothing. Its number is not given again, since the node may have a record of it; the job
//! may have one more instead.

use super::{
    Lane, Placement, Store, StoreError,
    jobs::sync_task_status,
    rows::{parse_document, to_document},
};
use crate::api::{JobId, NodeId, TaskId, UserId, tasks::TaskStatus, time::Time};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Refusal of a job by one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Slug of the node.
    pub node: String,
    /// Reason, for people.
    pub reason: String,
}

/// Refusals of a job, by node.
pub type Refusals = BTreeMap<NodeId, Refusal>;

/// A queued job that some nodes refused.
#[derive(Clone, Debug)]
pub struct RefusedJob {
    /// The job.
    pub id: JobId,
    /// Its task.
    pub task: TaskId,
    /// The attempt that was refused last.
    pub attempt: u32,
    /// Nodes that refused it.
    pub refusals: Refusals,
}

/// Jobs of a lane that are read at a time.
const LANE_READ_LIMIT: u32 = 1000;

/// TaskRequirements of a queued task, and who could not meet them.
#[derive(Clone, Debug, Default)]
pub struct TaskRequirements {
    /// Labels that its node must bear.
    pub labels: Vec<String>,
    /// Nodes that refused it.
    pub refusals: Refusals,
}

/// Refusals out of a column.
pub(super) fn read(column: Option<String>) -> Result<Refusals, StoreError> {
    column.map_or(Ok(Refusals::new()), |json| parse_document(&json))
}

/// Takes a node out of what jobs that run elsewhere must not be given to.
fn readmit_running(c: &Connection, node: NodeId) -> Result<(), StoreError> {
    let sql = "SELECT id, placement, refusals FROM jobs WHERE status = 'running' AND refusals IS NOT NULL";
    let mut refused = Vec::new();
    let mut statement = c.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, placement): (JobId, String) = (row.get(0)?, row.get(1)?);
        let mut refusals = read(row.get(2)?)?;
        if refusals.remove(&node).is_some() {
            let mut placement = Placement::parse(&placement)?;
            placement.except.remove(&node);
            refused.push((id, placement, refusals));
        }
    }
    for (id, placement, refusals) in refused {
        let sql = "UPDATE jobs SET placement = ?2, refusals = ?3 WHERE id = ?1";
        c.execute(sql, params![id, placement.text()?, to_document(&refusals)?])?;
    }
    Ok(())
}

impl Store {
    /// Puts a job back into the queue for any node but those that refused it; false when the attempt isn't
    /// the current one, or the job is to be canceled.
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
            let known: Option<(UserId, String)> = c
                .query_row(sql, params![id, attempt], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((user, placement)) = known else {
                return Ok(false);
            };
            let mut placement = Placement::parse(&placement)?;
            placement.except = refusals.keys().copied().collect();
            let placement = placement.text()?;
            lanes.enter(Lane { user, placement: placement.as_str().into() });
            c.execute(
                "UPDATE jobs SET status = 'queued', node_id = NULL, offered_node_id = NULL, started_at = NULL,
                        not_before = ?2, placement = ?3, refusals = ?4, max_attempts = max_attempts + 1
                 WHERE id = ?1",
                params![id, not_before, placement, to_document(&refusals)?],
            )?;
            sync_task_status(c, id, TaskStatus::Queued, now)?;
            Ok(true)
        })
        .await
    }

    /// Takes an offer back from a node that can't run the job, and offers it to none of those in `refusals`
    /// again; what the job asks of a node then. `None` where it isn't offered any more.
    pub async fn job_exclude(
        &self,
        id: JobId,
        attempt: u32,
        refusals: Refusals,
    ) -> Result<Option<String>, StoreError> {
        self.write(move |c| {
            let sql = "SELECT placement FROM jobs WHERE id = ?1 AND last_attempt = ?2 AND status = 'running'
                       AND offered_node_id IS NOT NULL";
            let offered = c.query_row(sql, params![id, attempt], |row| row.get::<_, String>(0));
            let Some(placement) = offered.optional()? else {
                return Ok(None);
            };
            let mut placement = Placement::parse(&placement)?;
            placement.except = refusals.keys().copied().collect();
            let placement = placement.text()?;
            c.execute(
                "UPDATE jobs SET offered_node_id = NULL, placement = ?2, refusals = ?3, max_attempts = max_attempts + 1
                 WHERE id = ?1",
                params![id, placement, to_document(&refusals)?],
            )?;
            Ok(Some(placement))
        })
        .await
    }

    /// Lines of queued jobs that some node refused, each with what it asks of a node; some may be empty.
    pub fn lane_list_refused(&self) -> Result<Vec<(Lane, Placement)>, StoreError> {
        let with_refusals = self.lanes.with("\"except\"").into_iter();
        with_refusals
            .map(|lane| Ok((Placement::parse(&lane.placement)?, lane)))
            .map(|read| read.map(|(placement, lane)| (lane, placement)))
            .collect()
    }

    /// Some of the jobs of a lane, with who refused them.
    pub async fn lane_refusals(&self, lane: Lane) -> Result<Vec<RefusedJob>, StoreError> {
        self.read_long(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT id, task_id, attempt, refusals FROM jobs
                 WHERE status = 'queued' AND user_id = ?1 AND placement = ?2 LIMIT ?3",
            )?;
            let mut rows = statement.query(params![lane.user, lane.placement, LANE_READ_LIMIT])?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next()? {
                jobs.push(RefusedJob {
                    id: row.get(0)?,
                    task: row.get(1)?,
                    attempt: row.get(2)?,
                    refusals: read(row.get(3)?)?,
                });
            }
            Ok(jobs)
        })
        .await
    }

    /// Fails a queued job that no node is left for; false when it is not queued any more.
    pub async fn job_fail_refused(
        &self,
        id: JobId,
        summary: String,
        now: Time,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let changed = c.execute(
                "UPDATE jobs SET status = 'failed', ended_at = ?2 WHERE id = ?1 AND status = 'queued'",
                params![id, now],
            )?;
            if changed == 0 {
                return Ok(false);
            }
            sync_task_status(c, id, TaskStatus::Failed, now)?;
            c.execute(
                "UPDATE tasks SET summary = ?2 WHERE id = (SELECT task_id FROM jobs WHERE id = ?1)",
                params![id, summary],
            )?;
            Ok(true)
        })
        .await
    }

    /// Lets jobs go to a node that refused them before: those that are queued, and those that run elsewhere
    /// and may be queued again.
    pub async fn node_readmit(&self, node: NodeId) -> Result<(), StoreError> {
        let lanes = self.lanes.clone();
        self.write(move |c| {
            readmit_running(c, node)?;
            for lane in lanes.with(&node.to_string()) {
                let mut placement = Placement::parse(&lane.placement)?;
                if placement.except.remove(&node) {
                    let placement = placement.text()?;
                    lanes.enter(Lane {
                        user: lane.user,
                        placement: placement.as_str().into(),
                    });
                    c.execute(
                        "UPDATE jobs SET placement = ?3, refusals = json_remove(refusals, ?4)
                         WHERE status = 'queued' AND user_id = ?1 AND placement = ?2",
                        params![
                            lane.user,
                            lane.placement,
                            placement,
                            format!("$.\"{node}\"")
                        ],
                    )?;
                }
            }
            Ok(())
        })
        .await
    }

    /// TaskRequirements of a task.
    pub async fn task_requirements(&self, id: TaskId) -> Result<TaskRequirements, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT t.spec ->> '$.node_labels', j.refusals FROM tasks t JOIN jobs j ON j.task_id = t.id
                 WHERE t.id = ?1 ORDER BY j.id DESC LIMIT 1",
            )?;
            let (labels, refusals): (String, Option<String>) =
                statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(TaskRequirements {
                labels: parse_document(&labels)?,
                refusals: read(refusals)?,
            })
        })
        .await
    }
}
