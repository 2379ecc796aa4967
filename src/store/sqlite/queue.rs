//! Reads of the queue for the scheduler.
//!
//! The jobs of a user that ask the same of a node form a lane, ordered by priority and then by age:
//!
//! ```text
//! index jobs_queued: (user, placement, rank, id, not_before)
//!     ann  {"labels":["gpu"]}   0  job 4      a read of a lane goes to its head, or behind the last
//!     ann  {}                  -5  job 7      job that was read, in one step down the index
//!     ann  {}                   0  job 1
//!     bob  {}                   0  job 9
//! ```
//!
//! A backoff longer than [`MAX_BACKOFF`] doesn't count: the clock was set back since.
//!
//! The lanes are registered in memory ([`lanes`](super::lanes)). So a decision costs as much as there are
//! lanes that a node could serve and jobs that it assigns; the length of the lanes doesn't matter. Only jobs
//! in a backoff are stepped over one by one, and these are at most the jobs that were assigned within its
//! length.

use super::{
    JobDetails, Lane, LaneHeads, LaneRead, MAX_BACKOFF, Placement, QueueStatus, QueuedJob, Store,
    StoreError, jobs::seconds,
};
use crate::api::{JobId, NodeId, jobs::resources::GpuRequest, time::Time};
use rusqlite::{Connection, OptionalExtension as _, Params, Statement, params};
use std::collections::HashMap;

// Two steps and not one with `(user_id, placement) > (?1, ?2)`: SQLite would go to the first job of the
// previous lane and step over all its jobs.
const NEXT_USER: &str =
    "SELECT user_id FROM jobs WHERE status = 'queued' AND user_id > ?1 ORDER BY user_id LIMIT 1";

const NEXT_LANE: &str = "SELECT placement FROM jobs
     WHERE status = 'queued' AND user_id = ?1 AND placement > ?2 ORDER BY placement LIMIT 1";

const NEXT_JOBS: &str = "SELECT rank, id, not_before FROM jobs
     WHERE status = 'queued' AND user_id = ?1 AND placement = ?2 AND (rank, id) > (?3, ?4)
       AND not_before NOT BETWEEN ?5 + 1 AND ?6
     ORDER BY rank, id LIMIT ?7";

/// Text that a statement answers, if any.
fn text(
    statement: &mut Statement<'_>,
    parameters: impl Params,
) -> Result<Option<String>, StoreError> {
    Ok(statement
        .query_row(parameters, |row| row.get(0))
        .optional()?)
}

/// All lanes with queued jobs, also those whose jobs are in a backoff.
pub(super) fn all_lanes(c: &Connection) -> Result<Vec<Lane>, StoreError> {
    let mut next_user = c.prepare_cached(NEXT_USER)?;
    let mut next_lane = c.prepare_cached(NEXT_LANE)?;
    let (mut lanes, mut last_user) = (Vec::new(), String::new());
    while let Some(user) = text(&mut next_user, [&last_user])? {
        let id = user.parse().map_err(|_| StoreError::Damaged("user id"))?;
        let mut last_lane = String::new();
        while let Some(placement) = text(&mut next_lane, [&user, &last_lane])? {
            lanes.push(Lane {
                user: id,
                placement: Placement::parse(&placement)?,
            });
            last_lane = placement;
        }
        last_user = user;
    }
    Ok(lanes)
}

/// Jobs that may run at `now`, one list for each read, in their order.
fn next_jobs(
    c: &Connection,
    reads: &[LaneRead],
    now: Time,
) -> Result<Vec<Vec<QueuedJob>>, StoreError> {
    let mut statement = c.prepare_cached(NEXT_JOBS)?;
    let mut next = |LaneRead { lane, after, limit }: &LaneRead| {
        let rank = after.map_or(i64::MIN, |job| job.rank.into());
        let id = after.map(|job| job.id.to_string()).unwrap_or_default();
        let last = now.plus(MAX_BACKOFF);
        let values = params![lane.user, lane.placement, rank, id, now, last, limit];
        let jobs = statement.query_map(values, |row| {
            Ok(QueuedJob {
                rank: row.get(0)?,
                id: row.get(1)?,
                eligible_at: row.get(2)?,
            })
        })?;
        Ok(jobs.collect::<Result<_, _>>()?)
    };
    reads.iter().map(&mut next).collect()
}

impl Store {
    /// Whether any queued job may run. The cost doesn't depend on the number of jobs.
    pub async fn queue_status(&self, now: Time) -> Result<QueueStatus, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM jobs WHERE status = 'queued' AND not_before <= ?1)
                            OR EXISTS (SELECT 1 FROM jobs WHERE status = 'queued' AND not_before > ?2),
                        (SELECT min(not_before) FROM jobs WHERE status = 'queued' AND not_before BETWEEN ?1 + 1 AND ?2)",
            )?;
            let status = statement.query_row([now, now.plus(MAX_BACKOFF)], |row| {
                Ok(QueueStatus {
                    has_eligible: row.get(0)?,
                    next_at: row.get(1)?,
                })
            });
            Ok(status?)
        })
        .await
    }

    /// Eligible jobs of these lanes, and the number of running jobs of their users.
    pub async fn lane_heads(
        &self,
        reads: Vec<LaneRead>,
        now: Time,
    ) -> Result<LaneHeads, StoreError> {
        let users = reads.iter().map(|read| read.lane.user);
        let running = self.node_cache.running_of(users);
        let jobs = self.read_blocking(move |c| {
            // One moment for all lanes.
            let c = &c.unchecked_transaction()?;
            next_jobs(c, &reads, now)
        });
        let jobs = jobs.await?;
        Ok(LaneHeads { running, jobs })
    }

    /// Further eligible jobs of these lanes, one list for each read.
    pub async fn lane_jobs(
        &self,
        reads: Vec<LaneRead>,
        now: Time,
    ) -> Result<Vec<Vec<QueuedJob>>, StoreError> {
        self.read_long(move |c| next_jobs(c, &reads, now)).await
    }

    /// Details of jobs; `None` where a job is gone. Each is a parse of up to 1 MiB.
    pub async fn job_details(
        &self,
        jobs: Vec<JobId>,
    ) -> Result<Vec<(JobId, Option<JobDetails>)>, StoreError> {
        self.read_blocking(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT spec ->> '$.sandbox.image' AS image, spec ->> '$.sandbox.timeout_seconds' AS timeout_seconds,
                        spec ->> '$.sandbox.pull' = 'never' AS never_pulls
                 FROM tasks WHERE id = (SELECT task_id FROM jobs WHERE id = ?1)",
            )?;
            let mut details = |job: &JobId| {
                let details = statement.query_row([job], |row| {
                    Ok(JobDetails {
                        image: row.get("image")?,
                        timeout_seconds: seconds(row, "timeout_seconds")?,
                        never_pulls: row.get::<_, Option<bool>>("never_pulls")?.unwrap_or(false),
                        nodes_without_room: Vec::new(),
                    })
                });
                Ok((*job, details.optional()?))
            };
            jobs.iter().map(&mut details).collect()
        })
        .await
    }

    /// Graphics processors of the jobs that run on each node or are offered to it.
    pub async fn gpu_requests(&self) -> Result<HashMap<NodeId, Vec<GpuRequest>>, StoreError> {
        self.read(|c| {
            // The text that each placement with devices has, and no other: in a string its quotes would be escaped.
            let mut statement = c.prepare_cached(
                "SELECT node_id, offered_node_id, placement FROM jobs
                 WHERE status = 'running' AND instr(placement, '\"gpus\":') > 0",
            )?;
            let mut requests: HashMap<NodeId, Vec<GpuRequest>> = HashMap::new();
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let nodes: [Option<NodeId>; 2] = [row.get(0)?, row.get(1)?];
                let placement: Placement = row.get(2)?;
                for node in nodes.into_iter().flatten() {
                    requests
                        .entry(node)
                        .or_default()
                        .extend(placement.gpus().cloned());
                }
            }
            Ok(requests)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::UserId;
    use rusqlite::{StatementStatus, ToSql};

    fn open() -> (Store, tempfile::TempDir) {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        (store, home)
    }

    /// Puts a job into the queue.
    fn insert_job(
        c: &Connection,
        id: JobId,
        (user, placement, rank, not_before): (UserId, &str, i32, i64),
    ) -> rusqlite::Result<()> {
        c.execute(
            "INSERT OR IGNORE INTO users VALUES (?1, ?1, NULL, '', 1, 0, 0, 0)",
            [user],
        )?;
        c.execute(
            "INSERT INTO tasks (id, user_id, status, spec, created_at, updated_at) VALUES (?1, ?2, 'queued', '{}', 0, 0)",
            params![id, user],
        )?;
        c.execute(
            "INSERT INTO jobs (id, task_id, status, max_attempts, not_before, created_at, user_id, placement, rank)
             VALUES (?1, ?1, 'queued', 1, ?2, 0, ?3, ?4, ?5)",
            params![id, not_before, user, placement, rank],
        )?;
        Ok(())
    }

    #[tokio::test]
    async fn read_scans_no_rows_of_long_lanes() {
        let (store, _home) = open();
        let user = UserId::new();
        let mut counted = Vec::new();
        for more in [1, 1000] {
            let steps = store.write(move |c| {
                for _ in 0..more {
                    insert_job(c, JobId::new(), (user, "{}", 0, 0))?;
                }
                let first: String =
                    c.query_row("SELECT min(id) FROM jobs", [], |row| row.get(0))?;
                let steps = |sql: &str, parameters: &[&dyn ToSql]| {
                    let mut statement = c.prepare(sql)?;
                    statement.exists(parameters)?;
                    Ok::<_, StoreError>(statement.get_status(StatementStatus::VmStep))
                };
                Ok([
                    steps(NEXT_USER, &[&user])?,
                    steps(NEXT_LANE, &[&user, &"{}"])?,
                    steps(NEXT_JOBS, &[&user, &"{}", &i64::MIN, &"", &5, &6, &1])?,
                    steps(NEXT_JOBS, &[&user, &"{}", &0, &first, &5, &6, &1])?,
                ])
            });
            counted.push(steps.await.unwrap());
        }
        let [few, many] = [counted[0], counted[1]];
        // A lane of one job has none behind its head.
        assert_eq!(few[..3], many[..3]);
        assert!(many[3] < 2 * many[2], "{many:?}");
    }

    #[tokio::test]
    async fn lanes_are_read_by_priority_and_age() {
        let (store, _home) = open();
        let [ann, bob] = [(); 2].map(|()| UserId::new());
        let gpu = r#"{"labels":["gpu"]}"#;
        let jobs = [
            (ann, "{}", 0, 0),
            (ann, "{}", 0, 9),
            (ann, "{}", 0, 0),
            (ann, "{}", -5, 0),
            (ann, gpu, 0, 9),
            (bob, "{}", 7, 0),
        ]
        .map(|job| (JobId::new(), job));
        let write = store.write(move |c| {
            jobs.iter()
                .try_for_each(|(id, job)| insert_job(c, *id, *job))?;
            Ok(())
        });
        write.await.unwrap();
        let lanes = store.read(all_lanes).await.unwrap();
        let read = async |now| {
            let mut ids = Vec::new();
            for lane in &lanes {
                let mut after = None;
                loop {
                    let (lane, limit) = (lane.clone(), 2);
                    let reads = vec![LaneRead { lane, after, limit }];
                    let jobs = store.lane_jobs(reads, Time::from_millis(now));
                    let jobs = jobs.await.unwrap().remove(0);
                    ids.extend(jobs.iter().map(|job| job.id));
                    after = jobs.last().copied();
                    if jobs.len() < 2 {
                        break;
                    }
                }
            }
            ids
        };
        let ids = |of: &[usize]| of.iter().map(|n| jobs[*n].0).collect::<Vec<_>>();
        assert_eq!(read(5).await, ids(&[3, 0, 2, 5]));
        assert_eq!(read(9).await, ids(&[4, 3, 0, 1, 2, 5]));
        let status = |now| store.queue_status(Time::from_millis(now));
        let next_at = Some(Time::from_millis(9));
        assert!(!status(-1).await.unwrap().has_eligible);
        assert_eq!(
            status(5).await.unwrap(),
            QueueStatus {
                has_eligible: true,
                next_at
            }
        );
        assert_eq!(status(9).await.unwrap().next_at, None);
        // The clock was set back by more than a backoff can be.
        let before = 8 - MAX_BACKOFF.as_millis() as i64;
        assert_eq!(read(before).await, ids(&[4, 1]));
        assert!(status(before).await.unwrap().has_eligible);
    }
}
