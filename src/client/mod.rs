//! Client commands: `cynode run`, `task`, `sandbox`, `exec`, `shell`, `artifacts`, `images`, `models`, `chat`, `nodes`, `users`, `keys`, `secrets`, `usage`, `audit`, `login`, `passwd`,
//! `status`.
//!
//! Results go to stdout, everything else to stderr. The client is blocking throughout, over `ureq`, and uses
//! nothing of the orchestrator but its User API.

mod agent;
mod api_client;
pub mod artifacts;
pub mod chat;
mod confirm;
mod connection;
pub mod credentials;
mod download;
mod egress_events;
mod flags;
mod follow;
pub mod images;
mod input;
pub mod keys;
pub mod login;
mod logs;
mod many;
pub mod models;
mod node_tokens;
pub mod nodes;
mod output;
pub mod password;
mod paths;
mod patience;
pub mod print;
mod progress;
mod quote;
mod receive;
mod remarks;
pub mod run;
pub mod sandbox;
pub mod secrets;
mod sse;
mod stdin;
pub mod task;
mod task_end;
mod task_get;
mod tls;
mod transfer;
mod upload;
pub mod usage;
pub mod users;
mod warnings;
