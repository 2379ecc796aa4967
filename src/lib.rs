//! cynode runs commands in sandboxes on your own machines: one binary, several roles.
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | [`api`] | types on the wire and their rules; no I/O |
//! | [`http`] | server and client over hyper: listeners, limits, bodies, routing, errors |
//! | [`store`] | the database: domain types, and all SQL in `store/sqlite/` |
//! | [`identity`] | users, sessions, keys, tokens of users and nodes, rate limits, audit |
//! | [`orchestrator`] | role `serve-orchestrator`: use cases, gateway, control plane, scheduler, dispatch |
//! | [`node`] | role `node`: registers and reports this machine, hosts a worker and an optional model server |
//! | [`worker`] | role `worker`: the Worker API, the ledger of jobs, a job in its sandbox |
//! | [`inference`] | calls of model servers, as they are passed on: allowed calls, `model` of a request, tokens of an answer, shapes of errors |
//! | [`sandbox`] | an isolated container that runs a command: lifecycle, shim, protocol to init; independent of jobs |
//! | [`sandbox_init`] | PID 1 inside a sandbox |
//! | [`sandbox_files`] | files of a sandbox: a server inside it, for one HTTP call each |
//! | `archive` | tar archives: headers, entries, extraction into a directory |
//! | [`contents`] | files by their SHA-256: what tasks bring along and leave behind |
//! | [`spool`] | one attempt of a job on disk: request, log, result |
//! | [`engine`] | podman; no other module starts it |
//! | [`client`] | commands for users, and their output |
//! | [`doctor`] | checks of a machine, and fixes |
//! | [`cli`], [`roles`] | flags; and how flags become settings and a running role (`dev` runs several) |
//! | [`helpers`] | hidden subcommands with which the binary runs itself again: init, shim, file server, removal of directory trees, collection of artifacts |
//! | shared by several modules | [`background`], [`backoff`], [`data_dir`], [`digest`], [`disk_space`], `environment`, [`errors`], [`exit`], [`files`], `instances`, `network`, `range`, [`retry`], [`secrets`], [`terminal`], `text`, [`tls`], `wait` |
//!
//! `orchestrator` and `node`/`worker` never import each other: they communicate only over HTTP, also in
//! `dev`. `tests/house/` enforces the rules between modules. The library exists for the binary, its tests
//! and its benches; it is not a public API.
//!
//! # Where to find
//!
//! Paths are below `src/`, except `schema.sql` and those in `docs/`.
//!
//! | question | file |
//! |---|---|
//! | routes | `orchestrator/gateway/mod.rs` (users), `orchestrator/control_plane/mod.rs` (nodes), `worker/api.rs` (Worker API); `orchestrator/health.rs` |
//! | life of a job: queue, attempt, result | `orchestrator/dispatch/mod.rs`, `orchestrator/dispatch/attempt.rs` |
//! | scheduling policy | `orchestrator/scheduler/decision.rs` |
//! | retry policy of jobs | `orchestrator/dispatch/transition.rs`; retryable errors: `api/jobs/result.rs`; limits: `api/tasks/create.rs`, `store/types/queue.rs` |
//! | leases of silent nodes, rescheduling | `orchestrator/dispatch/lease.rs`, `orchestrator/dispatch/reschedule/machine.rs` |
//! | backoff of nodes that refused or failed | `orchestrator/node_backoff.rs` |
//! | cancel path | `orchestrator/cancel.rs`, `orchestrator/dispatch/attempt.rs`, `worker/api.rs`, `worker/job.rs`, `sandbox/lifecycle.rs` |
//! | files of a task | sent: `client/upload/`, `orchestrator/artifacts.rs`, `orchestrator/dispatch/send.rs`, `worker/placement/`; collected: `worker/artifacts/`, `orchestrator/dispatch/retrieve.rs`, `client/download.rs` |
//! | limits of a job, guards of a node | `engine/limits.rs`; `worker/disk_guard.rs`, `worker/memory_guard.rs`, `worker/workspace_guard.rs` |
//! | GPUs | `node/gpu/`, `worker/gpus.rs`, `engine/gpus.rs`; counted: `orchestrator/gpu_pool.rs` |
//! | logs of ended tasks | `orchestrator/logs/archive/` |
//! | stdin of a command | `client/stdin.rs`, `orchestrator/stdin.rs`, `worker/stdin.rs`, `spool/stdin.rs`, `sandbox/stdin.rs`, `sandbox_init/control.rs` |
//! | execs, files and terminals of sandboxes that stay | `orchestrator/sandboxes/` (users), `worker/sessions/` (Worker API), `worker/session/` (in the shim), `sandbox_files/` (inside) |
//! | snapshots of sandboxes | `worker/snapshots/`, `engine/snapshots.rs`, `engine/copy_tree.rs` |
//! | models inside of a sandbox | `sandbox_init/listeners.rs`, `sandbox/listeners.rs`, `worker/sandbox_listeners.rs`, `worker/sandbox_inference.rs`, `orchestrator/control_plane/inference.rs` |
//! | hosts that jobs may reach | lists: `api/egress/`; operator: `orchestrator/egress.rs`; node: `worker/egress/`; events in the job's log: `worker/egress/notices.rs`, `worker/notes.rs`; cache of downloads: `worker/egress/cache/` |
//! | live logs | `orchestrator/logs/streamer.rs`, fed by `worker/event_stream.rs` |
//! | secrets of jobs | stored: `identity/secrets.rs`, `identity/secret_keys.rs`; sent: `orchestrator/dispatch/request.rs`; given to the command: `worker/job_shim.rs`; masked in output: `worker/masking/` |
//! | secrets that a job does not see | `worker/edge/`; in requests: `worker/egress/exchange.rs`; inside of TLS: `worker/egress/terminate.rs`; kept for the next process: `sandbox/access.rs`; trust in the sandbox: `sandbox_init/authority.rs` |
//! | join tokens | text: `api/nodes/join_token.rs`; User API: `orchestrator/join_tokens.rs`; checks: `identity/nodes.rs`, `store/types/join_tokens.rs`; at a node: `roles/credentials.rs` |
//! | TLS of the orchestrator | which listeners: `orchestrator/encryption.rs`; `tls/server.rs`, `tls/certificate.rs`, `http/handshake.rs`; HTTP/2: `http/http2.rs`; plain HTTP at such a port: `http/tls_only.rs` |
//! | tunnels of nodes | `http/tunnel/` (flow control, both ends), `orchestrator/tunnels.rs`, `node/tunnel.rs`; which way is taken: `node/register/ways.rs`, `orchestrator/node_address.rs` |
//! | heartbeat | `node/heartbeat.rs`; nodes without one: `orchestrator/liveness.rs` |
//! | whether a node can be reached | `orchestrator/reachability.rs`, `orchestrator/node_client/reach.rs`; in its own log: `node/reach_notices.rs` |
//! | clean-up of orphans | containers: `worker/orphans.rs`, `engine/orphans.rs`; directory trees: `worker/trash.rs`; expired results: `worker/gc.rs`; attempts left on nodes: `orchestrator/reconciler.rs` |
//! | podman flags and their reasons | `engine/container.rs`; of the model server: `engine/service.rs` |
//! | PID 1 of a sandbox | `sandbox_init/mod.rs`; its protocol: `sandbox_init/wire.rs` |
//! | files of a sandbox that stays | `sandbox_files/mod.rs` |
//! | layout on disk | a job: `spool/mod.rs`; a data directory: `docs/usage.md` (Data directory), its rules: `data_dir.rs` |
//! | schema and migrations | `schema.sql`, `store/sqlite/migrations/` |
//! | what survives which crash | `docs/recovery.md` |
//!
//! # Glossary
//!
//! - **task**: a command with its image, environment and limits, as a user created it. Its execution is a
//!   **job**: nodes know jobs, users know tasks, and each task has one job.
//! - **attempt**: one try of a job at one node. Attempts are numbered and fenced: a node that has attempt 2
//!   refuses calls about attempt 1.
//! - **node**: a machine that runs jobs in its **slots**. Its **worker** serves the Worker API; its **slug** is its
//!   name in commands.
//! - **gateway**, **control plane**: the orchestrator's listeners for users and for nodes.
//! - **sandbox**: a container without a network, with its own `/workspace`, in which **init** (PID 1) runs the
//!   command as an **exec**, supervised by a **shim**, a process that outlives the worker.
//! - **spool**: the directory of an attempt at its node. The **ledger** is the worker's index of spools; a
//!   **tombstone** records an attempt that was deleted, so that it never runs again.
//! - **lane**: the queued jobs of one user with the same requirements; the scheduler reads lanes from their heads.
//! - **edge**: the proxy of a sandbox, where secrets enter the requests of a job that never sees them. The job has a
//!   **placeholder** for each. To **terminate** the TLS of a host is to open it there.
//! - **placement**: what a job requires of a node, and the nodes that refused it.
//! - **lease**: how long a silent node keeps its jobs. After that, another node is **offered** the next attempt.
//! - **content**: bytes by their SHA-256. An **artifact** is a content with a name and an owner: an upload, or a file that
//!   was collected from a task. A node **places** files before the command and **collects** artifacts after it.
//! - **drain**: a node that finishes its jobs and gets no new ones. **Dirty**: a node that may hold superseded
//!   attempts, until the reconciler has checked it.
//! - **reserve**: free space on a disk that is kept for results and state.

pub mod api;
mod archive;
pub mod background;
pub mod backoff;
pub mod cli;
pub mod client;
pub mod contents;
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
pub mod inference;
mod instances;
mod network;
pub mod node;
pub mod orchestrator;
mod range;
pub mod retry;
pub mod roles;
pub mod sandbox;
pub mod sandbox_files;
pub mod sandbox_init;
pub mod secrets;
pub mod spool;
pub mod store;
pub mod terminal;
mod text;
pub mod tls;
mod wait;
pub mod worker;
