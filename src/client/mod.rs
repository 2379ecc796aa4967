//! Client commands: `cynode run`, `task`, `nodes`, `users`, `audit`, `login`, `status`.
//!
//! Results go to stdout, everything else to stderr. The client is blocking throughout, over `ureq`, and uses
//! nothing of the orchestrator but its User API.

mod api_client;
mod confirm;
pub mod credentials;
mod flags;
mod follow;
mod input;
pub mod login;
pub mod nodes;
mod paths;
pub mod print;
pub mod run;
pub mod task;
pub mod users;
