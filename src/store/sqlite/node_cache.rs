//! Nodes and the numbers of running jobs, in memory, for the scheduler.
//!
//! The scheduler looks at every node at every turn, and mostly nothing about them has changed. So the nodes are kept, and
//! only those are read again that a write has changed. Temporary triggers of the write connection record the changes, so
//! that no statement can leave one out:
//!
//! ```text
//! statement ──▶ trigger ──▶ change ──COMMIT──▶ published ──▶ answer to the caller of the write
//!                                └─ROLLBACK─▶ discarded
//! ```
//!
//! Guarantee: a [snapshot](Store::node_snapshot) that is taken after a write has answered shows that write.

use super::{
    Node, Store, StoreError,
    nodes::{SELECT, node},
    reports::ReportCache,
};
use crate::api::{NodeId, UserId};
use parking_lot::Mutex;
use rusqlite::{
    Connection, OptionalExtension as _,
    functions::{Context, FunctionFlags},
    types::{FromSql, Null},
};
use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    mem,
    sync::Arc,
};

/// Every statement that changes a node, or the place of a running job.
const TRIGGERS: &str = "
    CREATE TEMP TRIGGER node_inserted AFTER INSERT ON main.nodes BEGIN
        SELECT record_node(NEW.id);
    END;
    CREATE TEMP TRIGGER node_updated AFTER UPDATE ON main.nodes BEGIN
        SELECT record_node(NEW.id);
    END;
    CREATE TEMP TRIGGER node_deleted AFTER DELETE ON main.nodes BEGIN
        SELECT record_node(OLD.id);
    END;
    CREATE TEMP TRIGGER job_inserted AFTER INSERT ON main.jobs
    WHEN NEW.status = 'running' OR NEW.offered_node_id IS NOT NULL BEGIN
        SELECT record_job(1, iif(NEW.status = 'running', NEW.node_id, NULL), NEW.offered_node_id,
                        iif(NEW.status = 'running', NEW.user_id, NULL));
    END;
    CREATE TEMP TRIGGER job_updated AFTER UPDATE OF status, node_id, offered_node_id, user_id ON main.jobs
    WHEN OLD.status = 'running' OR OLD.offered_node_id IS NOT NULL
      OR NEW.status = 'running' OR NEW.offered_node_id IS NOT NULL BEGIN
        SELECT record_job(-1, iif(OLD.status = 'running', OLD.node_id, NULL), OLD.offered_node_id,
                        iif(OLD.status = 'running', OLD.user_id, NULL)),
               record_job(1, iif(NEW.status = 'running', NEW.node_id, NULL), NEW.offered_node_id,
                        iif(NEW.status = 'running', NEW.user_id, NULL));
    END;
    CREATE TEMP TRIGGER job_deleted AFTER DELETE ON main.jobs
    WHEN OLD.status = 'running' OR OLD.offered_node_id IS NOT NULL BEGIN
        SELECT record_job(-1, iif(OLD.status = 'running', OLD.node_id, NULL), OLD.offered_node_id,
                        iif(OLD.status = 'running', OLD.user_id, NULL));
    END;";

const RUNNING: &str = "SELECT node_id, offered_node_id, iif(status = 'running', user_id, NULL) FROM jobs
    WHERE status = 'running'
    UNION ALL
    SELECT NULL, offered_node_id, NULL FROM jobs WHERE offered_node_id IS NOT NULL AND status <> 'running'";

/// Change of a row.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// A node was inserted, updated or deleted.
    Node(NodeId),
    /// A job came to its nodes and its user, or left them.
    Job {
        nodes: [Option<NodeId>; 2],
        user: Option<UserId>,
        came: bool,
    },
}

/// The cache; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct NodeCache {
    /// Changes of the transaction that is under way.
    changes: Arc<Mutex<Vec<Change>>>,
    state: Arc<Mutex<State>>,
    /// Held while changed nodes are read, so that no snapshot goes without them.
    refresh: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    /// Nodes in the order of their slugs; `None` before the first read.
    nodes: Option<Arc<Vec<Arc<Node>>>>,
    /// Position of each of them.
    positions: HashMap<NodeId, usize>,
    /// Nodes that were changed since they were read.
    changed: HashSet<NodeId>,
    /// Nodes that a snapshot is reading, or failed to read.
    reading: HashSet<NodeId>,
    running_on: HashMap<NodeId, u32>,
    running_of: HashMap<UserId, u32>,
}

impl NodeCache {
    /// Cache of the database that `writer` writes, from now on.
    pub(super) fn open(writer: &Connection) -> Result<Self, StoreError> {
        let cache = Self::default();
        let mut state = State::default();
        let mut statement = writer.prepare(RUNNING)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            state.count([row.get(0)?, row.get(1)?], row.get(2)?, true);
        }
        *cache.state.lock() = state;
        let flags = FunctionFlags::SQLITE_UTF8;
        let changes = Arc::clone(&cache.changes);
        writer.create_scalar_function("record_node", 1, flags, move |call| {
            changes.lock().extend(id(call, 0).map(Change::Node));
            Ok(Null)
        })?;
        let changes = Arc::clone(&cache.changes);
        writer.create_scalar_function("record_job", 4, flags, move |call| {
            changes.lock().push(Change::Job {
                nodes: [id(call, 1), id(call, 2)],
                user: id(call, 3),
                came: call.get::<i64>(0)? > 0,
            });
            Ok(Null)
        })?;
        writer.execute_batch(TRIGGERS)?;
        Ok(cache)
    }

    /// Number of changes, for [`truncate`](Self::truncate).
    pub(super) fn count(&self) -> usize {
        self.changes.lock().len()
    }

    /// Discards the changes of a write that was rolled back.
    pub(super) fn truncate(&self, count: usize) {
        self.changes.lock().truncate(count);
    }

    /// Applies the changes of a transaction that was committed.
    pub(super) fn publish(&self) {
        let changes = mem::take(&mut *self.changes.lock());
        if changes.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        for change in changes {
            match change {
                Change::Node(id) => drop(state.changed.insert(id)),
                Change::Job { nodes, user, came } => state.count(nodes, user, came),
            }
        }
    }

    /// Number of running jobs of each of these users that has any.
    pub(super) fn running_of(&self, users: impl Iterator<Item = UserId>) -> HashMap<UserId, u32> {
        let state = self.state.lock();
        let running = users.filter_map(|user| Some((user, *state.running_of.get(&user)?)));
        running.collect()
    }
}

/// Id in a column; `None` also where it is damaged, which the reader of the row reports.
fn id<T: FromSql>(call: &Context<'_>, n: usize) -> Option<T> {
    call.get(n).ok()
}

/// Adds to a number, or takes from it, and keeps no zero.
fn count<K: Copy + Eq + Hash>(numbers: &mut HashMap<K, u32>, key: K, came: bool) {
    let number = numbers.entry(key).or_default();
    *number = if came {
        *number + 1
    } else {
        number.saturating_sub(1)
    };
    if *number == 0 {
        numbers.remove(&key);
    }
}

impl State {
    /// Counts a job that came to its nodes and its user, or left them.
    fn count(&mut self, nodes: [Option<NodeId>; 2], user: Option<UserId>, came: bool) {
        for node in nodes.into_iter().flatten() {
            count(&mut self.running_on, node, came);
            self.show_running(node);
        }
        if let Some(user) = user {
            count(&mut self.running_of, user, came);
        }
    }

    /// Shows the number of running jobs in the node.
    fn show_running(&mut self, id: NodeId) {
        let running = self.running_on.get(&id).copied().unwrap_or(0);
        if let (Some(nodes), Some(n)) = (&mut self.nodes, self.positions.get(&id)) {
            let node = &mut Arc::make_mut(nodes)[*n];
            Arc::make_mut(node).running_jobs = running;
        }
    }

    /// Puts in nodes that were read again; `None` stands for a node that is gone.
    fn refresh(&mut self, read: Vec<(NodeId, Option<Node>)>) {
        let mut nodes = self
            .nodes
            .take()
            .map(Arc::unwrap_or_clone)
            .unwrap_or_default();
        let changed: HashSet<_> = read.iter().map(|(id, _)| *id).collect();
        nodes.retain(|node| !changed.contains(&node.id));
        nodes.extend(read.into_iter().filter_map(|(id, node)| {
            let running_jobs = self.running_on.get(&id).copied().unwrap_or(0);
            Some(Arc::new(Node {
                running_jobs,
                ..node?
            }))
        }));
        nodes.sort_by(|a, b| a.slug.cmp(&b.slug));
        let positions = nodes.iter().enumerate().map(|(n, node)| (node.id, n));
        self.positions = positions.collect();
        self.reading.clear();
        self.nodes = Some(Arc::new(nodes));
    }
}

/// Rows of these nodes; `None` where one is gone.
fn read_nodes(
    c: &Connection,
    ids: &HashSet<NodeId>,
    reports: &ReportCache,
) -> Result<Vec<(NodeId, Option<Node>)>, StoreError> {
    let mut statement = c.prepare_cached(&format!("{SELECT} WHERE n.id = ?1"))?;
    let mut read = |id: &NodeId| {
        let row = statement.query_row([id], |row| Ok(node(row, reports)));
        Ok((*id, row.optional()?.transpose()?))
    };
    ids.iter().map(&mut read).collect()
}

impl Store {
    /// All nodes, in the order of their slugs. The cost depends on the nodes that were changed since the last snapshot.
    pub async fn node_snapshot(&self) -> Result<Arc<Vec<Arc<Node>>>, StoreError> {
        let NodeCache { state, refresh, .. } = &self.node_cache;
        let _refreshing = refresh.lock().await;
        let (known, changed) = {
            let mut state = state.lock();
            let changed = mem::take(&mut state.changed);
            state.reading.extend(changed);
            (state.nodes.clone(), state.reading.clone())
        };
        let read = match known {
            Some(nodes) if changed.is_empty() => return Ok(nodes),
            Some(_) => {
                let reports = self.reports.clone();
                let read = self.read(move |c| read_nodes(c, &changed, &reports));
                read.await?
            }
            None => {
                let nodes = self.node_list().await?.into_iter();
                nodes.map(|node| (node.id, Some(node))).collect()
            }
        };
        let mut state = state.lock();
        state.refresh(read);
        let nodes = state.nodes.clone().unwrap_or_default();
        // Its lock is held by those who read reports.
        drop(state);
        self.reports.retain(&nodes);
        Ok(nodes)
    }

    /// Compares the cache with the database.
    #[cfg(test)]
    pub(super) async fn assert_cache_is_current(&self) {
        let cached = self.node_snapshot().await.unwrap();
        let stored = self.node_list().await.unwrap();
        let cached = cached.iter().map(|node| format!("{node:?}"));
        assert!(cached.eq(stored.iter().map(|node| format!("{node:?}"))));
        let running = self.read(|c| {
            let sql = "SELECT user_id, count(*) FROM jobs WHERE status = 'running' GROUP BY 1";
            let mut statement = c.prepare(sql)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<HashMap<UserId, u32>, _>>()?)
        });
        let running = running.await.unwrap();
        assert_eq!(self.node_cache.state.lock().running_of, running);
    }
}
