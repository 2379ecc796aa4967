//! Offers of a running job to another node, while its own node is silent.
//!
//! ```text
//! attempt 1 on A                                                    attempt 2 on B
//!      │ A is silent                                                      ▲
//!      └──offer──▶ attempt 1 on A, attempt 2 offered to B ──accept────────┘
//!                      │
//!                      └──withdraw──▶ attempt 1 on A; number 2 is free again only if B never started it
//! ```
//!
//! Until the offer is accepted, attempt 1 is the current one: when A returns first, its result is the result of
//! the job. From the commit of the acceptance on the current one is attempt 2, and A can't change anything for
//! attempt 1. The order is: offer, commit, ask B, accept, commit. So a job never has two current attempts, and
//! always one that some node runs; and no number is given to two nodes, except one that the first of them refused.

use super::{
    JobOutlook, JobOwnership, RunningJob, Store, StoreError,
    jobs::{record_time_limit, running_by_id},
    rows::execute,
};
use crate::api::{JobId, NodeId, TaskId, time::Time};
use rusqlite::{OptionalExtension as _, params};
use std::collections::HashMap;

impl Store {
    /// Outlook of the running job of a task; `None` where none runs.
    pub async fn job_outlook(&self, task: TaskId) -> Result<Option<JobOutlook>, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT cancel_requested, last_attempt < max_attempts FROM jobs WHERE task_id = ?1 AND status = 'running'",
            )?;
            let outlook = statement.query_row([task], |row| {
                Ok(JobOutlook {
                    is_canceled: row.get(0)?,
                    may_move: row.get(1)?,
                })
            });
            Ok(outlook.optional()?)
        })
        .await
    }

    /// Offers the next attempt of a running job to another node, and returns that attempt. `None` where the job
    /// may have no other attempt, is to be canceled or is offered already, or the node was deleted.
    pub async fn job_offer(
        &self,
        id: JobId,
        attempt: u32,
        to: NodeId,
    ) -> Result<Option<RunningJob>, StoreError> {
        self.write(move |c| {
            let changed = execute(
                c,
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

    /// Makes an offered attempt the current one, once its node has accepted it; false when the attempt isn't
    /// offered any more.
    pub async fn job_accept(&self, id: JobId, attempt: u32, now: Time) -> Result<bool, StoreError> {
        self.write(move |c| {
            let changed = execute(c, "UPDATE jobs SET attempt = last_attempt, node_id = offered_node_id, offered_node_id = NULL,
                        started_at = ?3
                 WHERE id = ?1 AND last_attempt = ?2 AND status = 'running' AND offered_node_id IS NOT NULL",
                params![id, attempt, now],
            )?;
            if changed > 0 {
                record_time_limit(c, id)?;
            }
            // Accepted by an earlier call whose answer was lost.
            let sql = "SELECT 1 FROM jobs WHERE id = ?1 AND attempt = ?2 AND status = 'running'";
            Ok(changed > 0 || c.prepare_cached(sql)?.exists(params![id, attempt])?)
        })
        .await
    }

    /// Withdraws an offer. Its number is free again where the node has `refused` it and so never started it.
    pub async fn job_withdraw(
        &self,
        id: JobId,
        attempt: u32,
        refused: bool,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            let changed = execute(c, "UPDATE jobs SET offered_node_id = NULL, last_attempt = last_attempt - ?3
                 WHERE id = ?1 AND last_attempt = ?2 AND status = 'running' AND offered_node_id IS NOT NULL",
                params![id, attempt, i64::from(refused)],
            )?;
            Ok(changed > 0)
        })
        .await
    }

    /// Ownership of these jobs, also of those of deleted tasks; unknown jobs are left out.
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
            let mut ownership = HashMap::new();
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
                if let Some(owned) = found.optional()? {
                    ownership.insert(*id, owned);
                }
            }
            Ok(ownership)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
