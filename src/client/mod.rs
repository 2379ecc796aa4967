//! The user's side: what people type, and what they see.
//!
//! Results go to stdout, everything else to stderr. Blocking throughout, over `ureq`; nothing
//! here knows more of the orchestrator than its User API.

mod api_client;
mod confirm;
pub mod credentials;
mod follow;
mod input;
pub mod login;
pub mod nodes;
pub mod print;
pub mod run;
pub mod task;
pub mod users;
