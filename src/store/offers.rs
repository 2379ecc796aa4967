//! A running job whose node is silent, offered to another one.
//!
//! ```text
//! attempt 1 at A                                                    attempt 2 at B
//!      │ A is silent                                                      ▲
//!      └──offer──▶ attempt 1 at A, attempt 2 offered to B ──accept────────┘
//!                      │
//!                      └──withdraw──▶ attempt 1 at A; 2 is free again only where B never began
//! ```
//!
//! Until the offer is accepted attempt 1 is the one that counts: when A is back first, its end is the
//! job's. From that commit on it is attempt 2, and whatever A says of attempt 1 changes nothing. The
//! order is: offer, commit, ask B, accept, commit. So a job never has two attempts that count, and none
//! that nobody runs; and no number is given to two nodes, but for one that the first of them refused.

use super::{
    Store, StoreError,
    jobs::{RunningJob, running_by_id},
};
use crate::api::{JobId, NodeId, TaskId, time::Time};
use rusqlite::{OptionalExtension as _, params};
use std::collections::HashMap;

/// Which attempts of a job somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobOwnership {
    /// Whose.
    pub task: TaskId,
    /// Whether a node has it.
    pub is_running: bool,
    /// The attempt that counts, and its node.
    pub current: (u32, Option<NodeId>),
    /// The attempt that is offered, and to whom.
    pub offered: Option<(u32, NodeId)>,
    /// The highest attempt that this database gave out.
    pub last_attempt: u32,
}

/// What may still become of a job that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobOutlook {
    /// Whether it is to be canceled.
    pub is_canceled: bool,
    /// Whether another node may be given it.
    pub may_move: bool,
}

impl Store {
    /// What may still become of a task's job; nothing where none runs.
    pub async fn job_outlook(&self, task: TaskId) -> Result<Option<JobOutlook>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT cancel_requested, last_attempt < max_attempts FROM jobs WHERE task_id = ?1 AND status = 'running'",
            )?;
            let prospects = statement.query_row([task], |row| {
                Ok(JobOutlook {
                    is_canceled: row.get(0)?,
                    may_move: row.get(1)?,
                })
            });
            Ok(prospects.optional()?)
        })
        .await
    }

    /// Offers the next attempt of a job that runs to another node; what that is to run. `None` where there
    /// may be no other attempt, the job is to be canceled, something is offered already or the node is gone.
    pub async fn job_offer(
        &self,
        id: JobId,
        attempt: u32,
        to: NodeId,
    ) -> Result<Option<RunningJob>, StoreError> {
        self.write(move |c| {
            let changed = c.execute(
                "UPDATE jobs SET offered_node_id = ?3, last_attempt = last_attempt + 1
                 WHERE id = ?1 AND attempt = ?2 AND status = 'running' AND cancel_requested = 0
                   AND offered_node_id IS NULL AND node_id <> ?3 AND last_attempt < max_attempts
                   AND EXISTS (SELECT 1 FROM nodes WHERE id = ?3)",
                params![id, attempt, to],
            )?;
            if changed == 0 {
                return Ok(None);
            }
            Ok(running_by_id(c, id)?.and_then(|job| job.offered_attempt()))
        })
        .await
    }

    /// The node that is offered this attempt has taken it: from now on it is the one that counts. False
    /// when it isn't offered any more.
    pub async fn job_accept(&self, id: JobId, attempt: u32, now: Time) -> Result<bool, StoreError> {
        self.write(move |c| {
            let changed = c.execute(
                "UPDATE jobs SET attempt = last_attempt, node_id = offered_node_id, offered_node_id = NULL,
                        started_at = ?3
                 WHERE id = ?1 AND last_attempt = ?2 AND status = 'running' AND offered_node_id IS NOT NULL",
                params![id, attempt, now],
            )?;
            // Written before, where only the answer to that was lost.
            let sql = "SELECT 1 FROM jobs WHERE id = ?1 AND attempt = ?2 AND status = 'running'";
            Ok(changed > 0 || c.prepare_cached(sql)?.exists(params![id, attempt])?)
        })
        .await
    }

    /// Takes an offer back. Its number is free again where the node has `refused` it, so that it never began.
    pub async fn job_withdraw(
        &self,
        id: JobId,
        attempt: u32,
        refused: bool,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let changed = c.execute(
                "UPDATE jobs SET offered_node_id = NULL, last_attempt = last_attempt - ?3
                 WHERE id = ?1 AND last_attempt = ?2 AND status = 'running' AND offered_node_id IS NOT NULL",
                params![id, attempt, i64::from(refused)],
            )?;
            Ok(changed > 0)
        })
        .await
    }

    /// Where these jobs stand, also those of deleted tasks; what this database never had is left out.
    pub async fn job_ownership(
        &self,
        ids: Vec<JobId>,
    ) -> Result<HashMap<JobId, JobOwnership>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT task_id, status = 'running', attempt, node_id, last_attempt, offered_node_id
                 FROM jobs WHERE id = ?1
                 UNION ALL
                 SELECT task_id, 0, 0, NULL, last_attempt, NULL FROM deleted_jobs WHERE id = ?1",
            )?;
            let mut standings = HashMap::new();
            for id in &ids {
                let found = statement.query_row([id], |row| {
                    let offered_to: Option<NodeId> = row.get(5)?;
                    let last_attempt = row.get(4)?;
                    Ok(JobOwnership {
                        task: row.get(0)?,
                        is_running: row.get(1)?,
                        current: (row.get(2)?, row.get(3)?),
                        offered: offered_to.map(|node| (last_attempt, node)),
                        last_attempt,
                    })
                });
                if let Some(standing) = found.optional()? {
                    standings.insert(*id, standing);
                }
            }
            Ok(standings)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
