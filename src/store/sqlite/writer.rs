//! The one writer, and group commit.
//!
//! ```text
//! callers ──closures──▶ channel ──▶ thread: BEGIN
//!                                            SAVEPOINT, closure 1, RELEASE
//!                                            SAVEPOINT, closure 2, ROLLBACK TO (it failed)
//!                                            …
//!                                          COMMIT, one fsync ──▶ answers 1, 2, …
//! ```
//!
//! A lone write is committed at once; writes that arrive during a commit share the next one. So the wait for
//! the disk is paid per group, and no write waits for others to arrive.
//!
//! A write is an `Fn` closure that may run twice, as the [store](crate::store) promises to other databases. In
//! the tests of this crate every write does: the first run is rolled back.

use super::{StorageFault, StoreError, health::Health, wal::Wal};
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
/// Maximum number of writes in one commit, which bounds the wait of the first of them.
const GROUP_LIMIT: usize = 256;

/// Continuation of a write, called with the outcome of the commit.
type Answer = Box<dyn FnOnce(Result<(), &CommitFailure>) + Send>;
type Write = Box<dyn FnOnce(&Connection) -> Answer + Send>;

/// Message to the thread of the writer.
enum Message {
    Write(Write),
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
    pub(super) fn start(connection: Connection, wal: Wal, health: Health) -> io::Result<Self> {
        let (queue, receiver) = mpsc::channel(QUEUE_LIMIT);
        let writer = Self {
            queue,
            health: health.clone(),
        };
        let thread = thread::Builder::new().name("store_writer".to_owned());
        thread.spawn(move || run(connection, receiver, wal, &health))?;
        Ok(writer)
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        f: impl Fn(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let health = self.health.clone();
        let write: Write = Box::new(move |connection| {
            let outcome = in_savepoint(connection, &f);
            health.record(&outcome);
            Box::new(move |committed| {
                let outcome = match (outcome, committed) {
                    (Ok(_) | Err(StoreError::Commit(_)), Err(failure)) => Err(failure.error()),
                    (outcome, _) => outcome,
                };
                // The caller may have gone away in the meantime.
                let _ = reply.send(outcome);
            })
        });
        self.queue
            .send(Message::Write(write))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
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
    health: &Health,
) {
    let mut received = Vec::with_capacity(GROUP_LIMIT);
    let mut group = Vec::with_capacity(GROUP_LIMIT);
    while messages.blocking_recv_many(&mut received, GROUP_LIMIT) > 0 {
        let mut close = None;
        for message in received.drain(..) {
            match message {
                Message::Write(write) if close.is_none() => group.push(write),
                Message::Close(reply) if close.is_none() => close = Some(reply),
                // Dropped: the caller gets `StoreError::Closed`.
                _ => {}
            }
        }
        if !group.is_empty() {
            commit(&connection, &mut group, health);
            wal.truncate_if_due(&connection, health);
        }
        if let Some(reply) = close {
            let _ = reply.send(wal.close(connection));
            return;
        }
    }
}

/// Runs a group of writes in one transaction and answers each after the commit.
fn commit(connection: &Connection, group: &mut Vec<Write>, health: &Health) {
    let began = connection.execute_batch("BEGIN IMMEDIATE");
    let mut answers = Vec::with_capacity(group.len());
    // After a failed BEGIN each write fails by itself, with the reason for its caller.
    answers.extend(group.drain(..).map(|write| write(connection)));
    let committed = began.and_then(|()| connection.execute_batch("COMMIT"));
    let committed = committed.map_err(|error| abort_commit(connection, error.into(), health));
    for answer in answers {
        answer(committed.as_ref().copied());
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

/// Runs `f` so that its failure, or its panic, leaves no trace in the transaction.
fn in_savepoint<T>(
    connection: &Connection,
    f: &impl Fn(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    // A full disk makes SQLite roll back the whole transaction. A savepoint outside of a transaction would
    // commit by itself, for a caller that is about to get an error.
    if connection.is_autocommit() {
        return Err(StoreError::Commit(
            "the transaction was rolled back".to_owned(),
        ));
    }
    #[cfg(test)]
    rehearse(connection, f)?;
    connection.execute_batch("SAVEPOINT one")?;
    let outcome = catch_unwind(AssertUnwindSafe(|| f(connection)))
        .unwrap_or_else(|_| Err(StoreError::Commit("the write panicked".to_owned())));
    let end = if outcome.is_ok() {
        "RELEASE one"
    } else {
        "ROLLBACK TO one; RELEASE one"
    };
    connection.execute_batch(end)?;
    outcome
}

/// Runs a write and rolls it back, to show that it may run twice.
#[cfg(test)]
fn rehearse<T>(
    connection: &Connection,
    f: &impl Fn(&Connection) -> Result<T, StoreError>,
) -> Result<(), StoreError> {
    connection.execute_batch("SAVEPOINT rehearsal")?;
    let _ = catch_unwind(AssertUnwindSafe(|| f(connection)));
    connection.execute_batch("ROLLBACK TO rehearsal; RELEASE rehearsal")?;
    Ok(())
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
        Writer::start(connection, wal, Health::default()).unwrap()
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
