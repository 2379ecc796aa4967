//! The one writer, and group commit.
//!
//! ```text
//! callers ──closures──▶ channel ──▶ thread: BEGIN
//!                                            closure 1, closure 2, …
//!                                          COMMIT, one fsync ──▶ answers 1, 2, …
//!
//!                  closure 2 failed after a change: ROLLBACK, and all again, each by itself:
//!                                          BEGIN
//!                                            SAVEPOINT, closure 1, RELEASE
//!                                            SAVEPOINT, closure 2, ROLLBACK TO
//!                                            …
//!                                          COMMIT
//! ```
//!
//! A lone write is committed at once; writes that arrive during a commit share the next one. So the wait for
//! the disk is paid per group, and no write waits for others to arrive.
//!
//! A savepoint makes SQLite copy every page that the write changes. Few writes fail, and those mostly before they
//! change anything, so a group gets savepoints only once one of its writes has left a change behind.
//!
//! A write is an `Fn` closure that may run twice, as the [store](crate::store) promises to other databases. In
//! the tests of this crate every write does: the first run is rolled back.

use super::{
    StorageFault, StoreError, health::Health, node_cache::NodeCache, rows::execute, wal::Wal,
};
use crate::errors;
use rusqlite::Connection;
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};
use tokio::sync::{mpsc, oneshot};

/// Maximum number of waiting writes; further callers wait to enqueue theirs.
const QUEUE_LIMIT: usize = 1024;
/// Maximum number of messages whose writes share a commit, which bounds the wait of the first of them.
const GROUP_LIMIT: usize = 256;

/// Waiting write.
trait Write: Send {
    /// Runs the closure and keeps its outcome; false where it has failed and left a change behind.
    fn run(&mut self, connection: &Connection, nodes: &NodeCache, isolation: Isolation) -> bool;
    /// Answers the caller after the commit.
    fn answer(self: Box<Self>, committed: Result<(), &CommitFailure>);
}

/// Isolation of the writes of a group from each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    /// A write that fails after a change spoils the transaction.
    None,
    /// A write that fails leaves no trace.
    Savepoint,
}

/// Write with its caller.
struct PendingWrite<T, F> {
    closure: F,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    health: Health,
}

impl<T, F> Write for PendingWrite<T, F>
where
    T: Send,
    F: Fn(&Connection) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, connection: &Connection, nodes: &NodeCache, isolation: Isolation) -> bool {
        let count = nodes.count();
        #[cfg(test)]
        rehearse(connection, &self.closure);
        #[cfg(test)]
        nodes.truncate(count);
        let changes = connection.total_changes();
        let outcome = run_closure(connection, &self.closure, isolation);
        if outcome.is_err() {
            nodes.truncate(count);
        }
        self.health.record(&outcome);
        // A damaged file can leave changes that SQLite doesn't count.
        let is_fault = outcome
            .as_ref()
            .is_err_and(|error| error.storage_fault().is_some());
        let is_clean = outcome.is_ok()
            || isolation == Isolation::Savepoint
            || (connection.total_changes() == changes && !is_fault);
        self.outcome = Some(outcome);
        is_clean
    }

    fn answer(self: Box<Self>, committed: Result<(), &CommitFailure>) {
        let outcome = match (self.outcome, committed) {
            (Some(Ok(_) | Err(StoreError::Commit(_))) | None, Err(failure)) => Err(failure.error()),
            (Some(outcome), _) => outcome,
            (None, Ok(())) => Err(StoreError::Closed),
        };
        // The caller may have gone away in the meantime.
        let _ = self.reply.send(outcome);
    }
}

/// Message to the thread of the writer.
enum Message {
    /// Writes for one commit.
    Writes(Vec<Box<dyn Write>>),
    /// Closes the connection after all earlier writes; later writes fail.
    Close(oneshot::Sender<Result<(), StoreError>>),
}

/// Reason for which a group was not committed.
struct CommitFailure {
    reason: String,
    fault: Option<StorageFault>,
}

impl CommitFailure {
    fn error(&self) -> StoreError {
        match self.fault {
            Some(fault) => fault.into(),
            None => StoreError::Commit(self.reason.clone()),
        }
    }
}

#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    health: Health,
}

impl Writer {
    /// Starts the thread, which ends and closes the connection with the last clone of the writer.
    pub(super) fn start(
        connection: Connection,
        wal: Wal,
        nodes: NodeCache,
        health: Health,
    ) -> io::Result<Self> {
        let (queue, receiver) = mpsc::channel(QUEUE_LIMIT);
        let writer = Self {
            queue,
            health: health.clone(),
        };
        let thread = thread::Builder::new().name("store_writer".to_owned());
        thread.spawn(move || run(connection, receiver, wal, &nodes, &health))?;
        Ok(writer)
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        f: impl Fn(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut outcomes = self.write_all(vec![f]).await;
        outcomes.pop().unwrap_or(Err(StoreError::Closed))
    }

    /// Runs writes in one commit, each with its own outcome.
    pub(super) async fn write_all<T, F>(&self, closures: Vec<F>) -> Vec<Result<T, StoreError>>
    where
        T: Send + 'static,
        F: Fn(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let pend = |closure| {
            let (reply, answer) = oneshot::channel();
            let write: Box<dyn Write> = Box::new(PendingWrite {
                closure,
                outcome: None,
                reply,
                health: self.health.clone(),
            });
            (write, answer)
        };
        let (writes, answers): (_, Vec<_>) = closures.into_iter().map(pend).unzip();
        // Where the writer is closed, so are the answers.
        let _ = self.queue.send(Message::Writes(writes)).await;
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(answer.await.unwrap_or(Err(StoreError::Closed)));
        }
        outcomes
    }

    /// Commits the waiting writes, copies the log into the database, and closes the connection.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let close = self.queue.send(Message::Close(reply));
        close.await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn run(
    connection: Connection,
    mut messages: mpsc::Receiver<Message>,
    mut wal: Wal,
    nodes: &NodeCache,
    health: &Health,
) {
    let mut received = Vec::with_capacity(GROUP_LIMIT);
    let mut group = Vec::with_capacity(GROUP_LIMIT);
    while messages.blocking_recv_many(&mut received, GROUP_LIMIT) > 0 {
        let mut close = None;
        for message in received.drain(..) {
            match message {
                Message::Writes(writes) if close.is_none() => group.extend(writes),
                Message::Close(reply) if close.is_none() => close = Some(reply),
                // Dropped: the caller gets `StoreError::Closed`.
                _ => {}
            }
        }
        if !group.is_empty() {
            commit(&connection, &mut group, nodes, health);
            wal.truncate_if_due(&connection, health);
        }
        if let Some(reply) = close {
            let _ = reply.send(wal.close(connection));
            return;
        }
    }
}

/// Runs a group of writes in one transaction and answers each after the commit.
fn commit(
    connection: &Connection,
    group: &mut Vec<Box<dyn Write>>,
    nodes: &NodeCache,
    health: &Health,
) {
    let begin = || execute(connection, "BEGIN IMMEDIATE", []);
    let mut run = |isolation| {
        let mut writes = group.iter_mut();
        writes.all(|write| write.run(connection, nodes, isolation))
    };
    // After a failed BEGIN each write fails by itself, with the reason for its caller.
    let mut began = begin();
    if !run(Isolation::None) && !connection.is_autocommit() {
        nodes.truncate(0);
        began = execute(connection, "ROLLBACK", []).and_then(|_| begin());
        run(Isolation::Savepoint);
    }
    let committed = began.and_then(|_| execute(connection, "COMMIT", []));
    let committed = committed.map_err(|error| abort_commit(connection, error.into(), health));
    if committed.is_err() {
        nodes.truncate(0);
    }
    nodes.publish();
    for write in group.drain(..) {
        write.answer(committed.as_ref().map(|_| ()));
    }
}

/// Rolls back a group that could not be committed; the reason for its callers.
fn abort_commit(connection: &Connection, error: StoreError, health: &Health) -> CommitFailure {
    let reason = errors::chain(&error);
    tracing::error!(
        reason,
        "database could not commit a group of writes; rolled back"
    );
    if !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    health.record(&Err::<(), _>(error));
    // A write of the group may have recorded the fault at which SQLite rolled back all of it.
    CommitFailure {
        reason,
        fault: health.storage_fault(),
    }
}

/// Runs `f`. In a savepoint, its failure, or its panic, leaves no trace in the transaction.
fn run_closure<T>(
    connection: &Connection,
    f: &impl Fn(&Connection) -> Result<T, StoreError>,
    isolation: Isolation,
) -> Result<T, StoreError> {
    // A full disk makes SQLite roll back the whole transaction. A write outside of a transaction would commit by
    // itself, for a caller that is about to get an error.
    if connection.is_autocommit() {
        return Err(StoreError::Commit(
            "the transaction was rolled back".to_owned(),
        ));
    }
    let is_isolated = isolation == Isolation::Savepoint;
    if is_isolated {
        execute(connection, "SAVEPOINT one", [])?;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| f(connection)))
        .unwrap_or_else(|_| Err(StoreError::Commit("the write panicked".to_owned())));
    if is_isolated && outcome.is_err() {
        // Fails where SQLite has rolled back the whole transaction, for the reason that the write has.
        let _ = execute(connection, "ROLLBACK TO one", []);
        let _ = execute(connection, "RELEASE one", []);
    } else if is_isolated {
        execute(connection, "RELEASE one", [])?;
    }
    outcome
}

/// Runs a write and rolls it back, to show that it may run twice.
#[cfg(test)]
fn rehearse<T>(connection: &Connection, f: &impl Fn(&Connection) -> Result<T, StoreError>) {
    if !connection.is_autocommit() {
        let _ = connection.execute_batch("SAVEPOINT rehearsal");
        let _ = catch_unwind(AssertUnwindSafe(|| f(connection)));
        let end = "ROLLBACK TO rehearsal; RELEASE rehearsal";
        let _ = connection.execute_batch(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{path::Path, sync::Arc};

    fn writer() -> Writer {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY)")
            .unwrap();
        let wal = Wal::of(Path::new("none"), Arc::default());
        Writer::start(connection, wal, NodeCache::default(), Health::default()).unwrap()
    }

    async fn insert(writer: &Writer, n: i64) -> Result<(), StoreError> {
        writer
            .write(move |c| Ok(c.execute("INSERT INTO t VALUES (?1)", [n]).map(drop)?))
            .await
    }

    async fn count(writer: &Writer) -> i64 {
        writer
            .write(|c| Ok(c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn failing_write_does_not_affect_group() {
        let writer = writer();
        let outcomes = futures_util::future::join_all((0..100).map(|n| {
            let writer = &writer;
            async move {
                match n % 10 {
                    3 => insert(writer, 0).await,
                    7 => {
                        let both = |c: &Connection| {
                            c.execute("INSERT INTO t VALUES (?1)", [1000])?;
                            panic!("on purpose")
                        };
                        writer.write(both).await
                    }
                    _ => insert(writer, n).await,
                }
            }
        }))
        .await;
        let good = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(good, 80);
        assert_eq!(count(&writer).await, 80);
    }
}
