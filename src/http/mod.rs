//! Plumbing between sockets and rooms: hyper and tower, and nothing of our business.
//!
//! A role builds a [`router::Router`] of its own state and hands it to [`server::serve`].
//! A handler takes a [`request::Request`] and answers a response or a
//! [`Problem`](crate::api::problem::Problem); everything that is the same for all of them
//! (request ids, limits, 404, 405, panics, problem bodies, metrics) happens here, once.

mod body;
pub mod budget;
mod call_error;
pub mod client;
pub mod client_response;
mod connection_limiter;
pub mod host;
mod json_error;
pub mod lines;
pub mod listener_policy;
pub mod metrics;
mod refusal;
pub mod request;
pub mod resolve;
pub mod response;
pub mod router;
pub mod server;
mod warnings;

/// Largest body that any listener takes and any of our clients reads whole, in bytes.
pub const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;
