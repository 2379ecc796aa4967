//! Numbers of jobs and sandboxes, for metrics.

use super::{JobCounts, Store, StoreError};

const COUNTS: &str = "SELECT (SELECT coalesce(sum(queued), 0) FROM queue_depths) AS queued,
        (SELECT count(*) FROM jobs WHERE status = 'running') AS running,
        (SELECT count(*) FROM tasks INDEXED BY sandboxes_live
         WHERE sandbox IS NOT NULL AND ended_at IS NULL) AS sandboxes";

impl Store {
    /// Numbers of queued and running jobs, at one moment. The cost depends on the number of users and of running
    /// jobs, not on the length of the queue.
    pub async fn job_counts(&self) -> Result<JobCounts, StoreError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(COUNTS)?;
            Ok(statement.query_row([], |row| {
                Ok(JobCounts {
                    queued: row.get("queued")?,
                    running: row.get("running")?,
                    sandboxes: row.get("sandboxes")?,
                })
            })?)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counts_read_no_job_rows() {
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
        assert!(plan.contains("INDEX sandboxes_live"), "{plan}");
        let none = JobCounts {
            queued: 0,
            running: 0,
            sandboxes: 0,
        };
        assert_eq!(store.job_counts().await.unwrap(), none);
    }
}
