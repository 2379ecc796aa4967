//! Retention: deletion of old finished tasks with their jobs, and of expired rows.
//!
//! A commit deletes a bounded number of rows, so that no other write waits for long. Each query seeks the
//! oldest by an index, so that its cost doesn't depend on the number of rows that stay.

use super::{
    ExpiredBatch, Retention, Store, StoreError,
    api_keys::{EXPIRED_RETENTION, OLD_API_KEYS},
    artifacts::{OLD_UPLOADS, SOME_OF_TASK},
    join_tokens::{self, OLD_JOIN_TOKENS},
    tasks::IDEMPOTENCY_WINDOW,
    usage::{DELETE_OF_TASK, DETACH_TASK, OLD_USAGE, USAGE_RETENTION},
};
use crate::api::{JobId, TaskId, time::Time};
use rusqlite::{Connection, params};
use std::time::Duration;

/// Maximum number of tasks, and of rows of each other kind, in one commit. The result of a task may be half a
/// megabyte.
const BATCH_LIMIT: u32 = 50;
/// Maximum number of artifacts of tasks in one commit; those of a task that has more go in several, before the task.
const ARTIFACTS_LIMIT: u32 = 1000;

/// Finished tasks that ended by a time, and those beyond a number: the oldest in both cases.
const FINISHED: &str = "SELECT id FROM tasks WHERE ended_at IS NOT NULL AND ended_at <= ?1
                        ORDER BY ended_at LIMIT ?2";
const BEYOND: &str = "SELECT max(0, finished - ?1) FROM finished_tasks";

/// Time after the end of a job for which its attempts stay known. A sandbox runs for a few hours at most; the
/// spool of a node is kept for as long as it has space.
const DELETED_JOBS_RETENTION: Duration = Duration::from_hours(30 * 24);

/// Deletes a task and all rows that name it; the attempts of its jobs stay known, since a node may still have them.
const DELETE_TASK: [&str; 8] = [
    "DELETE FROM artifacts WHERE task_id = ?1",
    "DELETE FROM task_contents WHERE task_id = ?1",
    "DELETE FROM idempotency_keys WHERE task_id = ?1",
    "INSERT INTO deleted_jobs SELECT id, task_id, last_attempt, ended_at FROM jobs
     WHERE task_id = ?1 AND last_attempt > 0 AND ended_at IS NOT NULL",
    "DELETE FROM jobs WHERE task_id = ?1",
    DETACH_TASK,
    DELETE_OF_TASK,
    "DELETE FROM tasks WHERE id = ?1",
];

const JOB_IDS: &str = "SELECT id FROM jobs WHERE task_id = ?1";
const KNOWN_JOB: &str = "SELECT 1 FROM jobs WHERE id = ?1";

/// Deletes of what has expired at a time, up to a number of rows. Tokens go before their session.
const EXPIRED: [&str; 3] = [
    "DELETE FROM refresh_tokens WHERE token_sha256 IN
     (SELECT token_sha256 FROM refresh_tokens WHERE expires_at <= ?1 LIMIT ?2)",
    "DELETE FROM refresh_tokens WHERE token_sha256 IN
     (SELECT t.token_sha256 FROM sessions s JOIN refresh_tokens t ON t.session_id = s.id
      WHERE s.expires_at <= ?1 LIMIT ?2)",
    "DELETE FROM sessions WHERE id IN
     (SELECT id FROM sessions s WHERE expires_at <= ?1
      AND NOT EXISTS (SELECT 1 FROM refresh_tokens WHERE session_id = s.id) LIMIT ?2)",
];
const OLD_KEYS: &str = "DELETE FROM idempotency_keys WHERE (user_id, key) IN
                        (SELECT user_id, key FROM idempotency_keys WHERE created_at <= ?1 LIMIT ?2)";
const OLD_DELETED_JOBS: &str = "DELETE FROM deleted_jobs WHERE id IN
                                (SELECT id FROM deleted_jobs WHERE ended_at <= ?1 LIMIT ?2)";

impl Store {
    /// Deletes a batch of old tasks and expired rows.
    pub async fn expired_delete(
        &self,
        keep: Retention,
        now: Time,
    ) -> Result<ExpiredBatch, StoreError> {
        self.write(move |c| {
            let expired = expired_tasks(c, keep, now)?;
            let (mut tasks, mut jobs) = (0, Vec::new());
            let mut room = ARTIFACTS_LIMIT;
            for id in &expired {
                room -= delete_artifacts(c, *id, room)?;
                if room == 0 {
                    break;
                }
                jobs.extend(job_ids(c, *id)?);
                delete_task(c, *id)?;
                tasks += 1;
            }
            let is_full = |rows: usize| rows == BATCH_LIMIT as usize;
            let mut more = is_full(tasks) || tasks < expired.len();
            let expired = EXPIRED.map(|sql| (sql, now));
            let uploads = keep.age.map(|age| (OLD_UPLOADS, now.minus(age)));
            let others = [
                (OLD_KEYS, now.minus(IDEMPOTENCY_WINDOW)),
                (OLD_DELETED_JOBS, now.minus(DELETED_JOBS_RETENTION)),
                (OLD_API_KEYS, now.minus(EXPIRED_RETENTION)),
                (OLD_USAGE, now.minus(USAGE_RETENTION)),
            ];
            let tokens = OLD_JOIN_TOKENS.map(|sql| (sql, now.minus(join_tokens::RETENTION)));
            let old = expired.into_iter().chain(others).chain(tokens);
            for (sql, by) in old.chain(uploads) {
                more |= is_full(c.prepare_cached(sql)?.execute(params![by, BATCH_LIMIT])?);
            }
            Ok(ExpiredBatch { tasks, jobs, more })
        })
        .await
    }

    /// Jobs of a task.
    pub async fn task_job_ids(&self, id: TaskId) -> Result<Vec<JobId>, StoreError> {
        self.read(move |c| job_ids(c, id)).await
    }

    /// Those of the jobs that are not in the store.
    pub async fn jobs_unknown(&self, jobs: Vec<JobId>) -> Result<Vec<JobId>, StoreError> {
        self.read_long(move |c| {
            let mut statement = c.prepare_cached(KNOWN_JOB)?;
            let mut unknown = Vec::new();
            for job in &jobs {
                if !statement.exists([*job])? {
                    unknown.push(*job);
                }
            }
            Ok(unknown)
        })
        .await
    }
}

/// Jobs of a task.
fn job_ids(c: &Connection, id: TaskId) -> Result<Vec<JobId>, StoreError> {
    let mut statement = c.prepare_cached(JOB_IDS)?;
    let ids = statement.query_map([id], |row| row.get(0))?;
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Deletes artifacts of a task, at most `limit`. Returns their number; fewer than `limit` were all.
fn delete_artifacts(c: &Connection, id: TaskId, limit: u32) -> Result<u32, StoreError> {
    let deleted = c
        .prepare_cached(SOME_OF_TASK)?
        .execute(params![id, limit])?;
    Ok(u32::try_from(deleted).unwrap_or(limit))
}

/// Deletes a finished task and all rows that name it.
pub(super) fn delete_task(c: &Connection, id: TaskId) -> Result<(), StoreError> {
    for sql in DELETE_TASK {
        c.prepare_cached(sql)?.execute([id])?;
    }
    Ok(())
}

/// The oldest of the tasks to be deleted.
fn expired_tasks(c: &Connection, keep: Retention, now: Time) -> Result<Vec<TaskId>, StoreError> {
    let oldest = |by: Time, limit: u32| -> Result<Vec<TaskId>, StoreError> {
        let mut statement = c.prepare_cached(FINISHED)?;
        let ids = statement.query_map(params![by, limit], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    };
    let old = match keep.age {
        Some(age) => oldest(now.minus(age), BATCH_LIMIT)?,
        None => Vec::new(),
    };
    let beyond = match keep.max_tasks {
        Some(most) => {
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            let beyond: i64 = c
                .prepare_cached(BEYOND)?
                .query_row([most], |row| row.get(0))?;
            oldest(
                Time::MAX,
                BATCH_LIMIT.min(u32::try_from(beyond).unwrap_or(BATCH_LIMIT)),
            )?
        }
        None => Vec::new(),
    };
    // Both begin at the oldest, so the longer one contains the other.
    Ok(if old.len() > beyond.len() {
        old
    } else {
        beyond
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::query_plan::assert_seeks;

    #[tokio::test]
    async fn retention_queries_use_index() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        for sql in EXPIRED.into_iter().chain(DELETE_TASK).chain([
            FINISHED,
            OLD_KEYS,
            OLD_DELETED_JOBS,
            OLD_API_KEYS,
            OLD_USAGE,
            OLD_UPLOADS,
            SOME_OF_TASK,
            JOB_IDS,
            KNOWN_JOB,
        ]) {
            let looked = store.read_blocking(move |c| {
                assert_seeks(c, sql);
                Ok(())
            });
            looked.await.unwrap();
        }
    }
}
