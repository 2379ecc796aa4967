//! Execs in the sandbox of a job, and sandboxes that stay: the part that runs in the shim, and how it is called.
//!
//! ```text
//! worker ── session.sock ──▶ shim ── init's socket ──▶ init ──▶ keeper ──▶ exec
//!                             │ ◀──── pipes ─────────────────────────────────┘
//!                             └──▶ execs/<id>/ in the job's directory, which the worker reads
//! ```
//!
//! | file | contents |
//! |---|---|
//! | [`protocol`] | calls on `session.sock` |
//! | [`server`] | serves them, counts uses, stops the sandbox at its end |
//! | [`table`] | the execs by id |
//! | [`exec`], [`pipes`], [`stdin`] | one exec: start, record, end; and what it reads |
//! | [`file_server`] | the end of a file server without its caller |
//! | [`clock`] | lifetime and idle time, pure |
//! | [`end`] | the end of a sandbox that stays, as the end of its job |
//!
//! Everything that has to survive the worker is here, in the shim: the execs, their records, the clock. The worker holds
//! nothing of them, so that one that is killed and comes back finds all as it is.
//!
//! An exec is on record before init gets it, under an id that its caller chose, and a second one with that id is never
//! started. So a call may be repeated after any failure on its way. When the shim is killed, its sandbox ends, and its
//! execs with it: those without an end on record are lost.

mod clock;
mod end;
mod exec;
mod file_server;
mod pipes;
pub(super) mod protocol;
mod server;
mod stdin;
mod table;

pub(super) use end::session_end;
pub(super) use server::Session;
