//! cynode, the map of the house: one line per room.
//!
//! The library exists for the binary beside it, its tests and its bench; it is no API for
//! others. Rooms may use what stands above them here, with two rules on top: `orchestrator`
//! and `node`/`worker` never use each other and meet only over HTTP, and SQL, podman and
//! other processes each have the one room that this list names.

pub mod api; // what travels on the wire: types and their rules, no I/O
pub mod data_dir; // the state directory: 0700, 0600, locks, addresses.json
pub mod digest; // SHA-256 in hex
pub mod exit; // exit codes and failures of the process
pub mod tasks; // background tasks that somebody waits for

pub mod http; // hyper + tower plumbing, both directions
pub mod identity;
pub mod store; // SQLite, the only room with SQL // users, nodes, passwords, tokens

pub mod engine; // the only room that starts podman
pub mod node; // role `node`: joins an orchestrator, serves it a worker
pub mod orchestrator;
pub mod sandbox_init; // PID 1 inside a sandbox
pub mod worker; // role `worker`: the Worker API, the life of a job // role `serve-orchestrator`: gateway, control plane, dispatch

pub mod cli; // every subcommand and flag
pub mod client; // the user's commands and how they print
pub mod hidden; // helpers that the binary starts itself
pub mod roles; // from flags to a running role; also `dev`, all of them in one process
