//! cynode, the map of the house.
//!
//! | room | what is there |
//! |---|---|
//! | [`api`] | what travels on the wire: types and their rules, no I/O |
//! | [`http`] | hyper and tower plumbing, both directions; knows no business |
//! | [`store`] | SQLite; the only room with SQL |
//! | [`identity`] | users, nodes, passwords, tokens |
//! | [`engine`] | the only room that starts podman |
//! | [`sandbox_init`] | PID 1 inside a sandbox |
//! | [`sandbox`] | one process per job, between worker and podman, that outlives the worker |
//! | [`spool`] | a job's directory on disk: request, log, result |
//! | [`worker`] | role `worker`: the Worker API, the life of a job |
//! | [`node`] | role `node`: joins an orchestrator and serves it a worker |
//! | [`orchestrator`] | role `serve-orchestrator`: gateway, control plane, dispatch |
//! | [`client`] | the user's commands and how they print |
//! | [`doctor`] | checks this machine and shows how to fix what is wrong |
//! | [`cli`], [`roles`] | every flag; from flags to a running role, `dev` among them |
//! | [`helpers`] | helpers that the binary starts itself |
//! | [`data_dir`], [`digest`], [`disk_space`], `environment`, [`errors`], [`exit`], `instances`, `network`, `backoff`, [`background`], [`retry`], [`files`], [`secrets`], `terminal`, `text`, `wait` | small things that several rooms share |
//!
//! `orchestrator` and `node`/`worker` never use each other: they meet only over HTTP, in `dev`
//! too. The library exists for the binary beside it, its tests and its bench; it is no API.

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
