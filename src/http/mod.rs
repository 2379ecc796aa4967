//! HTTP over hyper and tower, as server and as client; knows nothing of tasks, jobs and nodes.
//!
//! A role builds a [`router::Router`] over its own state and passes it to [`server::serve`]. A handler takes
//! a [`request::Request`] and returns a response or an error. Everything that is the same for all of them
//! happens here: request ids, limits, 404, 405, panics, problem bodies, metrics.

pub mod body;
pub mod budget;
mod call_error;
pub mod client;
pub mod client_response;
pub mod connection_info;
mod connection_limiter;
pub mod file;
mod forward;
mod handshake;
pub mod host;
mod http2;
mod json_body;
mod json_error;
pub mod lines;
pub mod listener_policy;
pub mod log_query;
pub mod metrics;
pub mod private;
pub mod query;
pub mod request;
pub mod resolve;
pub mod response;
pub mod router;
pub mod server;
pub mod tls_only;
mod transport;
pub mod tunnel;
pub mod untrusted;
pub mod upgrade;
mod warnings;

pub use crate::range::UploadPart;

/// Largest body that a listener accepts and a client reads whole, in bytes.
pub const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;
