//! The queue, as the scheduler reads it.
//!
//! Each user's jobs that ask the same of a node stand in one lane, by priority and then by age:
//!
//! ```text
//! index jobs_queued: (user, placement, rank, id, not_before)
//!     ann  {"labels":["gpu"]}   0  job 4      next() jumps from a job to the one behind it: one step
//!     ann  {}                  -5  job 7      down the index, whatever stands between
//!     ann  {}                   0  job 1
//!     bob  {}                   0  job 9
//! ```
//!
//! A backoff longer than any ([`MAX_BACKOFF`]) is none: the clock was set back since.
//!
//! Which lanes there are is known in memory ([`lanes`](super::lanes)). So a look costs as much as there are
//! lanes that a node could serve and as it takes jobs, however long the lanes are. Only
//! jobs in a backoff are stepped over one by one: not more than were given to nodes within its length.

use super::{
    Store, StoreError,
    rows::{parse_document, to_document},
};
use crate::api::{JobId, NodeId, UserId, tasks::TaskSpec, time::Time};
use rusqlite::{Connection, OptionalExtension as _, Params, Statement, params};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

/// Longest pause between two attempts.
pub const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// What a job asks of its node. What is the same has the same text in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Labels that it must all bear.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<String>,
    /// Whether it must serve models.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inference: bool,
    /// Nodes that refused the job.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub except: BTreeSet<NodeId>,
}

/// Jobs of one user that ask the same of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Whose.
    pub user: UserId,
    /// What they ask, as it is stored.
    pub placement: Arc<str>,
}

/// A job that waits for a node; in a lane the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueuedJob {
    /// Minus its priority.
    pub rank: i32,
    /// Which job; ids sort by age.
    pub id: JobId,
    /// Since when it could have been given to a node.
    pub eligible_at: Time,
}

/// Whether jobs wait for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Some may run now.
    pub has_eligible: bool,
    /// When the backoff of the next one ends.
    pub next_at: Option<Time>,
}

/// The queue at one moment; a trait, so that decisions can be tested without a store.
pub trait Queue {
    /// How many jobs of each user nodes have.
    fn running(&self) -> Result<HashMap<UserId, u32>, StoreError>;
    /// The first job of a lane that may run now, of those behind `last`.
    fn next(&self, lane: &Lane, last: Option<&QueuedJob>) -> Result<Option<QueuedJob>, StoreError>;
    /// The image of a job, in normal form.
    fn image(&self, job: JobId) -> Result<String, StoreError>;
}

/// The queue in the store.
struct Snapshot<'a> {
    connection: &'a Connection,
    now: Time,
}

// Two steps and not one with `(user_id, placement) > (?1, ?2)`: SQLite would go to the first job of the
// lane that is left, and pass all that stand in it.
const NEXT_USER: &str =
    "SELECT user_id FROM jobs WHERE status = 'queued' AND user_id > ?1 ORDER BY user_id LIMIT 1";

const NEXT_LANE: &str = "SELECT placement FROM jobs
     WHERE status = 'queued' AND user_id = ?1 AND placement > ?2 ORDER BY placement LIMIT 1";

const NEXT_JOB: &str = "SELECT rank, id, not_before FROM jobs
     WHERE status = 'queued' AND user_id = ?1 AND placement = ?2 AND (rank, id) > (?3, ?4)
       AND not_before NOT BETWEEN ?5 + 1 AND ?6
     ORDER BY rank, id LIMIT 1";

impl Placement {
    /// What a task's jobs ask.
    pub(super) fn from_spec(spec: &TaskSpec) -> Self {
        Self {
            labels: spec.node_labels.iter().cloned().collect(),
            inference: spec.sandbox.use_inference == Some(true),
            except: BTreeSet::new(),
        }
    }

    /// From what is stored.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        parse_document(text)
    }

    /// As it is stored.
    pub(super) fn text(&self) -> Result<String, StoreError> {
        to_document(self)
    }
}

/// The one text that a statement answers, if any.
fn text(
    statement: &mut Statement<'_>,
    parameters: impl Params,
) -> Result<Option<String>, StoreError> {
    Ok(statement
        .query_row(parameters, |row| row.get(0))
        .optional()?)
}

/// All lanes in which somebody stands, be it in a backoff.
pub(super) fn lanes(c: &Connection) -> Result<Vec<Lane>, StoreError> {
    let mut next_user = c.prepare_cached(NEXT_USER)?;
    let mut next_lane = c.prepare_cached(NEXT_LANE)?;
    let (mut lanes, mut last) = (Vec::new(), String::new());
    while let Some(user) = text(&mut next_user, [&last])? {
        let id = user.parse().map_err(|_| StoreError::Damaged("user's id"))?;
        let mut passed = String::new();
        while let Some(placement) = text(&mut next_lane, [&user, &passed])? {
            lanes.push(Lane {
                user: id,
                placement: placement.as_str().into(),
            });
            passed = placement;
        }
        last = user;
    }
    Ok(lanes)
}

impl Queue for Snapshot<'_> {
    fn running(&self) -> Result<HashMap<UserId, u32>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT user_id, count(*) FROM jobs WHERE status = 'running' GROUP BY user_id",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn next(&self, lane: &Lane, last: Option<&QueuedJob>) -> Result<Option<QueuedJob>, StoreError> {
        let mut statement = self.connection.prepare_cached(NEXT_JOB)?;
        let rank = last.map_or(i64::MIN, |job| job.rank.into());
        let id = last.map(|job| job.id.to_string()).unwrap_or_default();
        let next = statement.query_row(
            params![
                lane.user,
                lane.placement,
                rank,
                id,
                self.now,
                self.now.plus(MAX_BACKOFF)
            ],
            |row| {
                Ok(QueuedJob {
                    rank: row.get(0)?,
                    id: row.get(1)?,
                    eligible_at: row.get(2)?,
                })
            },
        );
        Ok(next.optional()?)
    }

    fn image(&self, job: JobId) -> Result<String, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT spec ->> '$.sandbox.image' FROM tasks WHERE id = (SELECT task_id FROM jobs WHERE id = ?1)",
        )?;
        Ok(statement.query_row([job], |row| row.get(0))?)
    }
}

impl Store {
    /// Whether jobs wait for a node. Costs the same however many.
    pub async fn queue_status(&self, now: Time) -> Result<QueueStatus, StoreError> {
        self.read(move |c| {
            let mut statement = c.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM jobs WHERE status = 'queued' AND not_before <= ?1)
                            OR EXISTS (SELECT 1 FROM jobs WHERE status = 'queued' AND not_before > ?2),
                        (SELECT min(not_before) FROM jobs WHERE status = 'queued' AND not_before BETWEEN ?1 + 1 AND ?2)",
            )?;
            let due = statement.query_row([now, now.plus(MAX_BACKOFF)], |row| {
                Ok(QueueStatus {
                    has_eligible: row.get(0)?,
                    next_at: row.get(1)?,
                })
            });
            Ok(due?)
        })
        .await
    }

    /// Lets `decide` look at the queue as it is at `now`.
    pub async fn queue_look<T: Send + 'static>(
        &self,
        now: Time,
        decide: impl FnOnce(&dyn Queue) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read_blocking(move |c| {
            // So that all of it is read as it was at one moment.
            let connection = &c.unchecked_transaction()?;
            decide(&Snapshot { connection, now })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::{StatementStatus, ToSql};

    fn open() -> (Store, tempfile::TempDir) {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("cynode.db")).unwrap();
        (store, home)
    }

    /// Puts a job into the queue.
    fn add(
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
    async fn lane_scan_skips_no_job() {
        let (store, _home) = open();
        let user = UserId::new();
        let mut told = Vec::new();
        for more in [1, 1000] {
            let steps = store.write(move |c| {
                for _ in 0..more {
                    add(c, JobId::new(), (user, "{}", 0, 0))?;
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
                    steps(NEXT_JOB, &[&user, &"{}", &i64::MIN, &"", &5, &6])?,
                    steps(NEXT_JOB, &[&user, &"{}", &0, &first, &5, &6])?,
                ])
            });
            told.push(steps.await.unwrap());
        }
        let [few, many] = [told[0], told[1]];
        // With one job there is none behind it to be read.
        assert_eq!(few[..3], many[..3]);
        assert!(many[3] < 2 * many[2], "{many:?}");
    }

    #[tokio::test]
    async fn lanes_are_distinct_and_ordered() {
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
            jobs.iter().try_for_each(|(id, job)| add(c, *id, *job))?;
            Ok(())
        });
        write.await.unwrap();
        let lanes = store.read(lanes).await.unwrap();
        let read = |now| {
            let lanes = lanes.clone();
            store.queue_look(Time::from_millis(now), move |queue| {
                let mut read = Vec::new();
                for lane in lanes {
                    let mut last = None;
                    while let Some(job) = queue.next(&lane, last.as_ref())? {
                        read.push(job.id);
                        last = Some(job);
                    }
                }
                Ok(read)
            })
        };
        let ids = |of: &[usize]| of.iter().map(|n| jobs[*n].0).collect::<Vec<_>>();
        assert_eq!(read(5).await.unwrap(), ids(&[3, 0, 2, 5]));
        assert_eq!(read(9).await.unwrap(), ids(&[4, 3, 0, 1, 2, 5]));
        let due = |now| store.queue_status(Time::from_millis(now));
        let next_at = Some(Time::from_millis(9));
        assert!(!due(-1).await.unwrap().has_eligible);
        assert_eq!(
            due(5).await.unwrap(),
            QueueStatus {
                has_eligible: true,
                next_at
            }
        );
        assert_eq!(due(9).await.unwrap().next_at, None);
        // The clock was set back by more than a backoff can be.
        let before = 8 - MAX_BACKOFF.as_millis() as i64;
        assert_eq!(read(before).await.unwrap(), ids(&[4, 1]));
        assert!(due(before).await.unwrap().has_eligible);
    }

    #[test]
    fn equal_requests_have_equal_text() {
        let of = |labels: &[&str]| {
            let json = serde_json::json!({
                "sandbox": {"image": "a", "command": ["x"]}, "node_labels": labels, "max_attempts": 3,
            });
            let spec: TaskSpec = serde_json::from_value(json).unwrap();
            Placement::from_spec(&spec).text().unwrap()
        };
        assert_eq!(of(&[]), "{}");
        assert_eq!(of(&["b", "a/1", "b"]), r#"{"labels":["a/1","b"]}"#);
    }
}
