//! The store: everything that an orchestrator must not forget, and the only room that knows a database.
//!
//! | file | contents |
//! |---|---|
//! | [`types`] | rows and results as domain types |
//! | [`error`] | errors, faults of the disk |
//! | `sqlite` | the implementation, with all SQL |
//!
//! Callers see [`Store`] and its functions, noun first (`job_claim`, `task_create`), and the types above.
//! No function takes a callback: a caller gets data and decides outside of the database's threads.
//!
//! # Promises
//!
//! - **Durability.** A write that answered `Ok` is on the disk and survives a loss of power.
//! - **Atomicity.** A write that answered an error has changed nothing, also when others that shared its commit
//!   succeeded. A write without an answer, since the process ended, happened as a whole or not at all.
//! - **Isolation.** A write runs as if no other ran at the same time: the rows that it has read are the same when
//!   it is committed, and where it fails, the writes that share its commit are repeated, each for itself. A read sees committed
//!   data only; a function whose rows must agree reads them in one snapshot, and two functions may see two.
//! - **Order.** A read that begins after a write has answered sees that write.
//! - **Fencing.** Every write about a running job names its attempt and is conditional on it, so that the
//!   late answer of an earlier attempt changes nothing.
//! - **Cost.** A function reads by an index and costs the same however many rows there are beside those that
//!   it answers; the tests look at the query plans.
//!
//! # Another implementation
//!
//! SQLite stands in for PostgreSQL. An implementation beside `sqlite` changes no caller if it makes the promises
//! above, which asks for this:
//!
//! - Transactions are `SERIALIZABLE`. A closure of a write is `Fn` and may run again after a serialization
//!   failure: it borrows what it captured and has no effect outside of the transaction, but for notes in memory
//!   that may be made twice. The tests run every closure twice.
//! - Decisions that are one statement today (`UPDATE … WHERE used_at IS NULL RETURNING …`) stay one: they hold
//!   with several writers, and without a retry.
//! - Writes that answer together may share a commit (group commit); where one of them fails, it alone is undone.
//! - [`StorageFault`] is reported for what an operator must fix (a full disk, a read-only or a damaged
//!   database), and [`Store::probe`] shows that it is fixed. Other failures are [`StoreError::Database`].
//! - Several orchestrators on one database are out of scope: lanes of the queue ([`Lane`]) are known in memory
//!   and entered by the writes of this process.

mod error;
mod sqlite;
mod types;

pub use error::{BackupError, LowSpace, StorageFault, StoreError};
pub use sqlite::{MAX_CLAIMS, Store, backup, has_users, is_empty};
pub use types::*;
