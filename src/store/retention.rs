//! What goes in time: finished tasks with all that hangs on them, and what has expired.
//!
//! Bounded rows per commit, so that no other write waits for long; and each look goes by an
//! index to the oldest, so that one which finds nothing costs nothing, however much there is.

use super::{Store, StoreError, tasks::IDEMPOTENCY_WINDOW};
use crate::api::{TaskId, time::Time};
use rusqlite::{Connection, params};
use std::time::Duration;

/// Most tasks, and most rows of each other kind, that go in one commit. A task's result may be half a
/// megabyte.
const BATCH_LIMIT: u32 = 50;

/// Which finished tasks are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Those that ended within this time; all of them when there is none.
    pub age: Option<Duration>,
    /// At most so many, the newest; any number when there is none.
    pub max_tasks: Option<u64>,
}

/// What went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExpiredBatch {
    /// How many tasks.
    pub tasks: usize,
    /// Whether there may be more to go.
    pub more: bool,
}

/// Finished tasks that ended by a time, and those beyond a number: the oldest in both cases.
const FINISHED: &str = "SELECT id FROM tasks WHERE ended_at IS NOT NULL AND ended_at <= ?1
                        ORDER BY ended_at LIMIT ?2";
const BEYOND: &str = "SELECT max(0, finished - ?1) FROM finished_tasks";

/// How long it is known, after a job's end, which attempts of it were given out. No sandbox runs for longer
/// than a few hours; what else a node keeps is its spool, for as long as there is room.
const DELETED_JOBS_RETENTION: Duration = Duration::from_hours(30 * 24);

/// A task and all that names it. A node may still have what was given out of its jobs.
const DELETE_TASK: [&str; 4] = [
    "DELETE FROM idempotency_keys WHERE task_id = ?1",
    "INSERT INTO deleted_jobs SELECT id, task_id, last_attempt, ended_at FROM jobs
     WHERE task_id = ?1 AND last_attempt > 0 AND ended_at IS NOT NULL",
    "DELETE FROM jobs WHERE task_id = ?1",
    "DELETE FROM tasks WHERE id = ?1",
];

/// What has expired at a time; at most so many rows. Tokens go before the session that they name.
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
    /// Forgets some of what is not kept any more.
    pub async fn expired_delete(
        &self,
        keep: Retention,
        now: Time,
    ) -> Result<ExpiredBatch, StoreError> {
        self.write(move |c| {
            let tasks = expired_tasks(c, keep, now)?;
            for id in &tasks {
                delete_task(c, *id)?;
            }
            let is_full = |rows: usize| rows == BATCH_LIMIT as usize;
            let mut more = is_full(tasks.len());
            let expired = EXPIRED.map(|sql| (sql, now));
            for (sql, by) in expired.into_iter().chain([
                (OLD_KEYS, now.minus(IDEMPOTENCY_WINDOW)),
                (OLD_DELETED_JOBS, now.minus(DELETED_JOBS_RETENTION)),
            ]) {
                more |= is_full(c.prepare_cached(sql)?.execute(params![by, BATCH_LIMIT])?);
            }
            Ok(ExpiredBatch {
                tasks: tasks.len(),
                more,
            })
        })
        .await
    }
}

/// Deletes a task that has ended, and all that names it.
pub(super) fn delete_task(c: &Connection, id: TaskId) -> Result<(), StoreError> {
    for sql in DELETE_TASK {
        c.prepare_cached(sql)?.execute([id])?;
    }
    Ok(())
}

/// The oldest of those that are to go.
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
    // Both begin at the oldest, so the longer one has the other in it.
    Ok(if old.len() > beyond.len() {
        old
    } else {
        beyond
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::query_plan::assert_seeks;

    #[tokio::test]
    async fn each_look_goes_by_an_index() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        for sql in
            EXPIRED
                .into_iter()
                .chain(DELETE_TASK)
                .chain([FINISHED, OLD_KEYS, OLD_DELETED_JOBS])
        {
            let looked = store.read_blocking(move |c| {
                assert_seeks(c, sql);
                Ok(())
            });
            looked.await.unwrap();
        }
    }
}
