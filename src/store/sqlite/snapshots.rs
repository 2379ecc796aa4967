//! Queued jobs that wait for a snapshot, which only a node that has it can run.
//!
//! A snapshot is part of the placement, so these jobs are whole lanes, and finding them costs no look at other jobs.

use super::{Lane, Placement, SnapshotWaiter, Store, StoreError};
use crate::api::UserId;
use rusqlite::params;

const WAITERS: &str = "SELECT t.id, coalesce(t.name, t.sandbox ->> '$.name'), t.sandbox IS NOT NULL
    FROM jobs j JOIN tasks t ON t.id = j.task_id
    WHERE j.status = 'queued' AND j.user_id = ?1 AND j.placement = ?2 ORDER BY j.rank, j.id LIMIT ?3";

impl Store {
    /// Lanes of the jobs of a user that start from the snapshot of this image; some may be empty.
    pub fn lane_list_of_snapshot(&self, user: UserId, image: &str) -> Vec<Lane> {
        let starts_from_it = |placement: &Placement| placement.snapshot() == Some(image);
        let mut lanes = self.lanes.filter(starts_from_it);
        lanes.retain(|lane| lane.user == user);
        lanes
    }

    /// Lanes of the jobs of all users that start from a snapshot; some may be empty.
    pub fn lane_list_of_snapshots(&self) -> Vec<Lane> {
        self.lanes
            .filter(|placement| placement.snapshot().is_some())
    }

    /// Queued tasks and sandboxes of these lanes, at most `limit`.
    pub async fn snapshot_waiters(
        &self,
        lanes: Vec<Lane>,
        limit: usize,
    ) -> Result<Vec<SnapshotWaiter>, StoreError> {
        self.read_long(move |c| {
            let mut statement = c.prepare_cached(WAITERS)?;
            let mut waiters = Vec::new();
            for lane in &lanes {
                let left = limit.saturating_sub(waiters.len());
                let left = u32::try_from(left).unwrap_or(u32::MAX);
                let mut rows = statement.query(params![lane.user, lane.placement, left])?;
                while let Some(row) = rows.next()? {
                    waiters.push(SnapshotWaiter {
                        task: row.get(0)?,
                        name: row.get(1)?,
                        is_sandbox: row.get(2)?,
                    });
                }
            }
            Ok(waiters)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::query_plan::assert_seeks;

    #[tokio::test]
    async fn waiters_use_index_of_queue() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        let looked = store.read_blocking(|c| {
            let plan = assert_seeks(c, WAITERS);
            let used = "jobs_queued (user_id=? AND placement=?)";
            assert!(plan.contains(used), "{plan}");
            Ok(())
        });
        looked.await.unwrap();
    }
}
