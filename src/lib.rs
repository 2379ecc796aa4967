//! cynode runs commands in sandboxes on your own machines: one binary, several roles.
//!
//! # Modules ("rooms")
//!
//! | room | contents |
//! |---|---|
//! | [`api`] | types on the wire and their rules; no I/O |
//! | [`http`] | server and client plumbing over hyper: listeners, limits, bodies, routing, errors |
//! | [`store`] | the database: domain types, and all SQL in `store/sqlite/` |
//! | [`identity`] | users, sessions, keys, tokens of nodes, rate limits, audit |
//! | [`orchestrator`] | role `serve-orchestrator`: use cases, gateway, control plane, scheduler, dispatch |
//! | [`node`] | role `node`: registers, reports, runs the one model server, and serves a worker |
//! | [`worker`] | role `worker`: the Worker API, the ledger of jobs, a job in its sandbox |
//! | [`sandbox`] | a closed container that runs a command: lifecycle, shim, protocol to init; knows no job |
//! | [`sandbox_init`] | PID 1 inside a sandbox |
//! | [`spool`] | one attempt of a job on disk: request, log, result |
//! | [`engine`] | podman, the only room that starts it |
//! | [`client`] | commands for users, and their output |
//! | [`doctor`] | checks of a machine, and fixes |
//! | [`cli`], [`roles`] | flags; from flags to settings to a running role, `dev` among them |
//! | [`helpers`] | hidden commands by which the binary starts itself: init, shim, removal of trees |
//! | shared by several rooms | [`background`], [`backoff`], [`data_dir`], [`digest`], [`disk_space`], `environment`, [`errors`], [`exit`], [`files`], `instances`, `network`, [`retry`], [`secrets`], [`terminal`], `text`, `wait` |
//!
//! `orchestrator` and `node`/`worker` never import each other: they meet over HTTP, also in `dev`.
//! `tests/house/` holds the rules between rooms. The library exists for the binary, its tests and its
//! benches; it is not an API.
//!
//! # Where to find
//!
//! | question | file |
//! |---|---|
//! | routes of each listener | `orchestrator/gateway/mod.rs`, `orchestrator/control_plane/mod.rs`, `worker/api.rs`; `/healthz`, `/readyz`, `/metrics`: `orchestrator/health.rs` |
//! | life of a job: queue, attempt, result | `orchestrator/dispatch/mod.rs` and `attempt.rs` |
//! | scheduling policy | `orchestrator/scheduler/decision.rs` |
//! | retry policy of jobs | `orchestrator/dispatch/transition.rs`; retryable errors: `JobErrorKind` in `api/jobs/result.rs` |
//! | silent nodes: leases, rescheduling | `orchestrator/dispatch/lease.rs`, `reschedule/machine.rs` |
//! | nodes that refused or failed: backoff | `orchestrator/node_backoff.rs` |
//! | cancel, from the call to the container | `orchestrator/cancel.rs`, `active_jobs.rs`, then `worker/job.rs`, `sandbox/stop.rs` |
//! | live logs | `orchestrator/logs/`, fed by `worker/event_stream.rs` |
//! | heartbeat | `node/heartbeat.rs`; its absence: `orchestrator/liveness.rs` |
//! | clean-up of orphans | `worker/orphans.rs` (containers), `worker/gc.rs` (results), `orchestrator/reconciler.rs` (attempts at nodes) |
//! | flags of podman, and their reasons | `engine/container.rs` |
//! | PID 1 of a sandbox | `sandbox_init/mod.rs`; its protocol: `sandbox_init/wire.rs` |
//! | layout on disk | of a job: `spool/mod.rs`; of a data directory: docs/usage.md, its rules: `data_dir.rs` |
//! | schema and migrations | `schema.sql`, `store/sqlite/migrations/` |
//! | crash by crash: what survives | docs/recovery.md |
//!
//! # Glossary
//!
//! - **task**: a command with its image, environment and limits, as a user created it. It has one **job**, its
//!   execution, as nodes know it.
//! - **attempt**: one try of a job at one node, with a number that fences: a higher one replaces a lower one.
//! - **node**: a machine that runs jobs. Its **worker** serves the Worker API; its **slug** is its name in commands.
//! - **sandbox**: a container without a network, with its own `/workspace`, in which **init** (PID 1) runs the
//!   command, held by a **shim**, a process that outlives the worker.
//! - **spool**: the directory of an attempt at its node. The **ledger** is the worker's index of spools; a
//!   **tombstone** records an attempt that was deleted, so that it never runs again.
//! - **lane**: the queued jobs of one user with the same requirements; the scheduler looks at heads of lanes only.
//! - **placement**: the requirements of a job on a node, and the nodes that refused it.
//! - **lease**: time for which a silent node keeps its jobs; then they are **offered** to another node.
//! - **reserve**: free space on a disk that is kept for results and state.

pub mod api;
pub mod background;
pub mod backoff;
pub mod cli;
pub mod client;
pub mod data_dir;
pub mod digest;
pub mod disk_space;
pub mod doctor;
pub mod engine;
mod environment;
pub mod errors;
pub mod exit;
pub mod files;
pub mod helpers;
pub mod http;
pub mod identity;
mod instances;
mod network;
pub mod node;
pub mod orchestrator;
pub mod retry;
pub mod roles;
pub mod sandbox;
pub mod sandbox_init;
pub mod secrets;
pub mod spool;
pub mod store;
pub mod terminal;
mod text;
mod wait;
pub mod worker;
